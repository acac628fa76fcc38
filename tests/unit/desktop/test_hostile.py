"""What every writer does when something else is where its file should be, or nothing can be written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from session_agent.desktop import bookmarks, obsidian, obsidian_registry, rooms
from session_agent.desktop.changes import Change
from session_agent.desktop.memory import FILE_NAME, Memory
from tests.support.as_user import NOBODY, as_user, home_of
from tests.support.branches import branches

FILES = {
    ".config/gtk-3.0/bookmarks": b"file:///x X\n",
    "root/.obsidian/app.json": b"{}",
    "root/.obsidian/core-plugins.json": b"{}",
    "root/.obsidian/bookmarks.json": b"{}",
    ".config/obsidian/obsidian.json": b"{}",
    ".config/session-agent/rooms.yaml": b"user: ann\n",
    f"state/{FILE_NAME}": b'{"files": {}}',
}
TARGETS = pytest.mark.parametrize("target", list(FILES))


def write_all(home: Path, *names: str) -> list[Change]:
    """All that the desktop is given, in a home that holds everything."""
    found = branches(*(names or ("engineering", "wiki:ro")))
    memory = Memory(str(home / "state"))
    config = str(home / ".config")
    terms = rooms.Terms(f"{config}/session-agent/rooms.yaml", "/vault", username="ann")
    return [
        bookmarks.apply(config, "/vault", found, memory, cloud_mounts="/vault/wiki|s3"),
        *obsidian.apply(str(home / "root"), found, memory),
        *obsidian_registry.register(str(home), config, "/vault", memory),
        rooms.apply(rooms.rooms(found, terms), terms, memory),
    ]


def problems(changes: list[Change]) -> list[str]:
    return [change.problem for change in changes if change.problem]


def snapshot(folder: Path) -> dict[str, object]:
    """Every name below `folder`, its type, and its content if it is a regular file."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.is_file() and path.read_bytes())
        for path in sorted(folder.rglob("*"))
    }


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    assert problems(write_all(tmp_path)) == []
    before = snapshot(tmp_path)
    inodes = [path.stat().st_ino for path in sorted(tmp_path.rglob("*"))]
    assert not any(change.changed or change.problem for change in write_all(tmp_path))
    assert snapshot(tmp_path) == before
    assert [path.stat().st_ino for path in sorted(tmp_path.rglob("*"))] == inodes


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.timeout(20)
@TARGETS
@pytest.mark.parametrize("make", [fifo, folder, dangling, loop])
def test_something_else_in_a_files_place(
    tmp_path: Path, target: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / target
    path.parent.mkdir(parents=True)
    make(path)
    before = path.lstat()
    changes = write_all(tmp_path)
    assert problems(changes)
    assert all(str(path) in problem for problem in problems(changes))
    assert path.lstat().st_ino == before.st_ino
    assert path.lstat().st_mode == before.st_mode
    for other in FILES.keys() - {target}:
        assert (tmp_path / other).is_file(), f"{other} was not written because of {target}"


@pytest.mark.needs_root
@TARGETS
def test_a_link_planted_to_a_file_of_root(target: str) -> None:
    with home_of(0) as roots, home_of() as home:
        roots.chmod(0o755)
        secret = roots / "secret"
        secret.write_bytes(FILES[target])
        secret.chmod(0o600)
        path = home / target
        path.parent.mkdir(parents=True)
        path.symlink_to(secret)
        subprocess.run(["chown", "-R", "-h", str(NOBODY), home], check=True)

        def step() -> None:
            assert any(str(path) in problem for problem in problems(write_all(home)))

        as_user(step)
        secret.chmod(0o644)
        as_user(step)
        assert secret.read_bytes() == FILES[target]
        assert secret.stat().st_uid == 0
        assert path.is_symlink()


@pytest.mark.needs_root
@TARGETS
def test_a_file_of_somebody_else_is_left_alone(target: str) -> None:
    with home_of() as home:
        path = home / target
        path.parent.mkdir(parents=True)
        subprocess.run(["chown", "-R", str(NOBODY), home], check=True)
        path.write_bytes(FILES[target])

        def step() -> None:
            assert any("write-protected" in problem for problem in problems(write_all(home)))

        as_user(step)
        assert path.read_bytes() == FILES[target]
        assert path.stat().st_uid == 0


@pytest.mark.needs_root
def test_a_read_only_home() -> None:
    with home_of(0) as home:
        home.chmod(0o755)

        def step() -> None:
            changes = write_all(home)
            assert all(change.problem and not change.changed for change in changes)

        as_user(step)
        assert snapshot(home) == {}


@pytest.mark.needs_root
def test_a_state_folder_that_cannot_be_written_keeps_nothing_from_being_set_up(
    tmp_path: Path,
) -> None:
    with home_of() as home, home_of(0) as state:
        (home / "state").symlink_to(state)
        state.chmod(0o755)

        def step() -> None:
            first = write_all(home)
            assert sum(change.changed for change in first) == len(FILES)
            assert any("Permission denied" in problem for problem in problems(first))
            assert not any(change.changed for change in write_all(home))

        as_user(step)


@pytest.mark.needs_root
def test_no_space_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        for target, content in FILES.items():
            (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / target).write_bytes(content)
        (tmp_path / "root" / "_inbox" / "attachments").mkdir(parents=True)
        (tmp_path / "state" / "desktop.lock").touch()
        with (tmp_path / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(b"x" * 4096):
                pass
        before = snapshot(tmp_path)
        changes = write_all(tmp_path)
        assert not any(change.changed for change in changes)
        assert all("No space" in problem for problem in problems(changes))
        assert len(problems(changes)) >= 6
        assert snapshot(tmp_path) == before
        (tmp_path / "filler").unlink()
        assert problems(write_all(tmp_path)) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_two_agents_at_once(tmp_path: Path) -> None:
    """Each sees other branches; what they leave is what one of them wrote, whole."""
    sets = [("a", "b"), ("b", "c")]
    children = []
    for names in sets:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = int(any(problems(write_all(tmp_path, *names)) for _ in range(10)))
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    write_all(tmp_path, *sets[0])
    assert not any(change.changed for change in write_all(tmp_path, *sets[0]))
    assert (tmp_path / ".config/gtk-3.0/bookmarks").read_bytes() == (
        b"file:///vault Vault\nfile:///vault/a A\nfile:///vault/b B\n"
    )
    listed = yaml.safe_load((tmp_path / ".config/session-agent/rooms.yaml").read_bytes())
    assert [folder["path"] for folder in listed["sync"]["folders"]] == ["/vault/a", "/vault/b"]
    assert not list(tmp_path.rglob(".~*"))
