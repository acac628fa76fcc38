"""System calls through ctypes: arguments arrive as they were meant, and errors come back."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBADF, EBUSY, EINVAL, ENOENT, EXDEV
from pathlib import Path

import pytest

from session_agent.fsutil import syscalls
from session_agent.fsutil.at import by_descriptor
from tests.support.storage import tmpfs

NOW = 10_000_000_000  # ns: what passes for the present


@contextmanager
def _fails(errno: int, *names: str) -> Iterator[None]:
    with pytest.raises(OSError) as failure:  # noqa: PT011 - the errno is looked at
        yield
    assert failure.value.errno == errno
    assert not names or failure.value.filename == names[0]


def test_renameat2(tmp_path: Path) -> None:
    name = b"\xff \n" + b"x" * 200
    (tmp_path / os.fsdecode(name)).write_bytes(b"content")
    (tmp_path / "sub").mkdir()
    here, sub = (os.open(path, os.O_PATH) for path in (tmp_path, tmp_path / "sub"))
    syscalls.renameat2(here, name, sub, b"new", syscalls.RENAME_NOREPLACE)
    assert (tmp_path / "sub/new").read_bytes() == b"content"
    with _fails(ENOENT, os.fsdecode(name)):
        syscalls.renameat2(here, name, sub, b"new", syscalls.RENAME_NOREPLACE)
    with _fails(EINVAL):
        syscalls.renameat2(sub, b"new", here, b"back", 3)
    with _fails(EBADF):
        syscalls.renameat2(-1, b"new", here, b"back", 0)
    os.close(here)
    os.close(sub)


@pytest.mark.needs_root
def test_renameat2_across_file_systems(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with tmpfs(tmp_path / "disk") as disk:
        here, there = (os.open(path, os.O_PATH) for path in (tmp_path, disk))
        with _fails(EXDEV):
            syscalls.renameat2(here, b"file", there, b"file", syscalls.RENAME_NOREPLACE)
        os.close(here)
        os.close(there)


def test_syncfs(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    syscalls.syncfs(fd)
    os.close(fd)
    with _fails(EBADF):
        syscalls.syncfs(fd)
    fd = os.open(tmp_path, os.O_PATH)
    with _fails(EBADF):
        syscalls.syncfs(fd)
    os.close(fd)


@pytest.mark.parametrize("time", [0, 1, 1_999_999_999, 2**33 * 10**9 + 5, -1, -1_000_000_001])
def test_times_to_the_nanosecond(tmp_path: Path, time: int) -> None:
    path = tmp_path / "\udcff"
    path.touch()
    syscalls.set_times(str(path), time, time + 1)
    status = path.stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (time, time + 1)


def test_a_time_that_is_not_given_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.utime(path, ns=(11, 22))
    syscalls.set_times(str(path), None, 33)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (11, 33)
    syscalls.set_times(str(path), 44, None)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (44, 33)
    syscalls.set_times(str(path), None, None)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (44, 33)
    syscalls.set_times(str(path), None, 55, now=True)
    assert path.stat().st_atime_ns == 44
    assert path.stat().st_mtime_ns > NOW
    with _fails(ENOENT, str(tmp_path / "absent")):
        syscalls.set_times(str(tmp_path / "absent"), 1, 1)


def test_times_of_a_link_by_its_descriptor(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", ns=(11, 22))
    (tmp_path / "link").symlink_to("file")
    fd = os.open(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW)
    syscalls.set_times(by_descriptor(fd), 33, 44)
    os.close(fd)
    assert (tmp_path / "link").lstat().st_mtime_ns == 44
    assert (tmp_path / "file").stat().st_mtime_ns == 22


@pytest.mark.needs_root
def test_unmount(tmp_path: Path) -> None:
    with _fails(EINVAL, str(tmp_path)):
        syscalls.unmount(str(tmp_path))
    with tmpfs(tmp_path / "outer") as outer:  # takes the inner one with it, whatever happens
        disk = outer / "a\udcff b"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "test", str(disk)], check=True, timeout=20)
        held = os.open(disk, os.O_RDONLY)
        with _fails(EBUSY, str(disk)):
            syscalls.unmount(str(disk))
        assert os.path.ismount(disk)
        syscalls.unmount(str(disk), syscalls.MNT_DETACH)
        assert not os.path.ismount(disk)
        os.close(held)


@pytest.mark.needs_root
@pytest.mark.parametrize("uid", [1, 65534, 2**31 - 1, 2**31, 2**32 - 2])
def test_any_user_that_there_can_be(tmp_path: Path, uid: int) -> None:
    """Numbers above 2**31 come from directory services, and -2 from NFS."""
    os.chmod(tmp_path, 0o777)
    owners: list[tuple[int, int] | OSError] = []
    folder = os.open(tmp_path, os.O_PATH)

    def step() -> None:
        try:
            syscalls.set_fs_identity(uid, uid, (uid, 5))
            os.mkdir("made", dir_fd=folder)
            status = os.stat("made", dir_fd=folder)
            owners.append((status.st_uid, status.st_gid))
        except OSError as error:
            owners.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    os.close(folder)
    assert owners == [(uid, uid)]


def test_when_a_file_was_made(tmp_path: Path) -> None:
    """Written to, replaced and linked to since, it was made when it was made; a link is not followed."""
    folder = os.open(tmp_path, os.O_PATH)
    try:
        before = time.time_ns() - 100_000_000  # file systems' clocks are a tick behind
        (tmp_path / "file").write_bytes(b"1")
        born = syscalls.born_at(folder, b"file")
        assert before < born < time.time_ns()
        time.sleep(0.05)
        (tmp_path / "file").write_bytes(b"22")
        (tmp_path / "file").rename(tmp_path / "other")
        (tmp_path / "link").symlink_to("other")
        assert syscalls.born_at(folder, b"other") == born < os.stat(tmp_path / "other").st_mtime_ns
        assert syscalls.born_at(folder, b"link") > born
        with pytest.raises(FileNotFoundError):
            syscalls.born_at(folder, b"file")
    finally:
        os.close(folder)


def test_a_file_system_that_does_not_keep_when_files_were_made() -> None:
    folder = os.open("/proc", os.O_PATH)
    try:
        assert syscalls.born_at(folder, b"version") == 0
    finally:
        os.close(folder)
