"""Every reason to refuse a move: the errno of rename(2), and nothing touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import (
    EACCES,
    EEXIST,
    EISDIR,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    EROFS,
)
from pathlib import Path

import pytest

from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.disks import Seen, picture
from tests.support.failpoints import steps
from tests.support.moving import Disks, move
from tests.support.storage import bind, tmpfs

USER = Caller(1234, 1234)
CHANGES = frozenset(
    {"mkdir", "mknod", "symlink", "rename", "renameat2", "unlink", "fsync", "chmod"}
)


def _refused(
    disks: Disks,
    errno: int,
    *,
    flags: int = 0,
    caller: Caller = AGENT,
    changes: frozenset[str] = CHANGES,
) -> None:
    before = disks.pictures()
    done: list[str] = []
    with steps(done.append), pytest.raises(OSError) as refusal:  # noqa: PT011 - the errno counts
        move(disks.source / "here", disks.target / "there", flags, caller=caller)
    assert refusal.value.errno == errno
    assert disks.pictures() == before
    assert changes.isdisjoint(done), "it was begun before it was refused"


def _file(path: Path) -> None:
    path.write_bytes(b"x")


def _folder(path: Path) -> None:
    path.mkdir()


def _full(path: Path) -> None:
    path.mkdir()
    (path / "entry").touch()


def _link(path: Path) -> None:
    path.symlink_to("nowhere")


def _absent(path: Path) -> None:
    pass


Make = Callable[[Path], None]


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE])
@pytest.mark.parametrize("there", [_file, _folder, _full, _link, _absent])
@pytest.mark.parametrize("here", [_file, _folder, _full, _link, _absent])
def test_as_a_rename_within_one_file_system(
    disks: Disks, tmp_path: Path, here: Make, there: Make, flags: int
) -> None:
    """Every pair of kinds, beside the kernel's own rename: the same errno or the same result."""
    native = Disks(tmp_path / "native source", tmp_path / "native target")
    outcomes = []
    for both in (disks, native):
        for folder in (both.source, both.target):
            folder.mkdir(exist_ok=True)
        here(both.source / "here")
        there(both.target / "there")
        before = both.pictures()
        try:
            move(both.source / "here", both.target / "there", flags)
            outcomes.append(0)
        except OSError as error:
            outcomes.append(error.errno or -1)
        if outcomes[-1]:
            assert both.pictures() == before
    shown = [[_kinds(side) for side in both.pictures()] for both in (disks, native)]
    assert outcomes[0] == outcomes[1]
    assert shown[0] == shown[1]


def _kinds(side: dict[str, Seen]) -> dict[str, tuple[int, bytes]]:
    return {name: (seen.format, seen.content) for name, seen in side.items()}


@pytest.mark.parametrize(
    ("here", "there", "flags", "errno"),
    [
        (_absent, _absent, 0, ENOENT),
        (_absent, _file, RENAME_EXCHANGE, ENOENT),
        (_file, _absent, RENAME_EXCHANGE, ENOENT),
        (_file, _file, RENAME_NOREPLACE, EEXIST),
        (_file, _link, RENAME_NOREPLACE, EEXIST),
        (_file, _folder, 0, EISDIR),
        (_folder, _file, 0, ENOTDIR),
        (_folder, _link, 0, ENOTDIR),
        (_folder, _full, 0, ENOTEMPTY),
    ],
)
def test_what_is_at_the_ends(disks: Disks, here: Make, there: Make, flags: int, errno: int) -> None:
    here(disks.source / "here")
    there(disks.target / "there")
    _refused(disks, errno, flags=flags)


