"""Bytes and holes: each way of copying, and what it does with a file that ends early."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.moves.data import WAYS as ALL_WAYS
from session_agent.moves.data import SourceChangedError, copy_data
from session_agent.moves.progress import Progress
from session_agent.moves.snapshot import Snapshot
from tests.support.disks import image
from tests.support.moving import Disks, move

MIB = 1 << 20
WAYS = {way.__name__.strip("_"): way for way in ALL_WAYS}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two empty files open for reading and writing, on one file system: all ways lead there."""
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("from", "to")]
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


def _holes(fd: int) -> list[tuple[int, int]]:
    """The runs of data."""
    runs = []
    position, size = 0, os.fstat(fd).st_size
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        runs.append((start, position))
    return runs


LAYOUTS = {
    "no data": ([], 3 * MIB),
    "a byte at the start": ([(0, 1)], 3 * MIB),
    "a byte at the end": ([(3 * MIB - 1, 1)], 3 * MIB),
    "in the middle": ([(MIB, 4096)], 3 * MIB),
    "many": ([(n * MIB, 8192) for n in range(0, 40, 3)], 41 * MIB + 5),
    "beyond 4 GiB": ([(0, 10), (5 << 30, 10)], 6 << 30),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_holes(disks: Disks, layout: str) -> None:
    runs, size = LAYOUTS[layout]
    with open(disks.source / "file", "wb") as file:
        for start, length in runs:
            file.seek(start)
            file.write(os.urandom(length))
        file.truncate(size)
        os.fsync(file.fileno())
    with open(disks.source / "file", "rb") as before:
        move(disks.source / "file", disks.target / "moved")
        status = os.stat(disks.target / "moved")
        assert status.st_size == size
        assert status.st_blocks * 512 <= sum(length + 8192 for _, length in runs)
        with open(disks.target / "moved", "rb") as after:
            assert len(_holes(after.fileno())) == len(runs)
            for start, length in runs:
                offset, count = max(start - 5000, 0), length + 10_000
                data = os.pread(before.fileno(), count, offset)
                assert os.pread(after.fileno(), count, offset) == data


@pytest.mark.parametrize("way", WAYS)
def test_each_way_copies_at_its_position(pair: tuple[int, int], way: str) -> None:
    source, target = pair
    data = os.urandom(3 * MIB)
    os.write(source, data)
    os.lseek(source, 77, os.SEEK_SET)  # whose position must not matter
    position = 1000
    while position < 2 * MIB:
        done = WAYS[way](source, target, position, 2 * MIB - position)
        assert done > 0
        position += done
    assert position == 2 * MIB
    assert os.pread(target, 3 * MIB, 0) == bytes(1000) + data[1000 : 2 * MIB]


@pytest.mark.needs_root
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_one_file_system_of_the_kernels_can_copy_a_range_by_itself(
    tmp_path: Path, fstype: str
) -> None:
    with image(tmp_path / "disk", fstype, size="300M") as disk:
        data = os.urandom(9 * MIB)
        (disk / "a").write_bytes(data)
        with open(disk / "a", "rb") as source, open(disk / "b", "wb+") as target:
            copy_data(source.fileno(), target.fileno(), os.stat(disk / "a"), Progress())
            target.seek(0)
            assert target.read() == data


def test_a_file_that_ends_early_has_changed(pair: tuple[int, int]) -> None:
    source, target = pair
    os.write(source, b"x" * 10_000)
    status = os.fstat(source)
    os.ftruncate(source, 5000)
    with pytest.raises(SourceChangedError):
        copy_data(source, target, status, Progress())


def test_a_file_that_grows_is_copied_as_far_as_it_was(pair: tuple[int, int]) -> None:
    source, target = pair
    os.write(source, b"x" * 10_000)
    status = os.fstat(source)
    os.write(source, b"y" * 10_000)
    copy_data(source, target, status, Progress())
    assert os.pread(target, 30_000, 0) == b"x" * 10_000


def test_files_of_the_kernel_are_refused(disks: Disks) -> None:
    """/proc says size 0 and then gives bytes: whatever becomes of it, no error of ours."""
    with open("/proc/version", "rb") as source, open(disks.target / "copy", "wb") as target:
        copy_data(source.fileno(), target.fileno(), os.fstat(source.fileno()), Progress())
    assert (disks.target / "copy").read_bytes() == b""


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def _append(path: Path) -> None:
    status = os.stat(path)
    with open(path, "ab") as file:
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _rewrite(path: Path) -> None:
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path) -> None:
    status = os.stat(path)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def _chmod(path: Path) -> None:
    path.chmod(0o600)


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [_touch, _append, _rewrite, _replace, _chmod, _to_folder])
def test_what_a_snapshot_notices(tmp_path: Path, change: object) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    path.chmod(0o644)
    snapshot = Snapshot.of(os.lstat(path))
    assert snapshot.still_holds(os.lstat(path))
    path.read_bytes()
    assert snapshot.still_holds(os.lstat(path))
    assert callable(change)
    change(path)
    assert not snapshot.still_holds(os.lstat(path))


def test_what_a_snapshot_lets_pass(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    snapshot = Snapshot.of(os.lstat(path))
    os.link(path, tmp_path / "link")  # changes the ctime, but not the file
    assert snapshot.still_holds(os.lstat(path))
    linked = Snapshot.of(os.lstat(path))
    (tmp_path / "link").unlink()
    assert linked.still_holds(os.lstat(path))
    renamed = Snapshot.of(os.lstat(path))
    path.rename(tmp_path / "new")
    assert renamed.still_holds(os.lstat(tmp_path / "new"), renamed=True)
    (tmp_path / "new").write_bytes(b"CONTENT")
    assert not renamed.still_holds(os.lstat(tmp_path / "new"), renamed=True)
