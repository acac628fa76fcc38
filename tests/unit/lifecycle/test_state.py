"""The state directory: who may use it, and who holds its lock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from session_agent.errors import UserFileError
from session_agent.lifecycle import state
from session_agent.model import SessionUser
from tests.support.as_user import NOBODY, home_of

ME = SessionUser("me", os.getuid(), os.getgid(), tuple(os.getgroups()), "/")
USER = SessionUser("nobody", NOBODY, NOBODY, (), "/")

_HOLD = """
import sys
from session_agent.lifecycle import state
from tests.unit.lifecycle.test_state import ME
assert state.lock(state.create(sys.argv[1], ME), ME)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[int]:
    """Another process holds the lock; its number."""
    command = [sys.executable, "-c", _HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = state.create(str(tmp_path / "a/state"), ME)
    yield fd
    os.close(fd)


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a/state"
    os.close(state.create(str(path), ME))
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    os.close(state.create(str(path), ME))
    assert path.stat().st_mode & 0o777 == 0o700


def test_the_kernel_tells_who_holds_the_lock(tmp_path: Path) -> None:
    fd = state.create(str(tmp_path), ME)
    assert state.holder(fd) is None
    with held_by_another(tmp_path) as pid:
        assert state.holder(fd) == pid
        assert state.lock(fd, ME) is False
        assert state.holder(fd) == pid
    assert state.holder(fd) is None
    os.close(fd)


def test_a_lock_file_without_a_holder_counts_for_nothing(folder: int, tmp_path: Path) -> None:
    (tmp_path / "a/state/agent.lock").touch()
    assert state.holder(folder) is None


def test_nothing_there(tmp_path: Path) -> None:
    assert state.find(str(tmp_path / "absent")) is None
    (tmp_path / "file").touch()
    assert state.find(str(tmp_path / "file")) is None


@pytest.mark.parametrize("name", ["agent.log", "agent.lock"])
def test_links_and_fifos_are_refused(folder: int, tmp_path: Path, name: str) -> None:
    planted = tmp_path / "a/state" / name
    target = tmp_path / "target"
    open_it = {"agent.log": state.open_logs, "agent.lock": state.lock}[name]
    planted.symlink_to(target)
    with pytest.raises(UserFileError):
        open_it(folder, ME)
    assert not target.exists()
    planted.unlink()
    os.mkfifo(planted)
    reader = os.open(planted, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(UserFileError, match="no regular file"):
            open_it(folder, ME)
    finally:
        os.close(reader)


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(UserFileError, match="state_dir"):
        state.create(str(tmp_path / "state"), ME)


@pytest.mark.needs_root
class TestAsRootForAUser:
    """What root makes there is the user's, and what is root's stays closed."""

    def test_everything_belongs_to_the_user(self) -> None:
        with home_of() as home:
            fd = state.create(str(home / ".local/state"), USER)
            for log in state.open_logs(fd, USER):
                os.close(log)
            os.close(fd)
            assert {path.stat().st_uid for path in home.rglob("*")} == {NOBODY}

    def test_a_folder_of_roots_is_not_used(self) -> None:
        with home_of() as home:
            (home / "state").mkdir(mode=0o755)
            with pytest.raises(UserFileError, match="Operation not permitted"):
                state.create(str(home / "state"), USER)
            assert list((home / "state").iterdir()) == []

    def test_a_hard_link_to_a_file_of_roots(self) -> None:
        with home_of() as home:
            secret = home / "secret"
            secret.write_text("root's")
            secret.chmod(0o600)
            fd = state.create(str(home / "state"), USER)
            os.link(secret, home / "state/agent.log")
            with pytest.raises(UserFileError, match="Permission denied"):
                state.open_logs(fd, USER)
            os.close(fd)