@pytest.mark.needs_root
def test_one_file_through_two_branches(tmp_path: Path) -> None:
    """Success, and nothing done: to copy it over itself would lose it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(b"x")
    os.link(tmp_path / "a/file", tmp_path / "a/link")
    (tmp_path / "a/folder").mkdir()
    with bind(tmp_path / "a", tmp_path / "b"):
        before = picture(tmp_path / "a")
        for source, target in (("file", "file"), ("file", "link"), ("folder", "folder")):
            for flags in (0, RENAME_EXCHANGE):
                outcome = move(tmp_path / "a" / source, tmp_path / "b" / target, flags)
                assert outcome.strategy == "none"
        with pytest.raises(FileExistsError):
            move(tmp_path / "a/file", tmp_path / "b/file", RENAME_NOREPLACE)
        assert picture(tmp_path / "a") == before


@pytest.mark.needs_root
def test_a_file_to_another_name_of_its_folder_through_another_branch(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(b"x")
    with bind(tmp_path / "a", tmp_path / "b"):
        assert move(tmp_path / "a/file", tmp_path / "b/new").strategy == "handle-rename"
        assert os.listdir(tmp_path / "a") == ["new"]


def test_on_one_file_system_it_is_a_rename(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    inode = os.stat(tmp_path / "file").st_ino
    outcome = move(tmp_path / "file", tmp_path / "new")
    assert (outcome.strategy, outcome.copied) == ("rename", ())
    assert os.stat(tmp_path / "new").st_ino == inode


@pytest.mark.needs_root
@pytest.mark.parametrize("below", ["tree", "tree/sub", "tree/sub/deep"])
@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE])
def test_into_itself_through_another_branch(tmp_path: Path, below: str, flags: int) -> None:
    (tmp_path / "a/tree/sub/deep").mkdir(parents=True)
    (tmp_path / "a/tree/file").write_bytes(b"x")
    with bind(tmp_path / "a", tmp_path / "b"):
        before = _without_times(tmp_path / "a")
        with pytest.raises(OSError, match="Invalid argument"):
            move(tmp_path / "a/tree", tmp_path / "b" / below / "new", flags)
        assert _without_times(tmp_path / "a") == before


@pytest.mark.needs_root
def test_exchange_with_a_folder_above_through_another_branch(tmp_path: Path) -> None:
    (tmp_path / "a/tree/sub").mkdir(parents=True)
    (tmp_path / "a/tree/sub/file").write_bytes(b"x")
    with bind(tmp_path / "a", tmp_path / "b"):
        before = _without_times(tmp_path / "a")
        with pytest.raises(OSError, match="Invalid argument"):
            move(tmp_path / "a/tree/sub/file", tmp_path / "b/tree", RENAME_EXCHANGE)
        assert _without_times(tmp_path / "a") == before


def _without_times(top: Path) -> dict[str, object]:
    return {name: seen._replace(mtime_ns=0) for name, seen in picture(top).items()}


@pytest.mark.needs_root
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_side_that_is_read_only(tmp_path: Path, side: str) -> None:
    with tmpfs(tmp_path / "a") as a, tmpfs(tmp_path / "b") as b:
        (a / "here").write_bytes(b"x")
        (b / "folder").mkdir()
        folder = a if side == "source" else b
        with bind(folder, tmp_path / "ro", read_only=True) as ro:
            _refused(Disks(ro, b) if side == "source" else Disks(a, ro), EROFS)


@pytest.mark.needs_root
def test_no_room_for_a_file(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "a") as a, tmpfs(tmp_path / "b", size="1m") as b:
        (a / "here").write_bytes(bytes(2 << 20))
        # A rename needs no room, so that is tried before.
        _refused(Disks(a, b), ENOSPC, changes=CHANGES - {"rename"})
        with open(a / "here", "wb") as sparse:
            sparse.truncate(1 << 30)
        assert not move(a / "here", b / "there").kept  # nothing but a hole


@pytest.mark.needs_root
def test_no_room_for_a_tree(tmp_path: Path) -> None:
    """All that is below it counts, hard links once and holes not at all."""
    with tmpfs(tmp_path / "a") as a, tmpfs(tmp_path / "b", size="1m") as b:
        (a / "here/below").mkdir(parents=True)
        for number in range(5):
            (a / f"here/below/{number}").write_bytes(bytes(300_000))
        _refused(Disks(a, b), ENOSPC, changes=CHANGES - {"rename"})
        for number in range(1, 5):
            os.unlink(a / f"here/below/{number}")
            os.link(a / "here/below/0", a / f"here/below/{number}")
        assert not move(a / "here", b / "there").kept


@pytest.mark.needs_root
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("mode", [0o755, 0o744, 0o777 & ~0o001, 0o777 & ~0o002])
def test_a_folder_that_the_caller_may_not_change(fast_disks: Disks, side: str, mode: int) -> None:
    (fast_disks.source / "here").write_bytes(b"x")
    for name, folder in (("source", fast_disks.source), ("target", fast_disks.target)):
        os.chmod(folder, mode if name == side else 0o777)
    _refused(fast_disks, EACCES, caller=USER)


@pytest.mark.needs_root
def test_rights_by_group(fast_disks: Disks) -> None:
    for folder in (fast_disks.source, fast_disks.target):
        os.chown(folder, 0, 777)
        os.chmod(folder, 0o770)
    (fast_disks.source / "here").write_bytes(b"x")
    _refused(fast_disks, EACCES, caller=USER)
    member = Caller(1234, 1234, (5, 777))
    assert not move(fast_disks.source / "here", fast_disks.target / "there", caller=member).kept


@pytest.mark.needs_root
@pytest.mark.parametrize("owns", ["nothing", "the file", "the folder"])
def test_a_sticky_source(fast_disks: Disks, owns: str) -> None:
    """As in /tmp: only who owns the file or the folder takes it away."""
    (fast_disks.source / "here").write_bytes(b"x")
    os.chown(fast_disks.source / "here", 1234 if owns == "the file" else 4321, 0)
    os.chown(fast_disks.source, 1234 if owns == "the folder" else 4321, 0)
    os.chmod(fast_disks.source, 0o1777)
    os.chmod(fast_disks.target, 0o777)
    if owns == "nothing":
        _refused(fast_disks, EPERM, caller=USER)
    else:
        assert not move(fast_disks.source / "here", fast_disks.target / "there", caller=USER).kept


@pytest.mark.needs_root
@pytest.mark.parametrize("flags", [0, RENAME_EXCHANGE])
@pytest.mark.parametrize("owns", ["nothing", "the file", "the folder"])
def test_a_sticky_target(fast_disks: Disks, owns: str, flags: int) -> None:
    (fast_disks.source / "here").write_bytes(b"x")
    (fast_disks.target / "there").write_bytes(b"theirs")
    os.chown(fast_disks.target / "there", 1234 if owns == "the file" else 4321, 0)
    os.chown(fast_disks.target, 1234 if owns == "the folder" else 4321, 0)
    os.chmod(fast_disks.source, 0o777)
    os.chmod(fast_disks.target, 0o1777)
    if owns == "nothing":
        _refused(fast_disks, EPERM, caller=USER, flags=flags)
        assert not move(fast_disks.source / "here", fast_disks.target / "new", caller=USER).kept
    else:
        moved = move(fast_disks.source / "here", fast_disks.target / "there", flags, caller=USER)
        assert not moved.kept


@pytest.mark.needs_root
@pytest.mark.parametrize("flags", [0, RENAME_EXCHANGE])
@pytest.mark.parametrize("same", [False, True])
def test_a_folder_that_is_not_the_callers(fast_disks: Disks, same: bool, flags: int) -> None:
    """Its entry ".." would change, which is writing into it: so says rename(2)."""
    disks = fast_disks
    if same:
        disks = Disks(fast_disks.source / "a", fast_disks.source / "b")
    for folder in (disks.source, disks.target):
        folder.mkdir(exist_ok=True)
        os.chmod(folder, 0o777)
    (disks.source / "here").mkdir(0o755)
    (disks.target / "there").mkdir(0o755)
    os.chown(disks.target / "there", USER.uid, USER.gid)
    _refused(disks, EACCES, caller=USER, flags=flags)
    if flags:  # and the other way round
        os.chown(disks.source / "here", USER.uid, USER.gid)
        os.chown(disks.target / "there", 0, 0)
        _refused(disks, EACCES, caller=USER, flags=flags)
        os.chown(disks.target / "there", USER.uid, USER.gid)
    os.chown(disks.source / "here", USER.uid, USER.gid)
    assert not move(disks.source / "here", disks.target / "there", flags, caller=USER).kept


@pytest.mark.needs_root
def test_the_move_leaves_the_thread_with_the_agents_rights(fast_disks: Disks) -> None:
    (fast_disks.source / "here").write_bytes(b"x")
    (fast_disks.target / "there").write_bytes(b"x")  # in a sticky folder
    _refused(fast_disks, EPERM, caller=USER)
    (fast_disks.source / "mine").touch()
    assert os.stat(fast_disks.source / "mine").st_uid == 0
    os.chown(fast_disks.source / "here", USER.uid, USER.gid)
    move(fast_disks.source / "here", fast_disks.target / "new", caller=USER)
    (fast_disks.source / "mine too").touch()
    assert os.stat(fast_disks.source / "mine too").st_uid == 0
