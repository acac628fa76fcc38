"""A source that changes while it is moved: what the user has written last is there in the end."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from errno import EBUSY, EIO
from pathlib import Path

import pytest

from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from session_agent.moves.names import RESERVED_PREFIX
from tests.support.disks import contents, picture
from tests.support.failpoints import at, steps
from tests.support.moving import Disks, move

PREFIX = os.fsdecode(RESERVED_PREFIX)
SIZE = 24 << 20  # three calls to copy it


# While it is staged


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_file_that_changes_while_staged(disks: Disks, attempts: int) -> None:
    """It is staged anew, three times at most."""
    (disks.source / "here").write_bytes(b"0")
    times = 0

    def change(called: str) -> None:
        nonlocal times
        if called == "fsync" and times < attempts:  # the stage is complete by then
            times += 1
            (disks.source / "here").write_bytes(b"%d" % times)

    with steps(change), suppress(OSError):
        move(disks.source / "here", disks.target / "there")
    assert times == attempts
    assert disks.reserved == []
    if attempts < 3:
        assert contents(disks.target) == {"there": b"%d" % attempts}
        assert os.listdir(disks.source) == []
    else:
        assert os.listdir(disks.target) == []
        assert contents(disks.source) == {"here": b"3"}


def test_a_file_that_does_not_stop_changing(disks: Disks) -> None:
    """For as long as another thread has it."""
    (disks.source / "here").write_bytes(bytes(SIZE))
    with open(disks.source / "here", "r+b", buffering=0) as file:

        def change(called: str) -> None:
            if called in ("copy_file_range", "sendfile", "pread"):
                os.pwrite(file.fileno(), os.urandom(1), 0)

        with steps(change), pytest.raises(OSError, match="busy") as refusal:
            move(disks.source / "here", disks.target / "there")
    assert refusal.value.errno == EBUSY
    assert os.listdir(disks.target) == []
    assert os.stat(disks.source / "here").st_size == SIZE


@pytest.mark.parametrize("new_size", [SIZE // 2, 100, 0, 2 * SIZE])
def test_a_file_that_changes_its_size_while_copied(disks: Disks, new_size: int) -> None:
    (disks.source / "here").write_bytes(b"x" * SIZE)
    changed = False

    def change(called: str) -> None:
        nonlocal changed
        if called in ("copy_file_range", "sendfile", "pread") and not changed:
            changed = True
            os.truncate(disks.source / "here", new_size)

    with steps(change):
        outcome = move(disks.source / "here", disks.target / "there")
    assert changed
    assert not outcome.kept
    assert (disks.target / "there").read_bytes() == (b"x" * SIZE)[:new_size].ljust(new_size, b"\0")
    assert disks.reserved == []


def test_a_tree_that_gets_an_entry_while_staged(disks: Disks) -> None:
    (disks.source / "here/below").mkdir(parents=True)
    (disks.source / "here/below/file").write_bytes(b"x")

    def change() -> None:
        (disks.source / "here/below/late").write_bytes(b"late")

    with steps(at("syncfs", change)):
        outcome = move(disks.source / "here", disks.target / "there")
    assert not outcome.kept
    assert contents(disks.target / "there") == {"below/file": b"x", "below/late": b"late"}
    assert disks.pictures()[0] == {}
    assert disks.reserved == []


def test_a_source_that_vanishes_while_staged(disks: Disks) -> None:
    (disks.source / "here").write_bytes(b"x")
    with (
        steps(at("fsync", (disks.source / "here").unlink)),
        pytest.raises(FileNotFoundError),
    ):
        move(disks.source / "here", disks.target / "there")
    assert os.listdir(disks.target) == []


def test_a_fifo_that_takes_the_files_place(disks: Disks) -> None:
    """Opening it would wait for a writer for ever."""
    (disks.source / "here").write_bytes(b"x")

    def change() -> None:
        (disks.source / "here").unlink()
        os.mkfifo(disks.source / "here")

    with steps(at("open", change)):  # it has been looked at by then
        outcome = move(disks.source / "here", disks.target / "there")
    assert not outcome.kept
    assert disks.reserved == []
    assert stat.S_ISFIFO(os.lstat(disks.target / "there").st_mode)


def test_the_target_that_appears_while_staged_is_not_replaced(disks: Disks) -> None:
    """RENAME_NOREPLACE looks at the commit, not only before."""
    (disks.source / "here").write_bytes(b"x")

    def change() -> None:
        (disks.target / "there").write_bytes(b"another's")

    with steps(at("fsync", change)), pytest.raises(FileExistsError):
        move(disks.source / "here", disks.target / "there", 1)
    assert contents(disks.target) == {"there": b"another's"}
    assert contents(disks.source) == {"here": b"x"}


def test_an_empty_folder_at_the_target_that_is_filled_while_staged(disks: Disks) -> None:
    (disks.source / "here").mkdir()
    (disks.target / "there").mkdir()
    with (
        steps(at("syncfs", (disks.target / "there/new").touch)),
        pytest.raises(OSError, match="not empty"),
    ):
        move(disks.source / "here", disks.target / "there")
    assert sorted(picture(disks.target)) == ["", "there", "there/new"]
    assert sorted(picture(disks.source)) == ["", "here"]


# Between commit and retire


def _append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b" and more")


def _overwrite(path: Path) -> None:
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had happened


def _replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"saved by an editor")
    path.with_name("new").rename(path)


@pytest.mark.parametrize("change", [_append, _overwrite, _replace])
def test_a_file_changed_after_the_commit(
    disks: Disks, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    (disks.source / "here").write_bytes(b"content")
    caplog.set_level("WARNING")
    outcome = move(
        disks.source / "here",
        disks.target / "there",
        on_commit=lambda: change(disks.source / "here"),
    )
    assert outcome.kept
    assert contents(disks.target) == {"there": b"content"}
    assert list(contents(disks.source)) == ["here"]
    assert contents(disks.source)["here"] != b"content"
    assert "kept" in caplog.text
    assert disks.reserved == []


def test_a_file_removed_after_the_commit(disks: Disks) -> None:
    (disks.source / "here").write_bytes(b"content")
    outcome = move(
        disks.source / "here", disks.target / "there", on_commit=(disks.source / "here").unlink
    )
    assert contents(disks.target) == {"there": b"content"}
    assert os.listdir(disks.source) == []
    assert outcome.strategy == "copy"


TREE = {"note": b"note", "below/one": b"one", "below/deep/two": b"two"}


def _make_tree(top: Path) -> None:
    for name, content in TREE.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)


def _new_file(top: Path) -> None:
    (top / "below/deep/new").write_bytes(b"new")


def _new_folder(top: Path) -> None:
    (top / "below/folder").mkdir()
    (top / "below/folder/new").write_bytes(b"new")


def _changed_file(top: Path) -> None:
    _append(top / "below/one")


def _file_for_folder(top: Path) -> None:
    for name in ("two", ""):
        path = top / "below/deep" / name
        path.unlink() if name else path.rmdir()
    (top / "below/deep").write_bytes(b"new")


def _removed(top: Path) -> None:
    (top / "below/one").unlink()


TREE_CHANGES: list[tuple[Callable[[Path], None], dict[str, bytes]]] = [
    (_new_file, {"below/deep/new": b"new"}),
    (_new_folder, {"below/folder/new": b"new"}),
    (_changed_file, {"below/one": b"one and more"}),
    (_file_for_folder, {"below/deep": b"new"}),
    (_removed, {}),
]


@pytest.mark.parametrize(("change", "new"), TREE_CHANGES)
def test_a_tree_changed_after_the_commit(
    disks: Disks, change: Callable[[Path], None], new: dict[str, bytes]
) -> None:
    _make_tree(disks.source / "here")
    outcome = move(
        disks.source / "here",
        disks.target / "there",
        on_commit=lambda: change(disks.source / "here"),
    )
    assert outcome.kept
    assert contents(disks.target / "there") == TREE
    assert new.items() <= contents(disks.source / "here").items()
    assert os.listdir(disks.source) == ["here"]
    assert disks.reserved == []


@pytest.mark.parametrize(("change", "new"), TREE_CHANGES[:4])
def test_a_tree_changed_while_it_is_retired(
    disks: Disks, change: Callable[[Path], None], new: dict[str, bytes]
) -> None:
    """By somebody who has it open: it lies under a reserved name already, and has to come back from there."""
    _make_tree(disks.source / "here")

    def in_grave() -> None:
        (grave,) = (path for path in disks.source.iterdir() if path.name.startswith(PREFIX))
        change(grave)

    with steps(
        at("scandir", in_grave, 7)
    ):  # three folders were listed to measure them, and to copy
        outcome = move(disks.source / "here", disks.target / "there")
    assert outcome.kept
    assert contents(disks.target / "there") == TREE
    assert contents(disks.source / "here") == new
    assert disks.reserved == []


def test_a_file_that_comes_while_its_folder_is_removed(disks: Disks) -> None:
    """After the folder was listed, before it goes."""
    _make_tree(disks.source / "here")

    def in_grave() -> None:
        (grave,) = (path for path in disks.source.iterdir() if path.name.startswith(PREFIX))
        (grave / "late").write_bytes(b"late")

    with steps(at("rmdir", in_grave, 3)):  # deep, below, and then the tree itself
        outcome = move(disks.source / "here", disks.target / "there")
    assert outcome.kept
    assert contents(disks.source) == {"here/late": b"late"}
    assert contents(disks.target / "there") == TREE
    assert disks.reserved == []


@pytest.mark.parametrize("name", ["here", "x" * 255])
def test_what_comes_back_finds_its_name_taken(disks: Disks, name: str) -> None:
    _make_tree(disks.source / name)

    def in_grave() -> None:
        (grave,) = (path for path in disks.source.iterdir() if path.name.startswith(PREFIX))
        _new_file(grave)
        (disks.source / name).write_bytes(b"somebody's")

    with steps(at("scandir", in_grave, 7)):
        outcome = move(disks.source / name, disks.target / "there")
    assert outcome.kept
    shown = contents(disks.source)
    assert shown.pop(name) == b"somebody's"
    assert shown == {f"{name[:240]} (kept 1)/below/deep/new": b"new"}
    assert disks.reserved == []


def _fails() -> None:
    raise OSError(EIO, os.strerror(EIO))


@pytest.mark.parametrize("flags", [0, RENAME_EXCHANGE])
@pytest.mark.parametrize("make", [_make_tree, lambda path: path.write_bytes(b"content")])
def test_handles_that_cannot_change_over(
    disks: Disks, make: Callable[[Path], None], flags: int
) -> None:
    """They still lead to the old version, so it stays."""
    make(disks.source / "here")
    if flags:
        (disks.target / "there").write_bytes(b"old")
    before = contents(disks.source / "here")
    outcome = move(disks.source / "here", disks.target / "there", flags, on_commit=_fails)
    assert outcome.kept
    assert contents(disks.target / "there") == before
    assert disks.reserved == []
    if not flags:
        assert contents(disks.source / "here") == before


def test_on_commit_is_called_between_commit_and_retire(disks: Disks) -> None:
    (disks.source / "here").write_bytes(b"new")
    (disks.target / "there").write_bytes(b"old")
    seen: list[dict[str, bytes]] = []

    def look() -> None:
        seen.extend((contents(disks.source), contents(disks.target)))

    move(disks.source / "here", disks.target / "there", on_commit=look)
    assert seen == [{"here": b"new"}, {"there": b"new"}]


@pytest.mark.parametrize("side", ["source", "target"])
def test_an_exchanged_file_changed_after_the_commit(disks: Disks, side: str) -> None:
    """By somebody who still has the old version open: it stays beside the new one."""
    (disks.source / "here").write_bytes(b"one")
    (disks.target / "there").write_bytes(b"two")
    path = disks.source / "here" if side == "source" else disks.target / "there"
    with open(path, "ab", buffering=0) as old:

        def write() -> None:
            old.write(b" more")

        outcome = move(
            disks.source / "here", disks.target / "there", RENAME_EXCHANGE, on_commit=write
        )
    assert outcome.kept
    assert (disks.source / "here").read_bytes() == b"two"
    assert (disks.target / "there").read_bytes() == b"one"
    kept = {name: data for name, data in contents(path.parent).items() if name != path.name}
    assert list(kept.values()) == [b"one more" if side == "source" else b"two more"]
    assert [name.split(".exchanged-")[0] for name in kept] == [path.name]
    assert len(os.listdir(disks.source)) + len(os.listdir(disks.target)) == 3


# Folders whose times change by themselves, as rclone's do


def _touch(folder: Path) -> None:
    os.utime(folder, ns=(1, 1))


def _chmod(folder: Path) -> None:
    folder.chmod(0o711)


def _rename_entry(folder: Path) -> None:
    (folder / "one").rename(folder / "uno")


def _swap(folder: Path) -> None:
    """The same names, but another file."""
    (folder / "one").unlink()
    (folder / "one").write_bytes(b"one")


@pytest.mark.parametrize(
    ("change", "kept"), [(_touch, False), (_chmod, True), (_rename_entry, True), (_swap, True)]
)
def test_a_folder_is_the_same_by_its_entries_not_its_times(
    disks: Disks, change: Callable[[Path], None], kept: bool
) -> None:
    _make_tree(disks.source / "here")
    outcome = move(
        disks.source / "here",
        disks.target / "there",
        on_commit=lambda: change(disks.source / "here/below"),
    )
    assert outcome.kept == kept
    assert contents(disks.target / "there") == TREE
    assert os.listdir(disks.source) == (["here"] if kept else [])
