"""The system calls of operations, on real files; what they open is closed when they fail."""

from __future__ import annotations

import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import EACCES, EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, ESTALE
from pathlib import Path

import pytest

from session_agent.fsutil.at import Opened
from session_agent.fsutil.credentials import AGENT, Caller, acting_as
from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from session_agent.overlay import calls
from session_agent.overlay.branches import close_result
from session_agent.overlay.calls import Changes
from tests.support.failpoints import failing
from tests.support.storage import tmpfs

USER = Caller(1234, 1234)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """An O_PATH descriptor of tmp_path; nothing else is open in the end but what the test closes."""
    before = sorted(os.listdir("/proc/self/fd"))
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)
    assert sorted(os.listdir("/proc/self/fd")) == before


def _errno(function: object, *arguments: object) -> int:
    assert callable(function)
    try:
        function(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


# What is made


def test_what_is_made_is_answered(tmp_path: Path, folder: int) -> None:
    os.umask(umask := os.umask(0))
    made = {
        b"folder": calls.make_folder(folder, b"folder", 0o1777),
        b"pipe": calls.make_node(folder, b"pipe", stat.S_IFIFO | 0o604, 0),
        b"link": calls.make_symlink(folder, b"link", b"\xff/../x"),
    }
    made[b"twin"] = calls.make_link(folder, b"link", folder, b"twin")
    for name, status in made.items():
        assert os.path.samestat(status, os.lstat(tmp_path / os.fsdecode(name)))
    assert stat.S_IMODE(made[b"pipe"].st_mode) == 0o604 & ~umask
    assert calls.read_link(folder, b"twin") == b"\xff/../x"
    assert made[b"twin"].st_nlink == 2
    for function, arguments in (
        (calls.make_folder, (0o700,)),
        (calls.make_node, (stat.S_IFREG, 0)),
        (calls.make_symlink, (b"x",)),
    ):
        assert _errno(function, folder, b"folder", *arguments) == EEXIST


def test_a_file_that_lost_its_name(tmp_path: Path, folder: int) -> None:
    fd, status = calls.open_file(folder, b"file", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    assert stat.S_IMODE(status.st_mode) == 0o600
    os.write(fd, b"content")
    again = calls.open_again(fd, os.O_RDONLY)
    assert os.read(again.fd, 10) == b"content"
    os.close(again.fd)
    assert calls.make_link_again(fd, folder, b"twin").st_ino == status.st_ino
    for name in (b"file", b"twin"):
        os.close(calls.remove(folder, name, os.unlink).fd)
    assert _errno(calls.make_link_again, fd, folder, b"back") == ENOENT
    again = calls.open_again(fd, os.O_RDWR | os.O_TRUNC)
    assert again.status.st_nlink == 0
    assert os.fstat(fd).st_size == 0
    os.close(again.fd)
    os.close(fd)


def test_links_are_not_followed(tmp_path: Path, folder: int) -> None:
    (tmp_path / "aim").mkdir()
    (tmp_path / "link").symlink_to("aim")
    assert _errno(calls.open_file, folder, b"link", os.O_RDONLY) == ESTALE
    assert _errno(calls.remove, folder, b"link", os.rmdir) == ENOTDIR
    held = calls.reference(folder, b"link")
    assert stat.S_ISLNK(held.status.st_mode)
    assert calls.read_link(held.fd, b"") == b"aim"
    os.close(held.fd)


# What is removed and renamed


def test_what_is_removed_is_held(tmp_path: Path, folder: int) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "full/below").mkdir(parents=True)
    held = calls.remove(folder, b"file", os.unlink)
    assert held.status.st_size == 7
    assert os.fstat(held.fd).st_nlink == 0
    os.close(held.fd)
    assert _errno(calls.remove, folder, b"full", os.rmdir) == ENOTEMPTY
    assert _errno(calls.remove, folder, b"full", os.unlink) == EISDIR
    assert _errno(calls.remove, folder, b"file", os.unlink) == ENOENT


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE])
@pytest.mark.parametrize("there", [False, True])
def test_rename(tmp_path: Path, folder: int, flags: int, there: bool) -> None:
    (tmp_path / "a").write_bytes(b"a")
    if there:
        (tmp_path / "b").write_bytes(b"b")
    a = os.stat(tmp_path / "a")
    expected = {(RENAME_NOREPLACE, True): EEXIST, (RENAME_EXCHANGE, False): ENOENT}
    errno = expected.get((flags, there), 0)
    if errno:
        assert _errno(calls.rename, folder, b"a", folder, b"b", flags) == errno
        assert (tmp_path / "a").read_bytes() == b"a"
        return
    b = os.stat(tmp_path / "b") if there else None
    done = calls.rename(folder, b"a", folder, b"b", flags)
    assert done.moved.st_ino == a.st_ino
    assert (done.replaced is None) == (b is None)
    if done.replaced is not None and b is not None:
        assert done.replaced.status.st_ino == b.st_ino
        os.close(done.replaced.fd)
    assert (done.exchanged is not None) == (flags == RENAME_EXCHANGE)
    if done.exchanged is not None and b is not None:
        assert done.exchanged.st_ino == b.st_ino
    assert sorted(os.listdir(tmp_path)) == (["a", "b"] if flags == RENAME_EXCHANGE else ["b"])


