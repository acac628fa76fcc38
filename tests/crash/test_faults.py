"""What fails half way through a move: the target's disk, the source behind the vault, a drive that dies.

Each of them while the caller waits, and in the background. Afterwards everything is there, under its old name
or its new one, and a copy that could not be removed at once is gone when it can be.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from session_agent.moves import journal
from session_agent.moves.names import RESERVED_PREFIX
from session_agent.moves.record import Record, State
from tests.support import storage as mounted
from tests.support.cases import rename
from tests.support.disks import contents
from tests.support.vault import Storage, Vault, outcome, serve, storage

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

WAYS = {"at once": 1 << 30, "in the background": 0}  # what is copied while the caller waits
PATIENCE = 20.0  # seconds


@pytest.fixture
def place() -> Iterator[Storage]:
    with storage() as made:
        yield made


@pytest.fixture(params=WAYS)
def inline_bytes(request: pytest.FixtureRequest) -> int:
    return WAYS[request.param]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


def _left_over(*folders: Path) -> list[str]:
    prefix = os.fsdecode(RESERVED_PREFIX)
    return [
        name
        for top in folders
        for _, below, files in os.walk(top)
        for name in (*below, *files)
        if name.startswith(prefix)
    ]


def _counting(vault: Vault) -> list[Record]:
    """What the journal holds."""
    folder = os.open(vault.state, os.O_PATH | os.O_DIRECTORY)
    try:
        found, problem = journal.read(folder)
    finally:
        os.close(folder)
    assert not problem
    return found


def _failed(vault: Vault) -> list[int]:
    """The errnos of the moves that the journal tells of as failed."""
    return [one.error for one in _counting(vault) if one.state is State.FAILED]


@contextmanager
def _moved_and_held(vault: Vault, old: Path, new: Path, point: str) -> Iterator[list[object]]:
    """The move has come to that point, and goes on after the block; then its outcome is in the list."""
    answers: list[object] = []
    with vault.held_at(point):
        thread = threading.Thread(target=lambda: answers.append(outcome(lambda: rename(old, new))))
        thread.start()
        _until(lambda: vault.has_reached(point))
        yield answers
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the rename does not return"


def _tree(top: Path) -> dict[str, bytes]:
    for folder in "ab":
        (top / folder).mkdir(parents=True)
        for note in range(3):
            (top / folder / f"{note}").write_bytes(os.urandom(50_000))
    return contents(top)


def _stayed(vault: Vault, old: Path, before: dict[str, bytes], inline_bytes: int) -> None:
    """The old name holds everything again, and the failure is told."""
    _until(lambda: os.path.lexists(old) and contents(old) == before)
    assert not _left_over(*vault.branches.values())


def test_a_target_that_fills_up(place: Storage, inline_bytes: int) -> None:
    with serve(place, inline_bytes=inline_bytes) as vault, vault.watched():
        if not inline_bytes:
            vault.expect("cannot be moved: No space left")
        old, new = vault.path / "alpha/tree", vault.path / "tiny/tree"
        before = _tree(old)
        with _moved_and_held(vault, old, new, "staging") as answers:
            room = os.statvfs(vault.backing("tiny"))
            with open(vault.backing("tiny") / "filler", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 100_000)
        assert answers == ["ENOSPC" if inline_bytes else None]
        _stayed(vault, old, before, inline_bytes)
        assert [*map(str, os.listdir(vault.backing("tiny")))] == ["filler"]
        assert _failed(vault) == ([] if inline_bytes else [28])


def _copied_to_read_only(vault: Vault, inline_bytes: int) -> dict[str, bytes]:
    """The target turns read-only before the commit, so the copy cannot be removed; what was to be moved."""
    old, new = vault.path / "alpha/tree", vault.path / "gamma/tree"
    before = _tree(old)
    with _moved_and_held(vault, old, new, "staged") as answers:
        mounted.run("mount", "-o", "remount,ro", str(vault.backing("gamma")))
    assert answers == ["EROFS" if inline_bytes else None]
    _until(lambda: os.path.lexists(old) and contents(old) == before)
    _until(lambda: not new.exists())
    assert any("a copy that is not needed cannot be removed" in w for w in vault.new_warnings())
    assert len(_left_over(vault.backing("gamma"))) == 1
    return before


def test_a_target_that_turns_read_only(place: Storage, inline_bytes: int) -> None:
    with serve(place, inline_bytes=inline_bytes) as vault, vault.watched():
        _copied_to_read_only(vault, inline_bytes)
        mounted.run("mount", "-o", "remount,rw", str(vault.backing("gamma")))
        _until(lambda: not _left_over(*vault.branches.values()))
        failures = [] if inline_bytes else [30]
        _until(lambda: [one.error for one in _counting(vault)] == failures)


def test_a_target_that_is_read_only_until_the_next_start(
    place: Storage, inline_bytes: int, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with serve(place, inline_bytes=inline_bytes, state=state) as vault:
        before = _copied_to_read_only(vault, inline_bytes)
    mounted.run("mount", "-o", "remount,rw", str(place.branch("gamma")))
    with serve(place, inline_bytes=inline_bytes, state=state) as vault, vault.watched():
        assert not _left_over(*vault.branches.values()), "removed before the vault is shown"
        assert contents(vault.path / "alpha/tree") == before
        failures = [] if inline_bytes else [30]
        assert [one.error for one in _counting(vault)] == failures, "nothing else is remembered"


def test_a_source_that_goes_behind_the_vault(place: Storage, inline_bytes: int) -> None:
    with serve(place, inline_bytes=inline_bytes) as vault, vault.watched():
        if not inline_bytes:
            vault.expect("cannot be moved: No such file")
        old, new = vault.path / "alpha/file", vault.path / "gamma/file"
        old.write_bytes(b"content" * 1000)
        new.write_bytes(b"what was there")
        with _moved_and_held(vault, old, new, "staging") as answers:
            (vault.backing("alpha") / "file").unlink()
        assert answers == ["ENOENT" if inline_bytes else None]
        _until(lambda: not _left_over(*vault.branches.values()))
        _until(lambda: outcome(new.read_bytes) == b"what was there")


def test_a_tree_that_changes_behind_the_vault(place: Storage, inline_bytes: int) -> None:
    """While it is retired: what has changed is kept, and so is the copy that was made before."""
    with serve(place, inline_bytes=inline_bytes) as vault, vault.watched():
        vault.expect("the old version is kept")
        old, new = vault.path / "alpha/tree", vault.path / "gamma/tree"
        before = _tree(old)
        with _moved_and_held(vault, old, new, "retiring"):
            (vault.backing("alpha") / "tree/a/0").write_bytes(b"changed late")
        _until(lambda: os.path.lexists(old))
        assert contents(new) == before
        assert contents(old)["a/0"] == b"changed late"
        assert not _left_over(*vault.branches.values())


@pytest.mark.needs_rclone
@pytest.mark.parametrize("direction", ["to the drive", "from the drive"])
def test_a_drive_that_dies(
    place: Storage, tmp_path: Path, inline_bytes: int, direction: str
) -> None:
    with mounted.rclone(tmp_path / "behind", tmp_path / "drive") as drive:
        branches = {"alpha": place.branch("alpha"), "remote": drive.path}
        with serve(place, branches, inline_bytes=inline_bytes) as vault:
            names = ("alpha", "remote") if direction == "to the drive" else ("remote", "alpha")
            old, new = (vault.path / name / "file" for name in names)
            content = os.urandom(3_000_000)
            old.write_bytes(content)
            with _moved_and_held(vault, old, new, "staging") as answers:
                drive.kill()
            assert answers in (
                [["ENOTCONN"], ["ECONNABORTED"], ["EIO"]] if inline_bytes else [[None]]
            ), "the program is told"
            if not inline_bytes:
                _until(lambda: len(_failed(vault)) == 1)
            if direction == "to the drive":
                _until(lambda: outcome(old.read_bytes) == content)
                assert not _left_over(place.branch("alpha"))
            else:
                assert (tmp_path / "behind/file").read_bytes() == content
                _until(lambda: not _left_over(place.branch("alpha")))
                assert not (place.branch("alpha") / "file").exists()
            _until(lambda: "is dead" in vault.log.read_text())
            vault.new_warnings()  # the drive's death and the failed move, in an order of their own


class _KilledError(Exception):
    """As planned."""


def test_killed_after_a_write_to_the_copy(place: Storage, tmp_path: Path) -> None:
    """The old file is no second version: it is what was copied, and the copy has been written to since."""
    state = tmp_path / "state"
    with suppress(_KilledError), serve(place, inline_bytes=0, state=state) as vault:
        old, new = vault.path / "alpha/file", vault.path / "gamma/file"
        old.write_bytes(b"text")
        file = os.open(old, os.O_WRONLY | os.O_APPEND)
        with vault.held_at("retiring"):
            rename(old, new)
            _until(lambda: vault.has_reached("retiring"))
            os.write(file, b" and more")
            os.kill(vault.pid, signal.SIGKILL)
        with suppress(OSError):
            os.close(file)
        raise _KilledError
    assert (place.branch("alpha") / "file").read_bytes() == b"text"
    with serve(place, inline_bytes=0, state=state), suppress(FileNotFoundError):
        _until(lambda: not (place.branch("alpha") / "file").exists())
    assert (place.branch("gamma") / "file").read_bytes() == b"text and more"


SLOW = "2M"  # bytes a second, from or to a drive: time to strike while a file is copied


def _half_way(folder: Path) -> None:
    """Wait until a part of a copy lies there."""

    def sizes() -> list[int]:
        found = []
        for name in _left_over(folder):
            with suppress(FileNotFoundError):
                found.append((folder / name).stat().st_size)
        return found

    _until(lambda: any(sizes()))


@contextmanager
def _moved_meanwhile(old: Path, new: Path) -> Iterator[list[object]]:
    """A move that goes on within the block; its outcome is in the list after it."""
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(outcome(lambda: rename(old, new))))
    thread.start()
    yield answers
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the rename does not return"


@pytest.mark.needs_rclone
def test_a_target_that_fills_up_half_way(place: Storage, tmp_path: Path, inline_bytes: int) -> None:
    with (
        mounted.rclone(tmp_path / "behind", tmp_path / "drive", bandwidth=SLOW) as drive,
        mounted.tmpfs(tmp_path / "small", size="8m"),
    ):
        content = os.urandom(4_000_000)
        (drive.behind / "file").write_bytes(content)
        branches = {"remote": drive.path, "small": tmp_path / "small"}
        with serve(place, branches, inline_bytes=inline_bytes) as vault:
            old, new = vault.path / "remote/file", vault.path / "small/file"
            with _moved_meanwhile(old, new) as answers:
                _half_way(tmp_path / "small")
                with suppress(OSError), open(tmp_path / "small/filler", "wb", 0) as filler:
                    while filler.write(b"x" * 4096):  # until there is no room
                        pass
            assert answers == ["ENOSPC" if inline_bytes else None]
            _until(lambda: os.listdir(tmp_path / "small") == ["filler"])
            _until(lambda: os.path.lexists(old))
            assert (drive.behind / "file").read_bytes() == content
            vault.new_warnings()


@pytest.mark.needs_rclone
@pytest.mark.parametrize("direction", ["to the drive", "from the drive"])
def test_a_drive_that_dies_half_way(
    place: Storage, tmp_path: Path, inline_bytes: int, direction: str
) -> None:
    alpha = place.branch("alpha")
    with mounted.rclone(tmp_path / "behind", tmp_path / "drive", bandwidth=SLOW) as drive:
        content = os.urandom(4_000_000)
        names = ("alpha", "remote") if direction == "to the drive" else ("remote", "alpha")
        tops = {"alpha": alpha, "remote": drive.behind}
        (tops[names[0]] / "file").write_bytes(content)
        branches = {"alpha": alpha, "remote": drive.path}
        with serve(place, branches, inline_bytes=inline_bytes) as vault:
            old, new = (vault.path / name / "file" for name in names)
            with _moved_meanwhile(old, new) as answers:
                _half_way(tops[names[1]])
                drive.kill()
            assert answers in (
                [["ENOTCONN"], ["ECONNABORTED"], ["EIO"]] if inline_bytes else [[None]]
            ), "the program is told"
            if not inline_bytes:
                _until(lambda: len(_failed(vault)) == 1)
            assert (tops[names[0]] / "file").read_bytes() == content
            if direction == "from the drive":
                _until(lambda: not _left_over(alpha))
                assert not (alpha / "file").exists()
            _until(lambda: "is dead" in vault.log.read_text())
            vault.new_warnings()
    # The drive's server may have got a part: under the reserved name alone.
    assert not (tops[names[1]] / "file").exists()
