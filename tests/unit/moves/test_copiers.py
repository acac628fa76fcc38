"""Large trees, worked on by copier processes: the same outcome as without, whatever becomes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest

from session_agent.fsutil.credentials import AGENT
from session_agent.moves import copier_process, copiers, workers
from session_agent.moves.copiers import Copier, Copiers, Work
from session_agent.moves.engine import Job
from session_agent.moves.plan import Place, Request
from session_agent.moves.progress import CancelledError, Progress
from session_agent.moves.snapshot import Copied, Snapshot
from session_agent.moves.strategy import Options
from tests.support.disks import picture
from tests.support.moving import Disks, move
from tests.support.storage import tmpfs

PATIENCE = 20.0  # seconds


@pytest.fixture
def nursery(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copiers]:
    """For trees of a few files already, and four processes on whatever machine this is."""
    monkeypatch.setattr(workers, "MANY_FILES", 10)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    started = copier_process.start()
    yield started
    started.end()


class Counted(Copiers):
    """Notes what the copiers are asked to do; `then` is called before each of it."""

    def __init__(self, nursery: Copiers, then: Callable[[], None] = lambda: None) -> None:
        self._nursery_itself = nursery
        self._then = then
        self.asked: list[str] = []

    def new(self) -> Copier | None:
        made = self._nursery_itself.new()
        if made is not None:
            ask = made.ask

            def noted(
                work: Work, folders: Sequence[int], result: type, progress: Progress
            ) -> object:
                self.asked.append(type(work).__name__)
                self._then()
                return ask(work, folders, result, progress)

            made.ask = noted  # type: ignore[method-assign,assignment]
        return made


def _options(nursery: Copiers) -> Options:
    return Options(handle_rename=False, copiers=nursery)


def make_tree(top: Path) -> None:
    """Folders of notes, a folder of many, and what copiers leave to others."""
    for number in range(12):
        (top / f"{number}/below").mkdir(parents=True)
        for note in range(8):
            (top / f"{number}/note{note}").write_bytes(b"%d %d" % (number, note))
        (top / f"{number}/below").chmod(0o711)
    os.link(top / "0/note0", top / "1/below/link")
    os.link(top / "0/note0", top / "2/link")
    (top / "many").mkdir()
    for note in range(150):
        (top / f"many/{note}").write_bytes(b"%d" % note)
    (top / "3/large").write_bytes(os.urandom(3 << 20))
    with open(top / "4/holes", "wb") as file:
        file.truncate(1 << 20)
    (top / "5/to nowhere").symlink_to("nowhere")
    os.mkfifo(top / "6/pipe")
    os.setxattr(top / "7/note0", "user.label", b"here")
    (top / "8/note0").chmod(0o4750)
    (top / "9/note0").chmod(0o000)
    (top / "10/empty").touch()
    if os.geteuid() == 0:
        os.chown(top / "11/note0", 1000, 1001)
        os.chown(top / "11/below", 1000, 1001)


def test_a_tree_of_everything(disks: Disks, nursery: Copiers) -> None:
    make_tree(disks.source / "tree")
    before = picture(disks.source / "tree")
    counted = Counted(nursery)
    outcome = move(disks.source / "tree", disks.target / "moved", options=_options(counted))
    assert (outcome.strategy, outcome.losses, outcome.kept) == ("copy", (), False)
    assert picture(disks.target / "moved") == before
    assert os.listdir(disks.source) == []
    assert disks.reserved == []
    assert set(counted.asked) == {"Measure", "Copy", "Verify", "Remove"}
    assert os.stat(disks.target / "moved/4/holes").st_blocks == 0


def test_every_copy_is_told(disks: Disks, nursery: Copiers) -> None:
    make_tree(disks.source / "tree")
    (copied,) = move(
        disks.source / "tree", disks.target / "moved", options=_options(nursery)
    ).copied
    paths = [(disks.target / "moved", copied)]
    for path, one in paths:
        status = os.lstat(path)
        assert one.copy == (status.st_dev, status.st_ino), path
        paths += [(path / os.fsdecode(name), below) for name, below in one.entries.items()]
    assert len(paths) == len(picture(disks.target / "moved"))


@pytest.mark.parametrize("at", [1, 2, 5, 9, 14, 20])
def test_copiers_are_killed(disks: Disks, nursery: Copiers, at: int) -> None:
    """All of them, before what they are asked for the `at`th time: the move itself is not affected."""
    make_tree(disks.source / "tree")
    before = picture(disks.source / "tree")
    killed: list[int] = []
    lock = threading.Lock()

    def kill() -> None:
        with lock:
            if len(counted.asked) >= at and not killed:
                for one in psutil.Process(nursery._pid).children():
                    killed.append(one.pid)
                    one.kill()

    counted = Counted(nursery, kill)
    outcome = move(disks.source / "tree", disks.target / "moved", options=_options(counted))
    assert killed
    assert not outcome.kept
    assert picture(disks.target / "moved") == before
    assert os.listdir(disks.source) == []
    assert disks.reserved == []


def test_a_copier_killed_while_it_copies(disks: Disks, nursery: Copiers) -> None:
    """Half of a folder is there then, and is copied anew."""
    make_tree(disks.source / "tree")
    (disks.source / "tree/0/slow").write_bytes(os.urandom(24 << 20))
    before = picture(disks.source / "tree")
    killed: list[int] = []

    class Watching(Progress):
        def add(self, count: int = 0, files: int = 0) -> None:
            if count >= 8 << 20 and not killed:
                for one in psutil.Process(nursery._pid).children():
                    killed.append(one.pid)
                    one.kill()
            super().add(count, files)

    with_places(disks, nursery, Watching())
    assert killed
    assert picture(disks.target / "moved") == before
    assert os.listdir(disks.source) == []


def with_places(disks: Disks, nursery: Copiers, progress: Progress) -> None:
    """Move the tree, with that progress."""
    folders = [os.open(folder, os.O_PATH) for folder in (disks.source, disks.target)]
    try:
        places = [
            Place(fd, name, os.fsdecode(name))
            for fd, name in zip(folders, (b"tree", b"moved"), strict=True)
        ]
        job = Job(Request(places[0], places[1], 0, AGENT), _options(nursery))
        job.progress = progress
        try:
            job.run(lambda _: None)
        finally:
            job.close()
    finally:
        for fd in folders:
            os.close(fd)


def test_a_cancelled_move_leaves_nothing(disks: Disks, nursery: Copiers) -> None:
    """No copier writes on after the copy has been removed."""
    make_tree(disks.source / "tree")
    for number in range(40):
        (disks.source / f"tree/many/large{number}").write_bytes(os.urandom(400_000))
    before = picture(disks.source / "tree")

    class Cancelled(Progress):
        def add(self, count: int = 0, files: int = 0) -> None:
            super().add(count, files)
            if self.files > 60:
                self.cancel()

    with pytest.raises(CancelledError):
        with_places(disks, nursery, Cancelled())
    assert os.listdir(disks.target) == []
    assert picture(disks.source / "tree") == before


@pytest.mark.needs_root
def test_something_mounted_in_the_tree(disks: Disks, nursery: Copiers) -> None:
    make_tree(disks.source / "tree")
    (disks.source / "tree/7/mount").mkdir()
    before = picture(disks.source / "tree")
    with (
        tmpfs(disks.source / "tree/7/mount"),
        pytest.raises(OSError, match="busy"),
    ):
        move(disks.source / "tree", disks.target / "moved", options=_options(nursery))
    assert picture(disks.source / "tree") == before
    assert os.listdir(disks.target) == []


def test_no_room_in_the_middle(tmp_path: Path, disks: Disks, nursery: Copiers) -> None:
    """What copiers cannot do is tried once more by the move itself, which has the reason."""
    top = disks.source / "tree"
    for number in range(12):
        (top / f"{number}").mkdir(parents=True)
        for note in range(8):
            (top / f"{number}/{note}").write_bytes(os.urandom(20_000))
    before = picture(top)
    small = tmp_path / "small"
    small.mkdir()
    with tmpfs(small, size="3M"):
        filler = small / "filler"

        def fill() -> None:
            if len(counted.asked) == 4:
                filler.write_bytes(b"x" * 2_000_000)

        counted = Counted(nursery, fill)
        with pytest.raises(OSError, match="No space"):
            move(top, small / "moved", options=_options(counted))
        assert os.listdir(small) == ["filler"]
    assert picture(top) == before


def test_a_source_that_changes_meanwhile(disks: Disks, nursery: Copiers) -> None:
    """Before anything of it is looked at again: the change goes along."""
    make_tree(disks.source / "tree")
    changed: list[bool] = []

    def change() -> None:
        if "Verify" in counted.asked and not changed:
            changed.append(True)
            (disks.source / "tree/many/100").write_bytes(b"changed behind it")
            (disks.source / "tree/11/new").write_bytes(b"new")

    counted = Counted(nursery, change)
    outcome = move(disks.source / "tree", disks.target / "moved", options=_options(counted))
    assert changed
    assert not outcome.kept
    assert (disks.target / "moved/many/100").read_bytes() == b"changed behind it"
    assert (disks.target / "moved/11/new").read_bytes() == b"new"
    assert os.listdir(disks.source) == []
    assert disks.reserved == []


def test_what_came_before_the_removal_stays(disks: Disks, nursery: Copiers) -> None:
    make_tree(disks.source / "tree")

    def change() -> None:
        (disks.source / "tree/many/100").write_bytes(b"changed late")
        (disks.source / "tree/11/new").write_bytes(b"new")

    outcome = move(
        disks.source / "tree", disks.target / "moved", on_commit=change, options=_options(nursery)
    )
    assert outcome.kept
    assert (disks.source / "tree/many/100").read_bytes() == b"changed late"
    assert (disks.source / "tree/11/new").read_bytes() == b"new"
    assert (disks.target / "moved/many/100").read_bytes() == b"100"


_AGENT = """
import os, sys, time
from session_agent.fsutil.credentials import AGENT
from session_agent.moves import copier_process
nursery = copier_process.start()
copiers = [nursery.new() for _ in range(3)]
print(nursery._pid, flush=True)
time.sleep(60)
"""


def test_they_end_with_a_killed_agent() -> None:
    agent = subprocess.Popen([sys.executable, "-c", _AGENT], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    nursery = psutil.Process(int(agent.stdout.readline()))
    deadline = time.monotonic() + PATIENCE
    while len(nursery.children()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes = [nursery, *nursery.children()]
    processes[1].suspend()  # it does not see that its connection is closed, as one that is at work
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    agent.stdout.close()
    _, alive = psutil.wait_procs(processes, PATIENCE)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_none_without_a_nursery(disks: Disks, nursery: Copiers) -> None:
    """It has been killed: moves go on without."""
    os.kill(nursery._pid, signal.SIGKILL)
    os.waitpid(nursery._pid, 0)
    make_tree(disks.source / "tree")
    before = picture(disks.source / "tree")
    move(disks.source / "tree", disks.target / "moved", options=_options(nursery))
    assert picture(disks.target / "moved") == before


def test_messages_fit() -> None:
    """The longest names there can be, as many as are asked for at once."""
    most = (1 << 64) - 1
    snapshot = Snapshot((most, most), most, (most, most), most, most, most, most)
    work = copiers.Remove([(b"x" * 255, Copied(snapshot, (most, most)))] * workers._GROUP)
    assert len(msgspec.msgpack.encode(work)) < copiers.MESSAGE_LIMIT / 2
