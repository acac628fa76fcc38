"""The kernel's notifications of changes: one inotify instance a branch, and the folders watched through it.

watchdog's own observer would start a thread and an inotify instance for each folder, walk the tree, and keep
an overflow of the queue to itself; so its bindings are used, and the queue is read in the event loop.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator
from errno import ENOSPC
from typing import TYPE_CHECKING

from watchdog.observers.inotify_c import (
    InotifyConstants,
    WatchDescriptor,
    inotify_add_watch,
    inotify_init,
    inotify_rm_watch,
)

if TYPE_CHECKING:
    from session_agent.overlay.branches import OpenBranch
    from session_agent.overlay.tree import FolderNode

log = logging.getLogger(__name__)

CREATE: int = InotifyConstants.IN_CREATE
DELETE: int = InotifyConstants.IN_DELETE
MOVED_FROM: int = InotifyConstants.IN_MOVED_FROM
MOVED_TO: int = InotifyConstants.IN_MOVED_TO
MODIFY: int = InotifyConstants.IN_MODIFY | InotifyConstants.IN_CLOSE_WRITE
ATTRIB: int = InotifyConstants.IN_ATTRIB
NAMES = CREATE | DELETE | MOVED_FROM | MOVED_TO
OVERFLOW: int = InotifyConstants.IN_Q_OVERFLOW
GONE: int = InotifyConstants.IN_IGNORED
IS_FOLDER: int = InotifyConstants.IN_ISDIR

_WATCHED = (
    NAMES
    | MODIFY
    | ATTRIB
    | InotifyConstants.IN_ONLYDIR
    | InotifyConstants.IN_DONT_FOLLOW
    | InotifyConstants.IN_EXCL_UNLINK
)

_HEADER = struct.Struct("iIII")  # struct inotify_event, inotify(7)
_READ = 4096  # bytes of events read at a time: 128 of them at most, then others get their turn


def events_in(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Watch, mask, cookie and name of each event that was read."""
    position = 0
    while position < len(data):
        wd, mask, cookie, length = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        yield wd, mask, cookie, data[position : position + length].rstrip(b"\0")
        position += length


class Watch:
    """A folder that is watched. `own`: the events that the vault's own operations will cause."""

    __slots__ = ("own", "queue", "wd")

    def __init__(self, queue: Queue, wd: int) -> None:
        self.queue = queue
        self.wd = wd
        self.own: Counter[tuple[bytes, int]] | None = None

    def expect(self, name: bytes, event: int) -> None:
        """The vault itself has done this."""
        if self.own is None:
            self.own = Counter()
            self.queue.expecting.append(self)
        self.own[name, event] += 1

    def is_own(self, name: bytes, event: int) -> bool:
        """Whether the vault itself has done this; each is asked for once."""
        if self.own is None or not self.own[name, event]:
            return False
        self.own[name, event] -= 1
        return True


class Queue:
    """The inotify instance of a branch. OSError if there can be no more of them.

    `left`: what was moved away, by cookie, until it is known where to. `full`: no more can be watched.
    """

    def __init__(self, branch: OpenBranch) -> None:
        self.branch = branch
        self.fd = inotify_init()
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        os.set_blocking(self.fd, False)
        os.set_inheritable(self.fd, False)
        self.folders: dict[int, FolderNode] = {}
        self.expecting: list[Watch] = []
        self.full = False
        self.left: dict[int, tuple[FolderNode, bytes, bool]] = {}
        self.read_until = time.time_ns()  # all that happened before has been read

    def add(self, path: bytes) -> int:
        """Watch the folder at `path`; answers its number, -1 if it cannot be watched."""
        if self.full:
            return -1
        wd = inotify_add_watch(self.fd, path, _WATCHED)
        if wd < 0 and ctypes.get_errno() == ENOSPC:  # fs.inotify.max_user_watches
            self.full = True
            log.info("%s: no more folders can be watched", self.branch.info.name)
        return wd

    def remove(self, wd: int) -> bool:
        """Watch a folder no more; False if it was not watched."""
        if self.folders.pop(wd, None) is None:
            return False
        inotify_rm_watch(self.fd, WatchDescriptor(wd))
        self.full = False
        return True

    def read(self) -> bytes:
        """The next events; none at the end of the queue."""
        try:
            return os.read(self.fd, _READ)
        except BlockingIOError:
            return b""
