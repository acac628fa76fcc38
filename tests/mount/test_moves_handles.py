"""Moves between branches of what is open: handles, mappings, locks, working folders and listings go along."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cases import rename
from tests.support.ends import behind, folders_in, pair_name
from tests.support.vault import Vault, drop_caches, outcome

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.usefixtures("nothing_left_in_branches"),
]

EXCHANGE = 2


@pytest.fixture(params=[("alpha", "beta"), ("gamma", "delta"), ("", "alpha")], ids=pair_name)
def ends(vault: Vault, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A folder in each of two branches: fewer pairs than elsewhere."""
    with folders_in(vault, request.param) as folders:
        yield folders


def test_handles_of_every_kind_come_along(vault: Vault, ends: tuple[Path, Path]) -> None:
    source, target = ends[0] / "file", ends[1] / "moved"
    source.write_bytes(b"0123456789")
    flags = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_SYNC)
    reading, writing, both, appending, synchronous = fds = [os.open(source, flag) for flag in flags]
    os.lseek(reading, 5, os.SEEK_SET)
    number = os.fstat(reading).st_ino
    rename(source, target)
    os.pwrite(writing, b"W", 0)
    os.pwrite(both, b"B", 1)
    os.write(appending, b"A")
    os.pwrite(synchronous, b"S", 2)
    os.fsync(writing)
    assert os.read(reading, 100) == b"56789A"
    assert behind(vault, target).read_bytes() == target.read_bytes() == b"WBS3456789A"
    for fd in fds:
        status = os.fstat(fd)
        assert (status.st_ino, status.st_size, status.st_nlink) == (number, 11, 1)
    os.ftruncate(both, 3)
    os.fchmod(reading, 0o600)
    os.setxattr(reading, "user.a", b"1")
    assert behind(vault, target).read_bytes() == b"WBS"
    assert os.stat(behind(vault, target)).st_mode & 0o777 == 0o600
    assert os.getxattr(behind(vault, target), "user.a") == b"1"
    target.unlink()
    os.pwrite(both, b"still", 0)
    assert os.pread(reading, 10, 0) == b"still"
    assert os.fstat(reading).st_nlink == 0
    for fd in fds:
        os.close(fd)


def test_handles_on_what_is_replaced_stay(vault: Vault, ends: tuple[Path, Path]) -> None:
    source, target, link = ends[0] / "file", ends[1] / "file", ends[1] / "link"
    source.write_bytes(b"new")
    target.write_bytes(b"old content")
    with open(target, "r+b", buffering=0) as old:
        rename(source, target)
        assert old.read() == b"old content"
        old.write(b", and more")
        old.seek(0)
        assert old.read() == b"old content, and more"
        status = os.fstat(old.fileno())
        assert (status.st_nlink, status.st_size) == (0, 21)
        os.ftruncate(old.fileno(), 3)
        assert target.read_bytes() == b"new"
        assert os.stat(target).st_ino != status.st_ino
        drop_caches()
        assert os.pread(old.fileno(), 10, 0) == b"old"
    os.link(target, link)
    source.write_bytes(b"newer")
    with open(target, "r+b", buffering=0) as old:
        rename(source, target)
        old.write(b"NEW")
        assert os.fstat(old.fileno()).st_nlink == 1
    assert (target.read_bytes(), link.read_bytes()) == (b"newer", b"NEW")


def test_handles_of_an_exchange_change_sides(ends: tuple[Path, Path]) -> None:
    one, other = ends[0] / "one", ends[1] / "other"
    one.mkdir()
    (one / "below").write_bytes(b"one")
    other.write_bytes(b"other")
    with open(one / "below", "ab", buffering=0) as first, open(other, "ab", buffering=0) as second:
        rename(one, other, EXCHANGE)
        first.write(b" 1")
        second.write(b" 2")
    assert (other / "below").read_bytes() == b"one 1"
    assert one.read_bytes() == b"other 2"


def test_a_mapping_comes_along(vault: Vault, ends: tuple[Path, Path]) -> None:
    source, target = ends[0] / "file", ends[1] / "moved"
    source.write_bytes(b"x" * 20_000)
    with open(source, "r+b") as file, mmap.mmap(file.fileno(), 20_000) as mapped:
        mapped[0:6] = b"before"
        rename(source, target)
        assert target.read_bytes()[:6] == b"before"
        mapped[10_000:10_005] = b"after"
        mapped.flush()
        assert behind(vault, target).read_bytes()[10_000:10_005] == b"after"
        with open(target, "r+b") as again:
            again.write(b"file")
        assert mapped[0:6] == b"filere"


def test_locks_come_along(ends: tuple[Path, Path]) -> None:
    source, target = ends[0] / "file", ends[1] / "moved"
    source.write_bytes(b"1")
    with open(source, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rename(source, target)
        with open(target, "r+b") as other:
            assert outcome(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)) == "EAGAIN"


def test_a_folder_in_use_comes_along(vault: Vault, ends: tuple[Path, Path]) -> None:
    tree, target = ends[0] / "tree", ends[1] / "moved"
    (tree / "work/deep").mkdir(parents=True)
    (tree / "work/file").write_bytes(b"1")
    here = os.getcwd()
    fd = os.open(tree / "work/deep", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(tree / "work")
        rename(tree, target)
        Path("new").write_bytes(b"2")
        os.mkdir("folder", dir_fd=fd)
        assert os.getcwd() == str(target / "work")
        assert sorted(os.listdir()) == ["deep", "file", "new"]
        assert os.listdir(fd) == ["folder"]
        assert os.path.samestat(os.stat(".."), os.stat(target))
        assert sorted(os.listdir(behind(vault, target) / "work")) == ["deep", "file", "new"]
        os.rename("new", "../up")
        assert (target / "up").read_bytes() == b"2"
        rename(target / "work/deep", tree)  # a part of it back again
        os.rename("../up", f"/proc/self/fd/{fd}/back")
        assert (tree / "back").read_bytes() == b"2"
    finally:
        os.chdir(here)
        os.close(fd)


def test_a_listing_goes_on_in_the_new_place(ends: tuple[Path, Path]) -> None:
    tree, target = ends[0] / "tree", ends[1] / "moved"
    tree.mkdir()
    names = {f"entry {number} {'x' * 150}" for number in range(700)}
    for name in names:
        (tree / name).touch()
    listed = []
    with os.scandir(tree) as entries:
        for _ in range(10):
            listed.append(next(entries).name)
        rename(tree, target)
        listed += [entry.name for entry in entries]
    assert len(listed) == len(names)
    assert set(listed) == names


def test_the_folder_that_is_replaced_while_in_use(ends: tuple[Path, Path]) -> None:
    (ends[0] / "new").mkdir()
    (ends[0] / "new/file").write_bytes(b"1")
    (ends[1] / "old").mkdir()
    here = os.getcwd()
    try:
        os.chdir(ends[1] / "old")
        rename(ends[0] / "new", ends[1] / "old")
        assert outcome(lambda: os.open("x", os.O_CREAT | os.O_WRONLY)) == "ENOENT"
        assert outcome(lambda: os.stat("file")) == "ENOENT"
        assert os.stat(".").st_nlink in (0, 1, 2)
    finally:
        os.chdir(here)
    assert os.listdir(ends[1] / "old") == ["file"]
