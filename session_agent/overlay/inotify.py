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
from collections import Counter, deque
from collections.abc import Iterator
from errno import ENOSPC
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from watchdog.observers.inotify_c import (
    InotifyConstants,
    WatchDescriptor,
    inotify_add_watch,
    inotify_init,
    inotify_rm_watch,
)

from session_agent.fsutil.syscalls import filesystem_type

if TYPE_CHECKING:
    from session_agent.overlay.branches import OpenBranch
    from session_agent.overlay.nodes import FolderNode

log = logging.getLogger(__name__)

CREATE: int = InotifyConstants.IN_CREATE
DELETE: int = InotifyConstants.IN_DELETE
MOVED_FROM: int = InotifyConstants.IN_MOVED_FROM
MOVED_TO: int = InotifyConstants.IN_MOVED_TO
MODIFY: int = InotifyConstants.IN_MODIFY
CLOSE_WRITE: int = InotifyConstants.IN_CLOSE_WRITE
ATTRIB: int = InotifyConstants.IN_ATTRIB
NAMES = CREATE | DELETE | MOVED_FROM | MOVED_TO
OVERFLOW: int = InotifyConstants.IN_Q_OVERFLOW
GONE: int = InotifyConstants.IN_IGNORED
IS_FOLDER: int = InotifyConstants.IN_ISDIR

_WATCHED = (
    NAMES
    | MODIFY
    | CLOSE_WRITE
    | ATTRIB
    | InotifyConstants.IN_ONLYDIR
    | InotifyConstants.IN_DONT_FOLLOW
    | InotifyConstants.IN_EXCL_UNLINK
)

_LIMIT = "/proc/sys/fs/inotify/max_user_watches"

# File systems that are one machine's alone and whose names are exact: every change of what is watched in
# them is heard of. Others may be shared with a host that changes them unheard, or ignore case.
_EXACT = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4 (include/uapi/linux/magic.h)
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0xF2F52010,  # f2fs
        0x794C7630,  # overlayfs
    }
)

_HEADER = struct.Struct("iIII")  # struct inotify_event, inotify(7)
_READ = 1 << 16  # bytes of events read at a time
_MOST_HELD = 8 << 20  # bytes of events held until they are handled; the kernel holds some more

Event: TypeAlias = tuple[int, int, int, bytes]
"""Watch, mask, cookie and name."""


def events_in(data: bytes) -> Iterator[Event]:
    """The events that were read."""
    position = 0
    while position < len(data):
        wd, mask, cookie, length = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        yield wd, mask, cookie, data[position : position + length].rstrip(b"\0")
        position += length


class Watch:
    """A folder that is watched. `own`: the events that the vault's own operations will cause.

    `lasting`: whatever changes in it is heard of, so that the kernel may remember it for long.
    """

    __slots__ = ("lasting", "own", "queue", "wd")

    def __init__(self, queue: Queue, wd: int, lasting: bool) -> None:
        self.queue = queue
        self.wd = wd
        self.lasting = lasting
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


class Allowance:
    """How many more folders the agent watches: of what a user may watch, half is left to the programs."""

    def __init__(self) -> None:
        self.left = _most_watches()
        self.refused = False  # and that has been told


class Queue:
    """The inotify instance of a branch. OSError if there can be no more of them."""

    def __init__(self, branch: OpenBranch, allowance: Allowance) -> None:
        self.branch = branch
        self._allowance = allowance
        self.fd = inotify_init()
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        os.set_blocking(self.fd, False)
        os.set_inheritable(self.fd, False)
        self.exact = False
        self.device = 0
        self.renewed()
        self.folders: dict[int, FolderNode] = {}
        self.expecting: list[Watch] = []
        self._full = False  # fs.inotify.max_user_watches is reached
        self._held: deque[bytes] = deque()  # read, and not taken
        self._bytes = 0
        self._events: Iterator[Event] = iter(())  # of what is being taken
        self.read_until = time.time_ns()  # all that happened before has been read

    def add(self, path: bytes) -> int:
        """Watch the folder at `path`; answers its number, -1 if it cannot be watched."""
        if not self.has_room():
            self._refuse()
            return -1
        wd = inotify_add_watch(self.fd, path, _WATCHED)
        if wd < 0 and ctypes.get_errno() == ENOSPC:
            self._full = True
            self._refuse()
        return wd

    def _refuse(self) -> None:
        if not self._allowance.refused:
            self._allowance.refused = True
            log.warning(
                "no more folders can be watched (fs.inotify.max_user_watches): the others are looked at"
                " now and then"
            )

    def renewed(self) -> None:
        """The branch was mounted anew."""
        self.exact = filesystem_type(self.branch.fd) in _EXACT
        self.device = os.fstat(self.branch.fd).st_dev

    def keep(self, wd: int, folder: FolderNode) -> None:
        """What `wd` tells is of this folder."""
        self.folders[wd] = folder
        self._allowance.left -= 1

    def drop(self, wd: int) -> bool:
        """`wd` tells nothing any more; False if it did not before."""
        if self.folders.pop(wd, None) is None:
            return False
        self._allowance.left += 1
        self._full = False
        return True

    def remove(self, wd: int) -> bool:
        """Watch a folder no more; False if it was not watched."""
        if not self.drop(wd):
            return False
        inotify_rm_watch(self.fd, WatchDescriptor(wd))
        return True

    def close(self) -> None:
        """Watch nothing any more."""
        os.close(self.fd)
        self._allowance.left += len(self.folders)
        self.folders.clear()

    def has_room(self) -> bool:
        """Whether one more folder may be watched."""
        return not self._full and self._allowance.left > 0

    def take(self, count: int) -> list[Event]:
        """The next events, so many at most; none at the end of the queue.

        The kernel's queue is emptied at once, since it holds few: a large checkout is more than that.
        """
        self._fill()
        events = list(islice(self._events, count))
        while len(events) < count and self._held:
            data = self._held.popleft()
            self._bytes -= len(data)
            self._events = events_in(data)
            events += islice(self._events, count - len(events))
        return events

    def _fill(self) -> None:
        while self._bytes < _MOST_HELD:
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                return
            self._held.append(data)
            self._bytes += len(data)


def _most_watches() -> int:
    try:
        with open(_LIMIT, encoding="ascii") as file:
            return int(file.read()) // 2
    except (OSError, ValueError):
        return 4096  # half of the smallest limit that kernels had