@pytest.mark.parametrize("number", range(8))
def test_whatever_fails_closes_what_it_opened(tmp_path: Path, folder: int, number: int) -> None:
    """The descriptors are counted by the fixture."""
    steps: list[Callable[[], Opened | calls.Renamed]] = [
        lambda: calls.rename(folder, b"a", folder, b"b", RENAME_EXCHANGE),
        lambda: calls.remove(folder, b"b", os.unlink),
        lambda: calls.open_file(folder, b"a", os.O_RDWR),
        lambda: calls.open_listing(folder),
        lambda: calls.reference(folder, b"a"),
    ]
    for step in steps:
        for file in ("a", "b"):
            (tmp_path / file).touch()
        with failing(number, EACCES), suppress(PermissionError):
            close_result(step())  # it has fewer steps than that


# What is changed


def test_each_attribute_alone_and_all_together(tmp_path: Path, folder: int) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.utime(tmp_path / "file", ns=(11, 22))
    fd = os.open(tmp_path / "file", os.O_PATH)
    status = calls.change(fd, -1, Changes())
    assert (status.st_atime_ns, status.st_mtime_ns, status.st_size) == (11, 22, 7)
    status = calls.change(fd, -1, Changes(mode=0o640))
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, 22)
    status = calls.change(fd, -1, Changes(mtime_ns=33))
    assert (status.st_atime_ns, status.st_mtime_ns) == (11, 33)
    status = calls.change(fd, -1, Changes(size=100, mode=0o600, atime_ns=1, mtime_ns=2))
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (100, 0o600)
    assert (status.st_atime_ns, status.st_mtime_ns) == (1, 2)  # the size comes first
    writable = os.open(tmp_path / "file", os.O_WRONLY)
    os.unlink(tmp_path / "file")
    assert calls.change(fd, writable, Changes(size=3)).st_size == 3
    os.close(writable)
    os.close(fd)


@pytest.mark.needs_root
def test_owner_and_set_uid_together(tmp_path: Path, folder: int) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_PATH)
    status = calls.change(fd, -1, Changes(uid=1234, gid=4321, mode=0o6755))
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o6755)
    status = calls.change(fd, -1, Changes(gid=5))
    assert (status.st_uid, status.st_gid) == (1234, 5)
    os.close(fd)


@pytest.mark.needs_root
def test_who_may_write_but_does_not_own(tmp_path: Path, folder: int) -> None:
    """Such a one may set the times to the present, which FUSE gives as a number, and nothing else."""
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", ns=(11, 22))
    os.chmod(tmp_path / "file", 0o6777)
    fd = os.open(tmp_path / "file", os.O_PATH)
    now = time.time_ns()
    for changes in (
        Changes(mtime_ns=now - 10**12),
        Changes(atime_ns=33, mtime_ns=44),
        Changes(mode=0o777 | stat.S_ISVTX),
        Changes(mode=0o6666),
        Changes(uid=1234),
    ):
        with acting_as(USER), pytest.raises(PermissionError):
            calls.change(fd, -1, changes)
    os.chmod(tmp_path / "file", 0o755)
    for changes in (Changes(mtime_ns=now), Changes(mode=0o6755), Changes(mode=0o4755)):
        # It may not even write, or give set-uid bits to what is another's.
        with acting_as(USER):
            errno = _errno(calls.change, fd, -1, changes)
        assert errno or changes.mode is not None
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o755
    assert os.fstat(fd).st_mtime_ns == 22
    os.chmod(tmp_path / "file", 0o6777)
    with acting_as(USER):
        status = calls.change(fd, -1, Changes(atime_ns=now, mtime_ns=now))
        assert abs(status.st_mtime_ns - now) < 10**9
        assert abs(status.st_atime_ns - now) < 10**9
        status = calls.change(fd, -1, Changes(mode=0o777))  # as the kernel does before a write
        assert stat.S_IMODE(status.st_mode) == 0o777
    os.close(fd)


