"""Calls on one name in one folder, given by file descriptor: no symbolic link is ever followed.

So whoever can change the folder meanwhile can make such a call fail, never reach outside the folder.
A folder's descriptor may be an O_PATH one.
"""

from __future__ import annotations

import contextlib
import os
import stat
from errno import EINVAL
from typing import NamedTuple

from session_agent.fsutil.syscalls import renameat2

FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
REFERENCE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
LISTING = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Opened(NamedTuple):
    """A new descriptor and the status of what it leads to. Whoever gets it closes it."""

    fd: int
    status: os.stat_result


def stat_at(folder: int, name: bytes) -> os.stat_result:
    """lstat."""
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def exists_at(folder: int, name: bytes) -> bool:
    """Whether there is anything by that name, be it a dangling symbolic link."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def open_at(folder: int, name: bytes, flags: int, mode: int = 0) -> int:
    """open with O_NOFOLLOW and O_CLOEXEC; ELOOP on a symbolic link unless `flags` has O_PATH."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)


def open_listing(folder: int) -> int:
    """A descriptor that the folder's entries can be read and fsynced through."""
    return os.open(b".", LISTING, dir_fd=folder)


def fsync_folder(folder: int) -> None:
    """Make the folder's entries durable. EINVAL, from file systems that cannot, counts as done."""
    fd = open_listing(folder)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != EINVAL:
            raise
    finally:
        os.close(fd)


def by_descriptor(fd: int) -> str:
    """A path to exactly the file behind `fd`, an O_PATH one too, for calls that only take paths.

    It is a link of procfs that leads to the open file itself, not to a name, a symbolic link included.
    """
    return f"/proc/self/fd/{fd}"


def rename_at(
    source_folder: int, source: bytes, target_folder: int, target: bytes, flags: int = 0
) -> None:
    """rename, or renameat2 where there are flags."""
    if flags:
        renameat2(source_folder, source, target_folder, target, flags)
    else:
        os.rename(source, target, src_dir_fd=source_folder, dst_dir_fd=target_folder)


def remove_tree(folder: int, name: bytes) -> None:
    """Remove `name` and all below it. What vanishes meanwhile is no error."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(stat_at(folder, name).st_mode):
            os.unlink(name, dir_fd=folder)
            return
        below = open_at(folder, name, LISTING)
        try:
            if stat.S_IMODE(os.fstat(below).st_mode) & 0o700 != 0o700:
                with contextlib.suppress(PermissionError):  # another's folder: it may do as it is
                    os.fchmod(below, 0o700)
            with os.scandir(below) as entries:
                names = [os.fsencode(entry.name) for entry in entries]
            for entry_name in names:
                remove_tree(below, entry_name)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=folder)
