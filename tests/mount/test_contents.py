"""Content and attributes: opening, sizes, holes, extended attributes, times, modes, compared."""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

import pytest

from tests.support.cases import Cases, Closing
from tests.support.vault import Vault, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

CASES = Cases()
# The root branch and a bind mount (ext4), an xfs, a tmpfs.
BRANCHES = ("", "alpha", "gamma", "delta")


def shown(status: os.stat_result) -> tuple[object, ...]:
    links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return oct(status.st_mode), links, status.st_uid, status.st_gid, size, status.st_rdev


@CASES
def sizes(folder: Path) -> object:
    (folder / "x").write_bytes(b"content")
    fd = os.open(folder / "x", os.O_RDWR)
    reading = os.open(folder / "x", os.O_RDONLY)
    try:
        return [
            outcome(lambda: os.truncate(folder / "x", -1)),
            outcome(lambda: os.ftruncate(fd, 1 << 62)),
            outcome(lambda: os.pwrite(fd, b"x", (1 << 63) - 2)),
            outcome(lambda: os.pread(fd, 10, 1 << 62)),
            outcome(lambda: os.ftruncate(reading, 0)),
            outcome(lambda: os.write(reading, b"x")),
            outcome(lambda: os.pread(fd, 100, 0)),
            outcome(lambda: os.lseek(fd, -1, os.SEEK_SET)),
            outcome(lambda: os.lseek(fd, 0, os.SEEK_END)),
            outcome(lambda: os.fstat(fd).st_size),
        ]
    finally:
        os.close(fd)
        os.close(reading)


@CASES
def opening(folder: Path) -> object:
    (folder / "x").write_bytes(b"content")
    (folder / "d").mkdir()
    os.symlink("x", folder / "to-x")
    os.symlink("new", folder / "to-new")
    flags = {
        "truncate": os.O_WRONLY | os.O_TRUNC,
        "truncate, reading": os.O_RDONLY | os.O_TRUNC,
        "create": os.O_RDWR | os.O_CREAT,
        "create new": os.O_RDWR | os.O_CREAT | os.O_EXCL,
        "create, no follow": os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW,
        "folder": os.O_RDONLY | os.O_DIRECTORY,
        "folder, writing": os.O_RDWR | os.O_DIRECTORY,
        "no access time": os.O_RDONLY | os.O_NOATIME,
        "synchronous": os.O_WRONLY | os.O_SYNC,
        "both": 3,
    }
    answers = []
    for path in ("d", "to-x", "to-new", "x"):
        for name, flag in flags.items():

            def step(path: str = path, flag: int = flag) -> object:
                fd = os.open(folder / path, flag, 0o604)
                with Closing(fd):
                    return shown(os.fstat(fd))

            answers.append((path, name, outcome(step)))
    return answers


@CASES
def copying_in_the_kernel(folder: Path) -> object:
    (folder / "x").write_bytes(b"0123456789" * 1000)
    fd = os.open(folder / "x", os.O_RDONLY)
    new = os.open(folder / "new", os.O_RDWR | os.O_CREAT)
    with Closing(fd), Closing(new):
        done = [
            # A whole block: an xfs stops at its end.
            outcome(lambda: os.copy_file_range(fd, new, 4096, 0, 0)),
            outcome(lambda: os.sendfile(new, fd, 100, 1000)),
            outcome(lambda: os.copy_file_range(fd, new, 10, 20_000, 0)),
        ]
    return done, (folder / "new").read_bytes()


