"""Looking at folders now and then, where nothing tells what happens in them.

That is so in remote branches, and in local ones when no more folders can be watched. What was there before is
compared with what is there now; the difference is told as events are.

Looking at a folder in a cloud drive costs a request to its server, of which only so many a minute are to be
had. They are spread evenly, and go to the folders that are most likely to be looked at: those that programs
listen to or have open come first, of others that which has waited longest. A folder in which nothing changes
is looked at less and less often.
"""

from __future__ import annotations

import heapq
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import trio

from session_agent.fsutil.credentials import AGENT
from session_agent.model import MountState
from session_agent.overlay import calls
from session_agent.overlay.changes import Pending
from session_agent.overlay.inotify import DELETE, MOVED_FROM
from session_agent.overlay.nodes import FolderNode, Key, Node

if TYPE_CHECKING:
    from session_agent.overlay.telling import Telling
    from session_agent.overlay.tree import Tree

log = logging.getLogger(__name__)

LOCAL_PER_MINUTE = 600
_PAGE = 256  # entries that a server tells in one answer: a larger folder costs more
_FIRST = 1.0  # seconds until a folder is looked at again in which something has changed
_LONGEST_FRONT = 15.0  # and at most, if programs listen to it or have it open
_LONGEST = 300.0  # and otherwise
_SETTLE = 0.2  # seconds: by then is noted what the vault itself did, in threads, during a look
_SILENCE = 2.0  # seconds until it is seen whether a branch is alive again, or less waits to be told
_ECHO = 60.0  # seconds in which a file that the vault has saved may still get other times from its server
_SLOWEST = 100_000  # bytes that are sent in a second at the least: what is large gets them later
_FRONT_TURNS = 4  # of so many turns one goes to a folder behind


class Sight(NamedTuple):
    """What an entry was when it was looked at. Times in ns; `changed` is 0 where it means nothing."""

    key: Key
    mode: int
    size: int
    modified: int
    changed: int

    def is_renamed(self, other: Sight) -> bool:
        """Whether one with the same key is the same file, and not a new one that got its number."""
        return (self.size, self.modified) == (other.size, other.modified)


@dataclass(slots=True)
class _Own:
    """What the vault itself has done to a name, and when. `size`: of what it has saved.

    `exists`: whether there is something after it. None: as it will be found.
    """

    at: float
    exists: bool | None
    size: int | None = None

    def still_holds(self, sight: Sight | None, now: float) -> bool:
        """Whether a file that was found now may still get other times for what the vault did before.

        How large it is by then is learnt.
        """
        if sight is None or self.exists is False:
            return False
        if self.exists is None:
            self.exists, self.at = True, now
        if self.size is None:
            self.size = sight.size
        return self.size == sight.size and now <= self.at + _ECHO + self.size / _SLOWEST


class Looked:
    """A folder that is looked at. `seen`: what was there; None before it has been listed once."""

    lasting = False

    __slots__ = ("due", "folder", "front", "interval", "own", "seen")

    def __init__(self, folder: FolderNode) -> None:
        self.folder = folder
        self.front = False
        self.due = 0.0
        self.interval = _FIRST
        self.seen: dict[bytes, Sight] | None = None
        self.own: dict[bytes, _Own] = {}

    def expect(self, name: bytes, event: int) -> None:
        """The vault itself has done this."""
        self.own[name] = _Own(time.monotonic(), event not in (DELETE, MOVED_FROM))

    def settled(self, name: bytes) -> None:
        """What is found at the name next is the vault's own doing."""
        self.own[name] = _Own(time.monotonic(), None)

    def saved(self, name: bytes, size: int) -> None:
        """The vault itself has written the file, so large."""
        self.own[name] = _Own(time.monotonic(), True, size)


def saved(node: Node, size: int) -> None:
    """The vault itself has written the file of a remote branch, so large."""
    if node.parent is not None and isinstance(node.parent.watch, Looked):
        node.parent.watch.saved(node.name, size)


