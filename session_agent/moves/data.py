"""Copying the bytes of one file, holes left out, by the fastest call that the two file systems allow."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from errno import EINVAL, ENOSYS, ENOTSUP, ENOTTY, ENXIO, EPERM, EXDEV

from session_agent.fsutil.syscalls import start_writing
from session_agent.moves.progress import Progress

_CHUNKS = (128 << 10, 8 << 20)  # bytes in one call: at least, at most
_FIRST_CHUNK = 1 << 20
_CALL_SECONDS = (0.05, 0.5)  # a call that is sooner done makes the next larger, a later one smaller
_NEXT_WAY = frozenset({EXDEV, EINVAL, ENOSYS, ENOTSUP})
_NO_CLONE = frozenset({EXDEV, EINVAL, ENOSYS, ENOTSUP, ENOTTY, EPERM})
_FICLONE = 0x40049409  # _IOW(0x94, 9, int); linux/fs.h


class SourceChangedError(Exception):
    """The source is not what it was when its copy began."""


def clone(source: int, target: int) -> bool:
    """Let the empty file `target` share the extents of `source`; False where these file systems cannot.

    FICLONE takes both from one superblock, on xfs and btrfs among others (ioctl_ficlone(2)).
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True


def copy_data(source: int, target: int, status: os.stat_result, progress: Progress) -> None:
    """Copy the bytes of `source`, of that status, to the empty file `target`, leaving out its holes.

    SourceChangedError if the file ends earlier than its status says.
    """
    size = status.st_size
    position = 0
    chunk = _FIRST_CHUNK
    ways = list(WAYS)
    while position < size:
        end = size
        if status.st_blocks * 512 < size:
            position, end = _next_data(source, position, size)
        while position < end:
            begun = time.monotonic()
            done = _copy_part(ways, source, target, position, min(end - position, chunk))
            if done == 0:
                raise SourceChangedError
            if done == chunk:  # a large file: the disk need not wait for the end of it
                with contextlib.suppress(OSError):
                    start_writing(target, position, done)
            position += done
            progress.add(done)
            chunk = _next_chunk(chunk, time.monotonic() - begun)
    if os.fstat(target).st_size != size and status.st_blocks * 512 < size:
        os.ftruncate(target, size)


def _next_chunk(chunk: int, seconds: float) -> int:
    """How much to copy in the next call: progress is to be seen, and cancelling heard, on slow ones too."""
    if seconds < _CALL_SECONDS[0]:
        return min(2 * chunk, _CHUNKS[1])
    return max(chunk // 2, _CHUNKS[0]) if seconds > _CALL_SECONDS[1] else chunk


def _next_data(fd: int, position: int, size: int) -> tuple[int, int]:
    """Where the next run of data begins and ends."""
    try:
        start = os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        # ENXIO: only a hole is left. Anything else: this file system cannot tell.
        return (size, size) if error.errno == ENXIO else (position, size)
    return start, min(os.lseek(fd, start, os.SEEK_HOLE), size)


def _copy_part(
    ways: list[Callable[[int, int, int, int], int]],
    source: int,
    target: int,
    position: int,
    count: int,
) -> int:
    """Copy up to `count` bytes at `position` the fastest way that these two file systems allow."""
    while True:
        try:
            done = ways[0](source, target, position, count)
        except OSError as error:
            if error.errno not in _NEXT_WAY or len(ways) == 1:
                raise
            del ways[0]
            continue
        if done == 0 and len(ways) > 1:
            # Some file systems answer 0 where they cannot; the plain way knows the file's true end.
            del ways[:-1]
            continue
        return done


def _by_range(source: int, target: int, position: int, count: int) -> int:
    return os.copy_file_range(source, target, count, position, position)


def _by_sendfile(source: int, target: int, position: int, count: int) -> int:
    os.lseek(target, position, os.SEEK_SET)
    return os.sendfile(target, source, position, count)


def _by_hand(source: int, target: int, position: int, count: int) -> int:
    data = os.pread(source, min(count, 1 << 20), position)
    view = memoryview(data)
    written = 0
    while written < len(data):
        written += os.pwrite(target, view[written:], position + written)
    return written


_Way = Callable[[int, int, int, int], int]
WAYS: tuple[_Way, ...] = (_by_range, _by_sendfile, _by_hand)
