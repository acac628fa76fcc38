"""Copying a plain small file, which most trees consist of, with the fewest system calls."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Protocol

from session_agent.fsutil.at import open_at, stat_at
from session_agent.fsutil.credentials import AGENT
from session_agent.moves.attributes import copy_attributes
from session_agent.moves.data import clone
from session_agent.moves.snapshot import Copied, Snapshot

_LARGEST = 1 << 20  # bytes; a larger file is copied part by part


class Stage(Protocol):
    """What the files of one stage have in common: copy.Staging."""

    device: int
    distrusted: bool
    cloning: bool
    cloned: bool
    losses: set[str]


def copy_plain(stage: Stage, source: int, name: bytes, target: int) -> Copied | None:
    """Copy a file from the folder `source` to the folder `target`; None if it is to be copied otherwise.

    That is: unless it is regular, of one link, without holes, not large, and on the stage's device; also
    where anything fails. Then nothing is left of the copy. Nothing is durable by it.
    """
    try:
        # O_NONBLOCK: should a FIFO have taken the name, opening it must not wait for a writer.
        fd = open_at(source, name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not (
            stat.S_ISREG(status.st_mode)
            and status.st_nlink == 1
            and status.st_dev == stage.device
            and status.st_size <= _LARGEST
            and status.st_blocks * 512 >= status.st_size
        ):
            return None
        made = _copy(stage, fd, target, name, status)
    except OSError:
        return None
    finally:
        os.close(fd)
    return None if made is None else Copied(Snapshot.of(status), (made.st_dev, made.st_ino))


def _copy(
    stage: Stage, fd: int, target: int, name: bytes, status: os.stat_result
) -> os.stat_result | None:
    # Nobody gets more rights by the mode than the file gave already; set-uid bits come last.
    mode = status.st_mode & 0o777
    copy = open_at(target, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    made = None
    try:
        try:
            if _copy_bytes(stage, fd, copy, status.st_size):
                made = _copy_attributes(stage, fd, copy, status)
        finally:
            os.close(copy)  # raises where a network file system reports a failed save here
        if made is not None and stage.distrusted:
            made = stat_at(target, name)
        whole = made is not None and made.st_size == status.st_size
    except OSError:
        whole = False
    if whole:
        return made
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=target)
    return None


def _copy_bytes(stage: Stage, fd: int, copy: int, size: int) -> bool:
    """Whether all of them are copied: a read may be cut short, a write as well."""
    if stage.cloning and size:
        stage.cloning = clone(fd, copy)
        if stage.cloning:
            stage.cloned = True
            return True
    data = os.pread(fd, size + 1, 0)
    return len(data) == size and (size == 0 or os.write(copy, data) == size)


def _copy_attributes(stage: Stage, fd: int, copy: int, status: os.stat_result) -> os.stat_result:
    """As copy_attributes, with fewer calls where there is not much to do."""
    try:
        if not _has_xattrs(fd):
            if (status.st_uid, status.st_gid) != AGENT[:2]:
                os.fchown(copy, status.st_uid, status.st_gid)
            os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
            made = os.fstat(copy)
            wanted = (status.st_mode, status.st_uid, status.st_gid)
            if (made.st_mode, made.st_uid, made.st_gid) == wanted:
                return made
    except OSError:
        pass  # it is tried once more below, where what does not work is noted
    return copy_attributes(stage.losses, fd, copy, status, inherited=False)


def _has_xattrs(fd: int) -> bool:
    try:
        return bool(os.listxattr(fd))
    except OSError:
        return False  # none that could be read