@CASES
def holes(folder: Path) -> object:
    with open(folder / "x", "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())  # until then an xfs reports what it has set aside
    os.truncate(folder / "x", 65 << 20)
    status = os.stat(folder / "x")
    # SEEK_HOLE is not compared: libfuse's lseek is not among pyfuse3's handlers.
    content = (folder / "x").read_bytes()
    return status.st_size, status.st_blocks, content.count(0), content[(32 << 20) - 1 :][:3]


@CASES
def attributes(folder: Path) -> object:
    (folder / "x").write_bytes(b"")
    (folder / "d").mkdir()
    os.symlink("x", folder / "to-x")
    create, replace = os.XATTR_CREATE, os.XATTR_REPLACE

    def one(path: Path, name: str, value: bytes, flags: int) -> list[object]:
        return [
            outcome(lambda: os.setxattr(path, name, value, flags, follow_symlinks=False)),
            outcome(lambda: os.getxattr(path, name, follow_symlinks=False)),
        ]

    answers: list[object] = []
    for name in ("x", "d", "to-x", "none"):
        path = folder / name
        answers += one(path, "user.a", b"1", replace) + one(path, "user.a", b"", create)
        answers += one(path, "user.a", b"2", create) + one(path, "user.a", b"\0\xff" * 50, replace)
        answers += one(path, "trusted.b", b"3", 0) + one(path, "security.c", b"4", 0)
        answers += one(path, "wrong.d", b"5", 0) + one(path, "nothing", b"6", 0)
        answers += one(path, "user." + "n" * 250, b"7", 0) + one(path, "user." + "n" * 251, b"8", 0)
        answers += one(path, "user.", b"9", 0) + one(path, "user.ä\udcff", b"10", 0)
        answers += one(path, "user.big", b"x" * 65537, 0)
        answers.append(outcome(lambda: sorted(os.listxattr(path, follow_symlinks=False))))  # noqa: B023
        answers.append(outcome(lambda: os.removexattr(path, "user.a", follow_symlinks=False)))  # noqa: B023
        answers.append(outcome(lambda: os.removexattr(path, "user.a", follow_symlinks=False)))  # noqa: B023
        answers.append(outcome(lambda: os.removexattr(path, "user.none", follow_symlinks=False)))  # noqa: B023
    return answers


@CASES
def the_size_of_an_attribute(folder: Path) -> object:
    (folder / "x").write_bytes(b"")
    os.setxattr(folder / "x", "user.a", b"12345")
    library = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(folder / "x")

    def ask(size: int) -> object:
        buffer = ctypes.create_string_buffer(16)
        got = library.getxattr(path, b"user.a", buffer, size)
        listed = library.listxattr(path, buffer, size)
        return got, listed, ctypes.get_errno() if got < 0 or listed < 0 else 0

    return [ask(size) for size in (0, 1, 4, 5, 16)]


@CASES
def times(folder: Path) -> object:
    (folder / "x").write_bytes(b"1")
    answers = []
    for accessed, modified in (
        (1, 2),
        (1_700_000_000_123_456_789, 1_600_000_000_987_654_321),
        (-1, -1_000_000_001),
        (5_000_000_000_000_000_000, 4_294_967_296_000_000_001),
        (0, 0),
    ):
        answers.append(outcome(lambda: os.utime(folder / "x", ns=(accessed, modified))))  # noqa: B023
        status = os.stat(folder / "x")
        answers.append((status.st_atime_ns, status.st_mtime_ns))
    return answers


@CASES
def modes(folder: Path) -> object:
    (folder / "x").write_bytes(b"")
    (folder / "d").mkdir()
    answers = []
    for name in ("x", "d"):
        for mode in (0, 0o777, 0o7777, 0o4711, 0o2711, 0o1777, 0o100644):
            os.chmod(folder / name, mode)
            answers.append(oct(os.stat(folder / name).st_mode))
    return answers


@CASES
def new_modes(folder: Path) -> object:
    """The mask for new files, and a set-group-ID folder's group."""
    os.chown(folder, 7, 8)
    os.chmod(folder, 0o2755)
    answers = []
    for mask in (0o000, 0o022, 0o777):
        before = os.umask(mask)
        try:
            base = folder / oct(mask)
            os.mkdir(base, 0o1777)
            os.chmod(base, 0o2777)
            os.close(os.open(base / "x", os.O_WRONLY | os.O_CREAT, 0o6777))
            os.mkfifo(base / "fifo", 0o777)
            os.mkdir(base / "d", 0o777)
            os.symlink("x", base / "to-x")
            answers += [shown(os.lstat(path)) for path in (base, *sorted(base.iterdir()))]
        finally:
            os.umask(before)
    return answers


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", CASES)
def test_as_in_the_branch_itself(vault: Vault, name: str, branch: str) -> None:
    CASES.compare(name, vault, branch)
