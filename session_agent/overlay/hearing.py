"""Hearing of what happens behind the vault in a local branch, through inotify.

A folder is watched as soon as the kernel is told of it, so that a large tree does not delay the start.

What the vault itself does comes back as events, too. They are told apart like this:

- names: an operation notes what it has made, removed or renamed (`Watch.expect`). The kernel queues an event
  within the call that causes it, so once the queue has been read to its end, whatever was noted before has
  come; the notes are then dropped.
- contents and attributes: a node keeps the version up to which programs have been told (`Node.announced`).
- moves, whose calls are made in threads: both names are claimed until the move has ended
  (`Foreign.ours`), and reserved names are nobody's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from session_agent.fsutil.at import stat_at
from session_agent.fsutil.credentials import AGENT, assume
from session_agent.moves.names import RESERVED_PREFIX
from session_agent.overlay.inotify import (
    CLOSE_WRITE,
    CREATE,
    DELETE,
    GONE,
    IS_FOLDER,
    MODIFY,
    MOVED_FROM,
    MOVED_TO,
    NAMES,
    OVERFLOW,
    Event,
    Queue,
    Watch,
)
from session_agent.overlay.nodes import FolderNode
from session_agent.overlay.polling import pressed
from session_agent.overlay.telling import Stale, Telling

if TYPE_CHECKING:
    from session_agent.overlay.expiry import Expiry
    from session_agent.overlay.tree import Tree

_GATHER = 0.01  # seconds that events are gathered before they are read: one save is several
_AT_ONCE = 32  # events handled before others get their turn
_SLACK = 1_000_000_000  # ns that a folder's last change may be older than what was read


class Hearing:
    """The watched folders of a branch. Only the trio thread touches it."""

    def __init__(self, queue: Queue, telling: Telling, tree: Tree, expiry: Expiry) -> None:
        self._queue = queue
        self._telling = telling
        self._counts = telling.counts
        self._tree = tree
        self._expiry = expiry
        self._changed: dict[int, None] = {}  # folders in which names have changed

    def watch(self, folder: FolderNode) -> bool:
        """Watch the folder. False if it has to be looked at instead."""
        queue = self._queue
        if folder.key < 0:
            return True  # it has been removed
        if folder.fd >= 0:
            path = b"/proc/self/fd/%d/." % folder.fd
        elif folder.parent is not None and folder.parent.fd >= 0 and not folder.is_branch_root:
            path = b"/proc/self/fd/%d/%s" % (folder.parent.fd, folder.name)
        else:
            return True  # later, when it is used
        assume(AGENT)
        wd = queue.add(path)
        if wd < 0:
            return queue.has_room()  # else it has gone
        if wd in queue.folders:
            return True  # the same folder is shown twice in a branch: the first one has it
        folder.watch = Watch(queue, wd, self._is_lasting(folder))
        queue.keep(wd, folder)
        self._counts.watched += 1
        if folder.fd < 0 and not self._is_at(folder):
            self.leave(folder)  # something else has come to that name
        return True

    def renewed(self) -> None:
        """The branch was mounted anew."""
        self._queue.renewed()

    def has_room(self) -> bool:
        """Whether one more folder can be watched."""
        return self._queue.has_room()

    def _is_lasting(self, folder: FolderNode) -> bool:
        """Not on another file system that is mounted within the branch, of which nothing is known."""
        here = self._tree.key(folder.branch, self._queue.device, 1)
        return self._queue.exact and (folder.is_branch_root or (folder.key ^ here) >> 48 == 0)

    def _is_at(self, folder: FolderNode) -> bool:
        assert folder.parent is not None
        try:
            status = stat_at(folder.parent.fd, folder.name)
        except OSError:
            return False
        return self._tree.key(folder.branch, status.st_dev, status.st_ino) == folder.key

    def leave(self, folder: FolderNode) -> None:
        """Watch the folder no more."""
        watch = folder.watch
        if isinstance(watch, Watch):
            folder.watch = None
            self._counts.watched -= watch.queue.remove(watch.wd)

    def catch_up(self, folder: FolderNode, changed: int) -> None:
        """Hear whether the folder was removed, if another one with its inode number may have come instead.

        Not if what is there was last `changed` (ns) before the queue was read to its end.
        """
        if folder.fd < 0 and changed > self._queue.read_until - _SLACK:
            self.drain()

    def close(self) -> None:
        """Close the descriptor."""
        self._counts.watched -= len(self._queue.folders)
        self._queue.close()

    # Listening

    async def listen(self) -> None:
        """Read what the kernel tells, until cancelled."""
        queue = self._queue
        while True:
            await trio.lowlevel.wait_readable(queue.fd)
            await trio.sleep(_GATHER)
            with pressed:
                now = time.time_ns()
                while events := queue.take(_AT_ONCE):
                    self._take(events)
                    self._telling.begin()
                    await trio.lowlevel.checkpoint()
                    now = time.time_ns()
            self._end_of_queue(now)

    def drain(self) -> None:
        """Read what has happened until now, while it is known whose doing it is."""
        now = time.time_ns()
        while events := self._queue.take(_AT_ONCE):
            self._take(events)
        self._end_of_queue(now)

    def _end_of_queue(self, until: int) -> None:
        queue = self._queue
        queue.read_until = until
        for watch in queue.expecting:
            watch.own = None
        queue.expecting.clear()
        self._telling.pending.all_gone()
        self._telling.last_words.all_read()
        for folder_id in self._changed:
            self._expiry.attributes(folder_id)
        self._changed.clear()
        self._telling.begin()

    def _take(self, events: list[Event]) -> None:
        queue = self._queue
        for wd, mask, cookie, name in events:
            if mask & OVERFLOW:
                self._counts.dropped += 1
                self._telling.lose(queue.folders.values(), queue.read_until)
                continue
            folder = queue.folders.get(wd)
            if folder is None or not isinstance(folder.watch, Watch):
                continue
            if mask & GONE:
                self._counts.watched -= queue.drop(wd)
                folder.watch = None
                if not folder.is_branch_root and folder.key >= 0:
                    # The kernel says so before it gives the number to another folder.
                    self._tree.disown(folder)
            elif not name:
                self._expiry.attributes(folder.id)
            elif not name.startswith(RESERVED_PREFIX):
                self._event(folder, folder.watch, name, mask, cookie)

    def _event(self, folder: FolderNode, watch: Watch, name: bytes, mask: int, cookie: int) -> None:
        telling = self._telling
        if watch.is_own(name, mask & NAMES) or telling.is_ours(folder, name):
            if mask & MOVED_TO:
                telling.pending.gone(cookie)
            if mask & NAMES:
                telling.told(folder, name)
            return
        if mask & NAMES:
            self._changed[folder.id] = None
            stale = Stale.MADE if mask & CREATE else Stale.CHANGED
            if (
                mask & IS_FOLDER
            ):  # the kernel asks for nothing before it leads through a name or not
                stale = Stale.FORCED
            telling.name_changed(folder, name, stale)
            before = {CREATE: False, MOVED_TO: None}.get(mask & NAMES, True)
            telling.last_words.changed((folder, name), before, bool(mask & IS_FOLDER))
        elif not telling.file_changed(folder, name, closed=bool(mask & CLOSE_WRITE)):
            return
        if not telling.is_hidden(folder, name) and not telling.is_full(
            folder, self._queue.read_until
        ):
            self._gather(folder, name, mask, cookie)

    def _gather(self, folder: FolderNode, name: bytes, mask: int, cookie: int) -> None:
        pending = self._telling.pending
        is_folder = bool(mask & IS_FOLDER)
        known = len(pending)
        if mask & CREATE:
            pending.made(folder, name)
        elif mask & DELETE:
            pending.removed(folder, name, is_folder)
        elif mask & MOVED_FROM:
            pending.left(cookie, folder, name, is_folder)
        elif mask & MOVED_TO:
            pending.arrived(cookie, folder, name)
        elif mask & CLOSE_WRITE:
            pending.closed(folder, name)
        else:
            pending.modified(folder, name, contents=bool(mask & MODIFY))
        self._counts.coalesced += len(pending) <= known and not mask & MOVED_FROM