# What is written


def test_writes_at_an_offset_and_at_the_end(tmp_path: Path, folder: int) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "file", os.O_RDWR)
    assert calls.write(fd, b"ab", 2, append=False) == 2
    assert calls.write(fd, b"", 5, append=False) == 0
    assert calls.write(fd, b"END", 0, append=True) == 3
    assert calls.write(fd, b"gap", 20, append=False) == 3
    assert (tmp_path / "file").read_bytes() == b"01ab456789END" + bytes(7) + b"gap"
    os.close(fd)


def test_two_that_append_lose_nothing(tmp_path: Path, folder: int) -> None:
    """Each with an offset that is out of date, as the kernel gives it."""
    (tmp_path / "file").touch()
    lines = [[b"%d %d\n" % (who, number) for number in range(500)] for who in range(3)]

    def append(who: int) -> None:
        fd = os.open(tmp_path / "file", os.O_WRONLY)
        for line in lines[who]:
            assert calls.write(fd, line, 0, append=True) == len(line)
        os.close(fd)

    threads = [threading.Thread(target=append, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = (tmp_path / "file").read_bytes().splitlines(keepends=True)
    assert sorted(found) == sorted(itertools.chain(*lines))


@pytest.mark.needs_root
def test_a_full_disk_says_how_much_it_took(tmp_path: Path, folder: int) -> None:
    with tmpfs(tmp_path / "disk", size="64k") as disk:
        fd = os.open(disk / "file", os.O_RDWR | os.O_CREAT)
        assert calls.write(fd, bytes(100_000), 0, append=False) == 65_536
        with pytest.raises(OSError, match="No space left"):
            calls.write(fd, b"x", 65_536, append=False)
        os.close(fd)


# What is listed


def test_names_and_statuses(tmp_path: Path, folder: int) -> None:
    for number in range(10):
        (tmp_path / f"{number}\udcff").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with os.scandir(tmp_path) as entries:
        taken = [calls.take(entries, 4) for _ in range(4)]
    assert [len(names) for names in taken] == [4, 4, 3, 0]
    names = [*itertools.chain(*taken)]
    assert sorted(names) == sorted(os.listdir(os.fsencode(tmp_path)))
    found = calls.stat_all(folder, [*names, b"gone"])
    assert found.pop() is None
    for name, status in zip(names, found, strict=True):
        assert status is not None
        assert os.path.samestat(status, os.lstat(tmp_path / os.fsdecode(name)))
    file = os.open(tmp_path / "0\udcff", os.O_RDONLY)
    assert _errno(calls.stat_all, file, [b"x"]) == ENOTDIR
    os.close(file)


@pytest.mark.needs_root
def test_a_folder_that_may_be_listed_and_not_entered(tmp_path: Path, folder: int) -> None:
    """As `ls` of a folder with mode r--: names, but no statuses."""
    with tmpfs(tmp_path / "disk") as disk:
        (disk / "folder").mkdir(0o744)
        (disk / "folder/file").touch()
        fd = os.open(disk / "folder", os.O_PATH)
        with acting_as(USER):
            listing = calls.open_listing(fd)
            assert os.listdir(listing.fd) == ["file"]
            assert _errno(calls.stat_all, fd, [b"file"]) == EACCES
        with acting_as(AGENT):
            os.chmod(disk / "folder", 0o711)
        with acting_as(USER):
            assert _errno(calls.open_listing, fd) == EACCES
        os.close(listing.fd)
        os.close(fd)


def test_find_below(tmp_path: Path, folder: int) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    os.link(tmp_path / "a/file", tmp_path / "a/b/twin")
    (tmp_path / "link").symlink_to("a")
    status = os.stat(tmp_path / "a/file")
    ways = calls.find_below(folder, {(status.st_dev, status.st_ino)})
    assert sorted([name for name, _ in way] for way in ways) == [
        [b"a", b"b", b"twin"],
        [b"a", b"file"],
    ]


def test_an_xattr_path_is_of_the_name_itself(tmp_path: Path, folder: int) -> None:
    os.setxattr(tmp_path, "user.note", b"the folder's")
    (tmp_path / "file").touch()
    os.setxattr(tmp_path / "file", "user.note", b"the file's")
    os.symlink("file", tmp_path / "\udcff")
    assert os.getxattr(calls.xattr_path(folder, b"file"), "user.note") == b"the file's"
    assert os.listxattr(calls.xattr_path(folder, b"\xff"), follow_symlinks=False) == []
