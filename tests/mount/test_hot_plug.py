"""Mounts that come, go and come back while the vault is served."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import storage
from tests.support.listening import listening
from tests.support.session import USER, KasmSession, kasm_session
from tests.support.vault import as_person, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

PATIENCE = 20.0  # seconds


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        yield made
        made.clean_up()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"still waiting: {what}"
        time.sleep(0.05)


def names(session: KasmSession) -> set[str]:
    return {branch["name"] for branch in session.status()["branches"]}


def content(path: Path) -> object:
    return outcome(path.read_text)


@contextlib.contextmanager
def arriving(session: KasmSession, name: str, *, read_only: bool = False) -> Iterator[Path]:
    """A folder with a note in it, mounted outside of the vault from now on."""
    source = session.base / "host" / name
    source.mkdir(parents=True)
    (source / "note.md").write_text(f"{name}\n")
    os.chown(source, USER, USER)
    with storage.bind(source, session.base / name, read_only=read_only):
        yield source


def test_one_that_comes(session: KasmSession) -> None:
    session.first_launch(0)
    pid = session.status()["pid"]
    with (
        open(session.vault / "engineering/note.md", encoding="utf-8") as opened,
        arriving(session, "drive") as source,
        arriving(session, "archive", read_only=True),
    ):
        note = session.vault / "drive/note.md"
        wait_until(lambda: content(note) == "drive\n", "it is shown")
        wait_until(lambda: content(session.vault / "archive/note.md") == "archive\n", "so is that")
        assert {"drive", "archive", "engineering", "wiki"} == names(session)
        assert opened.read() == "engineering\n"
        assert {"drive", "archive", "engineering", "wiki"} <= set(os.listdir(session.vault))
        os.chown(source / "note.md", USER, USER)
        moved = session.vault / "engineering/moved.md"
        assert outcome(lambda: as_person(lambda: note.rename(moved), USER)) == moved
        assert content(session.vault / "engineering/moved.md") == "drive\n"
        assert os.listdir(source) == []
        with pytest.raises(OSError, match="Read-only"):
            (session.vault / "archive/new").write_text("x")
        bookmarks = session.home / ".config/gtk-3.0/bookmarks"
        wait_until(lambda: "/drive" in bookmarks.read_text(), "its bookmark")
        rooms = session.home / ".config/session-agent/rooms.yaml"
        wait_until(lambda: "/drive" in rooms.read_text(), "its room")
        assert session.status()["pid"] == pid
        # The successor of a crashed worker has them, too.
        worker = session.worker(pid)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: content(session.vault / "archive/note.md") == "archive\n", "a successor")
        assert names(session) == {"drive", "archive", "engineering", "wiki"}
        assert not session.first_launch(0)["changed"]
        session.run("stop")


def test_what_others_change_in_one_that_comes(session: KasmSession) -> None:
    """And in one that is mounted anew, of which nothing is remembered."""
    session.first_launch(0)
    drive = session.vault / "drive"
    note, absent = drive / "note.md", drive / "absent.md"
    with arriving(session, "drive") as source:
        wait_until(lambda: content(note) == "drive\n", "it is shown")
        assert content(absent) == "ENOENT"
        with listening(drive) as listener:
            (source / "new.md").write_text("1")
            wait_until(lambda: "CREATE new.md" in listener.events(), "an event")
            assert os.stat(note).st_size == len("drive\n")
    wait_until(lambda: content(note) == "ENOTCONN", "it is gone")
    assert content(absent) == "ENOTCONN"
    other = session.base / "host/other"
    other.mkdir()
    (other / "note.md").write_text("another\n")
    (other / "absent.md").write_text("not any more\n")
    with storage.bind(other, session.base / "drive"):
        wait_until(lambda: content(note) == "another\n", "what lies there now")
        assert content(absent) == "not any more\n"
        assert sorted(os.listdir(drive)) == ["absent.md", "note.md"]
        with listening(drive) as listener:
            (other / "new.md").write_text("2")
            wait_until(lambda: "CREATE new.md" in listener.events(), "an event")
            (other / "note.md").write_text("changed\n")
            wait_until(lambda: content(note) == "changed\n", "what was changed")
        session.run("stop")


def test_one_below_the_vaults_path_is_mounted_anew(session: KasmSession) -> None:
    """Where the overlay covers it: as the host does it, by propagation."""
    covered = os.open(session.vault, os.O_PATH)
    try:
        session.first_launch(0)
        place = f"/proc/self/fd/{covered}/engineering"
        other = session.base / "host/other"
        other.mkdir()
        (other / "note.md").write_text("other\n")
        for command in (
            ["umount", "-c", "-l", place],
            ["mount", "-c", "--bind", str(other), place],
        ):
            subprocess.run(command, check=True, pass_fds=[covered])
        note = session.vault / "engineering/note.md"
        wait_until(lambda: content(note) == "other\n", "what lies there now")
        assert os.listdir(session.vault / "engineering") == ["note.md"]
        assert (session.vault / "wiki/note.md").read_text() == "wiki\n"
        session.run("stop")
    finally:
        os.close(covered)


@pytest.mark.needs_rclone
def test_one_that_goes(session: KasmSession) -> None:
    """It is dead, not empty, and not what the agent still holds; and comes back when it is mounted again."""
    source = session.base / "host/drive"
    source.mkdir(parents=True)
    (source / "note.md").write_text("drive\n")
    with storage.bind(source, session.base / "drive"):
        session.first_launch(0)
        note = session.vault / "drive/note.md"
        assert content(note) == "drive\n"
        storage.run("umount", "--lazy", str(session.base / "drive"))
        wait_until(lambda: content(note) == "ENOTCONN", "it is dead")
        assert outcome(lambda: os.listdir(note.parent)) == "ENOTCONN"
        assert outcome(lambda: (note.parent / "new").write_text("x")) == "ENOTCONN"
        states = {branch["name"]: branch["state"] for branch in session.status()["branches"]}
        assert states == {"drive": "dead", "engineering": "alive", "wiki": "alive"}
        assert content(session.vault / "engineering/note.md") == "engineering\n"
        storage.run("mount", "--bind", str(source), str(session.base / "drive"))
        wait_until(lambda: content(note) == "drive\n", "it is back")
        assert not (source / "new").exists()


def test_a_drive_that_comes_back(session: KasmSession) -> None:
    cloud, place = session.base / "cloud", session.base / "gdrive"
    cloud.mkdir()
    (cloud / "letter").write_text("first\n")
    session.environment["CLOUD_MOUNTS"] = f"{place}|gdrive"
    with contextlib.ExitStack() as stack:
        drive = stack.enter_context(storage.rclone(cloud, place))
        session.first_launch(0)
        letter = session.vault / "gdrive/letter"
        assert letter.read_text() == "first\n"
        drive.kill()
        wait_until(lambda: content(letter) == "ENOTCONN", "it is dead")
        assert "gdrive" in os.listdir(session.vault)
        storage.run("umount", "--lazy", str(place))
        (cloud / "letter").write_text("second, and longer\n")
        stack.enter_context(storage.rclone(cloud, place))
        wait_until(lambda: content(letter) == "second, and longer\n", "it is back")
        states = {branch["name"]: branch["state"] for branch in session.status()["branches"]}
        assert states["gdrive"] == "alive"
        letter.rename(session.vault / "engineering/letter")
        assert (session.vault / "engineering/letter").read_text() == "second, and longer\n"
        assert not letter.exists()
        session.run("stop")


def test_a_policy_speaks_of_it_before_it_is_shown(session: KasmSession) -> None:
    policy = session.base / "policy.yaml"
    policy.write_text(yaml.safe_dump({"folders": []}))
    session.settings["policy"] = {"file": str(policy), "ungoverned": "hidden", "audit_file": None}
    done = session.run("first-launch")
    assert done.returncode == 0, done.stdout + done.stderr
    with arriving(session, "drive"):
        wait_until(
            lambda: "drive is mounted" in (session.state_dir / "agent.log").read_text(),
            "it is taken in",
        )
        assert not (session.vault / "drive").exists()
        assert "drive" not in names(session)
        session.run("stop")