class Looker:
    """The folders of a branch that are looked at. Only the trio thread touches it.

    `watch_instead`: tries to have a folder watched; True if it is from now on.
    """

    LIMIT = 200_000  # entries that are remembered

    def __init__(
        self,
        telling: Telling,
        tree: Tree,
        per_minute: int,
        watch_instead: Callable[[FolderNode], bool],
    ) -> None:
        self._telling = telling
        self._branch = telling.branch
        self._counts = telling.counts
        self._tree = tree
        self._gap = 60.0 / per_minute  # seconds between two looks
        self._watch_instead = watch_instead
        self._folders: dict[FolderNode, Looked] = {}
        self._queues: dict[bool, list[tuple[float, int, Looked]]] = {True: [], False: []}
        self._number = count()
        self._turn = 0
        self._remembered = 0
        self._free_at = 0.0
        self._work = trio.Event()

    def __len__(self) -> int:
        return len(self._folders)

    def add(self, folder: FolderNode) -> None:
        """Look at the folder from now on."""
        looked = Looked(folder)
        folder.watch = looked
        self._folders[folder] = looked
        self._count(1)
        self._queue(looked, time.monotonic() + _FIRST)

    def leave(self, folder: FolderNode) -> None:
        """Look at the folder no more."""
        looked = self._folders.pop(folder, None)
        if looked is not None:
            folder.watch = None
            self._remembered -= len(looked.seen or ())
            self._count(-1)

    def close(self) -> None:
        """Look at nothing any more."""
        for folder in list(self._folders):
            self.leave(folder)

    def _count(self, more: int) -> None:
        if self._branch.remote:
            self._counts.polled += more
        else:
            self._counts.unwatched += more

    def used(self, folder: FolderNode) -> None:
        """A program looks at the folder."""
        looked = self._folders.get(folder)
        if looked is not None:
            looked.interval = _FIRST
            due = time.monotonic() + _FIRST
            if due < looked.due:
                self._queue(looked, due)

    def put_in_front(self, wanted: Callable[[FolderNode], bool]) -> None:
        """Programs listen to these folders, or have them open."""
        for folder, looked in self._folders.items():
            if looked.front is not (front := wanted(folder)):
                looked.front = front
                looked.interval = min(looked.interval, _LONGEST_FRONT) if front else looked.interval
                self._queue(looked, min(looked.due, time.monotonic() + looked.interval))

    def _queue(self, looked: Looked, due: float) -> None:
        looked.due = due
        heapq.heappush(self._queues[looked.front], (due, next(self._number), looked))
        self._work.set()

    # Whose turn it is

    def _first(self, front: bool) -> Looked | None:
        queue = self._queues[front]
        while queue:
            due, _, looked = queue[0]
            current = self._folders.get(looked.folder) is looked
            if current and looked.due == due and looked.front is front:
                return looked
            heapq.heappop(queue)
        return None

    def _next(self, now: float) -> Looked | None:
        """Whose turn is next, be it not yet."""
        front, behind = self._first(True), self._first(False)
        if front is None or behind is None:
            return front or behind
        if behind.due <= now and (front.due > now or self._turn % _FRONT_TURNS == 0):
            return behind
        return front if front.due <= max(now, behind.due) else behind

    async def run(self) -> None:
        """Look at one folder after the other, until cancelled."""
        while True:
            self._work = trio.Event()
            now = time.monotonic()
            looked = self._next(now)
            if looked is None:
                await self._work.wait()
            elif (pause := max(self._free_at, looked.due) - now) > 0:
                with trio.move_on_after(pause):
                    await self._work.wait()
            elif self._is_held_up():
                await trio.sleep(_SILENCE)
            else:
                self._turn += 1
                await self._look(looked)

    def _is_held_up(self) -> bool:
        if self._branch.gone or self._branch.state is not MountState.ALIVE:
            return True
        return len(self._telling.pending) >= Pending.LIMIT

    async def _look(self, looked: Looked) -> None:
        folder = looked.folder
        self._counts.polls += 1
        began, began_ns = time.monotonic(), time.time_ns()
        self._free_at = began + self._gap
        looked.due = began + _LONGEST  # until it has been looked at
        try:
            found = await self._telling.look(folder)
            await self._keep_what_lingers(looked, found)
        except OSError as failure:
            log.debug("a folder cannot be looked at: %s", failure.strerror)
            self._again(looked, changed=False)
            return
        self._free_at += self._gap * (len(found) // _PAGE)
        if self._branch.remote:
            await trio.sleep(_SETTLE)
        if self._folders.get(folder) is not looked:
            return  # the kernel has forgotten it meanwhile, or it was moved
        self._compare(looked, found, began)
        if self._watch_instead(folder):
            self._telling.lose([folder], began_ns)  # what has happened since that look
            self._telling.begin()

    async def _keep_what_lingers(self, looked: Looked, found: dict[bytes, os.stat_result]) -> None:
        """Names that are listed no more, and can be looked up all the same, are gone when they cannot.

        The kernel may remember a name of a drive for a second. Until then nobody could be told.
        """
        missing = [name for name in looked.seen or () if name not in found]
        if missing and looked.folder.fd >= 0:
            fd = os.dup(looked.folder.fd)
            try:
                statuses = await self._branch.call_slowly(AGENT, calls.stat_all, fd, missing)
            finally:
                self._branch.close_later(fd)
            pairs = zip(missing, statuses, strict=True)
            found.update((name, status) for name, status in pairs if status is not None)

    def _again(self, looked: Looked, *, changed: bool) -> None:
        longest = _LONGEST_FRONT if looked.front else _LONGEST
        looked.interval = _FIRST if changed else min(2 * looked.interval, longest)
        self._queue(looked, time.monotonic() + looked.interval)

    # What has changed

    def listed(self, folder: FolderNode, found: Mapping[bytes, os.stat_result]) -> None:
        """A program has listed the folder, and knows of all this: later differences are news to it."""
        looked = self._folders.get(folder)
        if looked is not None and looked.seen is None:
            self._remember(looked, found)

    def _remember(
        self, looked: Looked, found: Mapping[bytes, os.stat_result]
    ) -> dict[bytes, Sight]:
        ours = self._telling.is_ours
        now = {
            name: self._sight(status)
            for name, status in found.items()
            if not ours(looked.folder, name)
        }
        self._remembered += len(now) - len(looked.seen or ())
        looked.seen = now
        if self._remembered > self.LIMIT:
            self._remembered -= len(now)
            looked.seen = None
        return now

    def _compare(self, looked: Looked, found: Mapping[bytes, os.stat_result], began: float) -> None:
        """This was found by a look that began then."""
        before = looked.seen
        now = self._remember(looked, found)
        changed = before is not None and self._tell(looked, before, now, began)
        for name, own in list(looked.own.items()):
            old = own.at < began
            if old and not (self._branch.remote and own.still_holds(now.get(name), began)):
                del looked.own[name]
        self._telling.begin()
        self._again(looked, changed=changed)

    def _sight(self, status: os.stat_result) -> Sight:
        remote = self._branch.remote
        return Sight(
            self._tree.key(self._branch, status.st_dev, status.st_ino),
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            0 if remote else status.st_ctime_ns,
        )

    def _tell(
        self,
        looked: Looked,
        before: Mapping[bytes, Sight],
        now: Mapping[bytes, Sight],
        began: float,
    ) -> bool:
        """Tell the differences; False if there were none but the vault's own."""
        folder, pending = looked.folder, self._telling.pending
        different = [name for name in {*before, *now} if before.get(name) != now.get(name)]
        told = False
        gone = [name for name in different if name not in now]
        gone = [name for name in gone if self._is_news(looked, name, None, began)]
        sources = {before[name].key: name for name in gone}
        for name in different:
            sight = now.get(name)
            if sight is None or not self._is_news(looked, name, sight, began):
                continue
            old = before.get(name)
            if old is not None and stat.S_IFMT(old.mode) == stat.S_IFMT(sight.mode):
                told |= self._modified(folder, name, old, sight)
                continue
            told = True
            source = sources.pop(sight.key, None)
            if old is not None:
                pending.removed(folder, name, stat.S_ISDIR(old.mode))
            if source is not None and before[source].is_renamed(sight):
                gone.remove(source)
                pending.renamed((folder, source), folder, name)
            else:
                pending.made(folder, name)
                pending.closed(folder, name)
        for name in gone:
            pending.removed(folder, name, stat.S_ISDIR(before[name].mode))
        return told or bool(gone)

    def _modified(self, folder: FolderNode, name: bytes, old: Sight, new: Sight) -> bool:
        pending, is_folder = self._telling.pending, stat.S_ISDIR(new.mode)
        if not is_folder and (old.size, old.modified) != (new.size, new.modified):
            pending.modified(folder, name, contents=True)
            pending.closed(folder, name)
        elif old.mode != new.mode or (old.changed != new.changed and not is_folder):
            pending.modified(folder, name, contents=False)
        else:
            return False
        return True

    def _is_news(self, looked: Looked, name: bytes, sight: Sight | None, began: float) -> bool:
        """Whether a difference is not the vault's own doing, nor hidden."""
        folder, telling = looked.folder, self._telling
        if telling.is_ours(folder, name) or telling.is_hidden(folder, name):
            return False
        node = None if sight is None else self._tree.find(sight.key)
        if node is not None and any(handle.writable for handle in node.handles or ()):
            return False  # it is being written
        own = looked.own.get(name)
        if own is None:
            return True
        if own.exists is None or own.at >= began:
            return False  # it may have been done since it was looked at
        if own.exists is not (sight is not None):
            return True
        # Of a safe save, say, the size is not known: it is as it will be found.
        return sight is not None and own.size is not None and own.size != sight.size
