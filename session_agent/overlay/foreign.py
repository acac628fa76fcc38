"""Changes made behind the vault: heard of through inotify, and turned into what a local change would be.

A folder is watched as soon as the kernel is told of it, so that a large tree does not delay the start.

What the vault itself does comes back as events, too. They are told apart like this:

- names: an operation on a local branch notes what it has made, removed or renamed (`Watch.expect`). The
  kernel queues an event within the call that causes it, so once the queue has been read to its end, whatever
  was noted before has come; the notes are then dropped.
- contents and attributes: a node keeps the version up to which programs have been told (`Node.announced`).
- moves, whose calls are made in threads: both names are claimed until the move has ended (`ours`), and
  reserved names are nobody's.

Events are hints. What is announced is looked at again first, and where events were lost, folders are
compared.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from session_agent.fsutil.at import stat_at
from session_agent.fsutil.credentials import AGENT, assume
from session_agent.moves.names import RESERVED_PREFIX
from session_agent.overlay import calls
from session_agent.overlay.announcing import Announcer, KnownNodes
from session_agent.overlay.changes import Changed, Pending
from session_agent.overlay.inotify import (
    CREATE,
    DELETE,
    GONE,
    IS_FOLDER,
    MODIFY,
    MOVED_FROM,
    MOVED_TO,
    NAMES,
    OVERFLOW,
    Queue,
    Watch,
    events_in,
)
from session_agent.overlay.polling import elsewhere
from session_agent.overlay.tree import FolderNode, Node, version_of

if TYPE_CHECKING:
    from session_agent.overlay.branches import OpenBranch
    from session_agent.overlay.vault import Vault

log = logging.getLogger(__name__)

_GATHER = 0.01  # seconds that events are gathered before they are read: one save is several
_AT_ONCE = 64  # changes announced, folders watched, before others get their turn
_SLACK = 1_000_000_000  # ns that a folder's files may be older than the last event that was read


@dataclass
class ForeignCounts:
    """What `session-agent status --json` tells under `foreign`.

    Folders that are `watched` now, and times that one could not be (`unwatched`); changes `announced`, events
    `coalesced` with an earlier one, and folders `rescanned` because events were lost.
    """

    watched: int = 0
    unwatched: int = 0
    announced: int = 0
    coalesced: int = 0
    rescanned: int = 0


class Foreign:
    """Hears of foreign changes and has them announced. Only the trio thread touches it."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.counts = ForeignCounts()
        self.announcer = Announcer(vault)
        self._queues: dict[OpenBranch, Queue] = {}
        self._new: dict[FolderNode, None] = {}  # to be watched
        self._pending = Pending()
        self._lost: dict[FolderNode, int] = {}  # to be compared, since when (ns)
        self._claims: Counter[tuple[FolderNode, bytes]] = Counter()
        self._work = trio.Event()
        self.active = False

    def open(self) -> None:
        """Before the vault is mounted. Branches for which there is no inotify instance go without events."""
        for branch in self._vault.branches:
            if not branch.remote and branch.fd >= 0:
                try:
                    self._queues[branch] = Queue(branch)
                except OSError as failure:
                    log.warning("%s is not watched: %s", branch.info.name, failure.strerror)
        self.active = bool(self._queues)
        self._vault.tree.on_leave = self.leave
        self._vault.tree.catch_up = self._catch_up
        for folder in (self._vault.tree.root, *self._vault.branch_roots):
            self.watch(folder)

    async def run(self, mountpoint: str) -> None:
        """Listen and announce, until cancelled."""
        if not self.active or not self.announcer.find(mountpoint):
            self.active = False
            return
        async with trio.open_nursery() as nursery:
            for queue in self._queues.values():
                nursery.start_soon(self._listen, queue)
            nursery.start_soon(self._announce)

    def close(self) -> None:
        """Close every descriptor."""
        self.active = False
        for queue in self._queues.values():
            os.close(queue.fd)
        self._queues.clear()

    # What the vault does itself

    @contextlib.contextmanager
    def ours(self, *places: tuple[FolderNode, bytes]) -> Iterator[None]:
        """What happens at these names within the block is the vault's own doing, in a thread perhaps."""
        self._claims.update(places)
        try:
            yield
        finally:
            for branch in {folder.branch for folder, _ in places}:
                self.drain(branch)
            self._claims.subtract(places)
            self._claims = +self._claims

    def drain(self, branch: OpenBranch) -> None:
        """Read what has happened until now, while it is known to be the vault's own doing."""
        queue = self._queues.get(branch)
        if queue is not None:
            now = time.time_ns()
            while data := queue.read():
                self._take(queue, data)
            queue.read_until = now
            self._end_of_queue(queue)

    def _is_hidden(self, folder: FolderNode, name: bytes) -> bool:
        """Whether nobody is to hear of that name: a branch is shown there, or a policy hides it."""
        if folder.mounted is not None and name in folder.mounted:
            return True
        limits = self._vault.limits
        return limits is not None and not limits.shown(folder, (name,))

    def _is_claimed(self, folder: FolderNode, name: bytes) -> bool:
        shifted = folder.shifted
        if shifted is not None and (name in shifted.arrivals or name in shifted.departures):
            return True
        return (folder, name) in self._claims

    # Watching

    def watch(self, folder: FolderNode) -> None:
        """The kernel is told of this folder: programs may want to hear what happens in it."""
        if self.active and folder.watch is None:
            self._watch(folder)

    def watch_soon(self, folder: FolderNode) -> None:
        """As `watch`, where many come at once."""
        if self.active and folder.watch is None:
            self._new[folder] = None
            self._work.set()

    def _watch(self, folder: FolderNode) -> None:
        queue = self._queues.get(folder.branch)
        if queue is None or folder.key < 0:
            return
        if folder.fd >= 0:
            path = b"/proc/self/fd/%d/." % folder.fd
        elif folder.parent is not None and folder.parent.fd >= 0 and not folder.is_branch_root:
            path = b"/proc/self/fd/%d/%s" % (folder.parent.fd, folder.name)
        else:
            return
        assume(AGENT)
        wd = queue.add(path)
        if wd < 0:
            self.counts.unwatched += 1
            return
        if wd in queue.folders:
            return  # the same folder is shown twice in a branch: the first one has it
        folder.watch = Watch(queue, wd)
        queue.folders[wd] = folder
        self.counts.watched += 1
        if folder.fd < 0 and not self._is_at(folder):
            self.leave(folder)  # something else has come to that name

    def _is_at(self, folder: FolderNode) -> bool:
        assert folder.parent is not None
        try:
            status = stat_at(folder.parent.fd, folder.name)
        except OSError:
            return False
        tree = self._vault.tree
        return tree.key(folder.branch, status.st_dev, status.st_ino) == folder.key

    def leave(self, folder: FolderNode) -> None:
        """The folder is not known to the kernel any more, or has come to another branch."""
        self._new.pop(folder, None)
        watch, folder.watch = folder.watch, None
        if watch is not None and watch.queue.remove(watch.wd):
            self.counts.watched -= 1

    def _catch_up(self, folder: FolderNode, changed: int) -> None:
        """Hear whether the folder was removed, if another one with its inode number may have come instead.

        Not if what is there was last `changed` (ns) before the queue was read to its end.
        """
        queue = self._queues.get(folder.branch)
        if queue is not None and folder.fd < 0 and changed > queue.read_until - _SLACK:
            self.drain(folder.branch)

    # Listening

    async def _listen(self, queue: Queue) -> None:
        while True:
            await trio.lowlevel.wait_readable(queue.fd)
            await trio.sleep(_GATHER)
            while True:
                now = time.time_ns()
                data = queue.read()
                if not data:
                    break
                self._take(queue, data)
                await trio.lowlevel.checkpoint()
            queue.read_until = now
            self._end_of_queue(queue)

    def _end_of_queue(self, queue: Queue) -> None:
        for folder, name, is_folder in queue.left.values():  # moved out of what is watched
            self._pending.removed(folder, name, is_folder)
        queue.left.clear()
        for watch in queue.expecting:
            watch.own = None
        queue.expecting.clear()
        if self._pending or self._lost or self._new:
            self._work.set()

    def _take(self, queue: Queue, data: bytes) -> None:
        for wd, mask, cookie, name in events_in(data):
            if mask & OVERFLOW:
                self.counts.rescanned += len(queue.folders)
                since = queue.read_until - _SLACK
                self._lost.update(dict.fromkeys(queue.folders.values(), since))
                continue
            folder = queue.folders.get(wd)
            if folder is None or folder.watch is None:
                continue
            if mask & GONE:
                queue.folders.pop(wd, None)
                folder.watch = None
                self.counts.watched -= 1
                if not folder.is_branch_root and folder.key >= 0:
                    # The kernel says so before it gives the number to another folder.
                    self._vault.tree.disown(folder)
            elif name and not name.startswith(RESERVED_PREFIX):
                self._event(folder, folder.watch, name, mask, cookie)

    def _event(self, folder: FolderNode, watch: Watch, name: bytes, mask: int, cookie: int) -> None:
        left = watch.queue.left
        if watch.is_own(name, mask & NAMES) or self._is_claimed(folder, name):
            if mask & MOVED_TO:
                left.pop(cookie, None)
            return
        if self._is_hidden(folder, name):
            return
        if len(self._pending) >= Pending.LIMIT:
            self.counts.rescanned += folder not in self._lost
            self._lost.setdefault(folder, time.time_ns() - _SLACK)
            return
        is_folder = bool(mask & IS_FOLDER)
        known = len(self._pending)
        if mask & CREATE:
            self._pending.made(folder, name)
        elif mask & DELETE:
            self._pending.removed(folder, name, is_folder)
        elif mask & MOVED_FROM:
            left[cookie] = (folder, name, is_folder)
        elif mask & MOVED_TO:
            source = left.pop(cookie, None)
            self._pending.renamed(None if source is None else source[:2], folder, name)
        else:
            self._pending.modified(folder, name, contents=bool(mask & MODIFY))
        self.counts.coalesced += len(self._pending) <= known and not mask & MOVED_FROM

    # Announcing

    async def _announce(self) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._new or self._pending or self._lost:
                for folder in list(self._new)[:_AT_ONCE]:
                    self._new.pop(folder, None)
                    if folder.lookups > 0:
                        self.watch(folder)
                changes = self._pending.take(_AT_ONCE)
                if changes:
                    await self._announce_some(changes)
                elif self._lost:
                    folder, since = self._lost.popitem()
                    await self._compare(folder, since)
                await trio.lowlevel.checkpoint()

    async def _announce_some(self, changes: list[Changed]) -> None:
        old = await self._known({change.folder for change in changes})
        changes = [
            change
            for change in changes
            if change.folder.lookups > 0 and self._vault.background.above(change.folder) is None
        ]
        with elsewhere:
            self.counts.announced += await self.announcer.announce(changes, old)

    async def _known(self, folders: Iterable[FolderNode]) -> KnownNodes:
        """The nodes that the kernel knows in these folders."""
        wanted = {folder.id for folder in folders}
        known: KnownNodes = {}
        for index, node in enumerate(list(self._vault.tree.nodes())):
            if index % 5000 == 4999:
                await trio.lowlevel.checkpoint()
            parent = node.parent
            if parent is not None and parent.id in wanted and node.lookups > 0 and node.key > 0:
                known[parent.id, node.name] = node
        return known

    async def _compare(self, folder: FolderNode, since: int) -> None:
        """Find out what events would have told of this folder since then (ns)."""
        try:
            fd = os.dup(await self._vault.folder_fd(folder))
        except OSError:
            return

        def look() -> dict[bytes, os.stat_result]:
            assume(AGENT)
            return calls.everything_in(fd)

        try:
            with elsewhere:
                found = await trio.to_thread.run_sync(look)
        except OSError as failure:
            log.info("a folder cannot be compared: %s", failure.strerror)
            return
        finally:
            os.close(fd)
        known = {name: node for (_, name), node in (await self._known([folder])).items()}
        for name in {*known, *found}:
            if not self._is_claimed(folder, name) and not self._is_hidden(folder, name):
                self._compare_one(folder, name, known.get(name), found.get(name), since)

    def _compare_one(
        self,
        folder: FolderNode,
        name: bytes,
        node: Node | None,
        status: os.stat_result | None,
        since: int,
    ) -> None:
        is_folder = isinstance(node, FolderNode)
        if status is None:
            self._pending.removed(folder, name, is_folder)
            return
        if status.st_ctime_ns < since:
            return
        key = self._vault.tree.key(folder.branch, status.st_dev, status.st_ino)
        if node is None or node.key != key:
            if node is not None:
                self._pending.removed(folder, name, is_folder)
            self._pending.made(folder, name)
        elif not is_folder and node.announced != version_of(status):
            self._pending.modified(folder, name, contents=True)
