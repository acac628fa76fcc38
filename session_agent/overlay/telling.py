"""From what is heard of a branch to what programs are told: gathered, looked at again, announced.

What is found is no hint: events may come late or be lost, and listings are old when they have been read. So
before a change is announced the name is looked at again, and where events were lost, folders are compared
with what the kernel knew.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from session_agent.fsutil.at import stat_at
from session_agent.fsutil.credentials import AGENT, assume
from session_agent.overlay import calls
from session_agent.overlay.announcing import Announcer
from session_agent.overlay.changes import Changed, Pending, Unclosed
from session_agent.overlay.expected import KnownNodes
from session_agent.overlay.polling import elsewhere
from session_agent.overlay.tree import FolderNode, Node, version_of

if TYPE_CHECKING:
    from session_agent.overlay.branches import OpenBranch
    from session_agent.overlay.expiry import Expiry
    from session_agent.overlay.vault import Vault

log = logging.getLogger(__name__)

_AT_ONCE = 64  # changes announced before others get their turn
_SLACK = 1_000_000_000  # ns that a folder's files may be older than the last event that was read


@dataclass
class ForeignCounts:
    """What `session-agent status --json` tells under `foreign`.

    Folders that are `watched` now; local ones that cannot be and are looked at now and then instead
    (`unwatched`); remote ones that are looked at now and then (`polled`), and how often one was (`polls`).
    Changes `announced`, events `coalesced` with an earlier one and `dropped` because there were too many,
    and folders `rescanned` for that.
    """

    watched: int = 0
    unwatched: int = 0
    polled: int = 0
    polls: int = 0
    announced: int = 0
    coalesced: int = 0
    dropped: int = 0
    rescanned: int = 0


class Telling:
    """What is heard of one branch, until it has been told. Only the trio thread touches it.

    `is_ours(folder, name)`: whether it is the vault's own doing what happens at that name.
    """

    def __init__(
        self,
        vault: Vault,
        branch: OpenBranch,
        counts: ForeignCounts,
        expiry: Expiry,
        is_ours: Callable[[FolderNode, bytes], bool],
    ) -> None:
        self.branch = branch
        self.counts = counts
        self.pending = Pending()
        self.unclosed = Unclosed()
        self.new: dict[FolderNode, None] = {}  # to be watched
        self.is_ours = is_ours
        self._vault = vault
        self._expiry = expiry
        self._lost: dict[FolderNode, int] = {}  # to be compared, since when (ns)
        self._doubtful: list[FolderNode] = []  # of what is in them the kernel may remember anything
        self._stale: dict[tuple[int, bytes], None] = {}  # names that the kernel is to look up anew
        self._stale_pages: dict[int, None] = {}
        self._below: list[
            tuple[FolderNode, bytes]
        ] = []  # names, of which nothing below is to be kept
        self._work = trio.Event()
        self._stale_work = trio.Event()

    def is_hidden(self, folder: FolderNode, name: bytes) -> bool:
        """Whether nobody is to hear of that name: a branch is shown there, or a policy hides it."""
        if folder.mounted is not None and name in folder.mounted:
            return True
        limits = self._vault.limits
        return limits is not None and not limits.shown(folder, (name,))

    def is_full(self, folder: FolderNode) -> bool:
        """Whether too much waits to be told: then the folder will be compared."""
        if len(self.pending) < Pending.LIMIT:
            return False
        self.counts.dropped += 1
        self.counts.rescanned += folder not in self._lost
        self._lost.setdefault(folder, time.time_ns() - _SLACK)
        return True

    def lose(self, folders: Iterable[FolderNode], since: int) -> None:
        """What has happened in these folders since then (ns) was not heard of."""
        before = len(self._lost)
        for folder in folders:
            self._doubtful.append(folder)
            self._lost.setdefault(folder, since - _SLACK)
        self.counts.rescanned += len(self._lost) - before

    def begin(self) -> None:
        """There may be something to be told."""
        if self.pending or self._lost or self.new:
            self._work.set()
        if self._stale or self._stale_pages or self._doubtful or self._below:
            self._stale_work.set()

    # What the kernel remembers

    def name_changed(self, folder: FolderNode, name: bytes) -> None:
        """Another file, or none, is at that name: what the kernel remembers of it runs out at once."""
        self._stale[folder.id, name] = None

    def forget_below(self, folder: FolderNode, name: bytes) -> None:
        """A branch hangs there that is not what it was: nothing below that name is true any more."""
        self._below.append((folder, name))
        self.begin()

    def file_changed(self, folder: FolderNode, name: bytes, *, closed: bool) -> bool:
        """Likewise for a file's contents and attributes. False if that is no news to programs.

        `closed`: all that is known is that somebody has closed it who could write to it.
        """
        if (folder.id, name) in self._stale:
            return True
        try:
            assume(AGENT)
            status = stat_at(folder.fd, name)
        except FileNotFoundError:
            return False  # of that it went others have told
        except OSError:  # the folder is to be opened first
            self.name_changed(folder, name)
            return True
        tree = self._vault.tree
        key = tree.key(self.branch, status.st_dev, status.st_ino)
        node = tree.find(key)
        if node is None:
            self.name_changed(folder, name)
            return True
        if node.announced == version_of(status):
            return closed and key in self.unclosed
        node.cached_version = None
        self._expiry.attributes(node.id)
        if node.handles:
            self._stale_pages[node.id] = None
        return True

    async def expire(self) -> None:
        """Make what is stale run out in the kernel, until cancelled.

        In a thread, since the kernel may have to wait for us; and at once, while telling may take its time.
        """
        while True:
            await self._stale_work.wait()
            self._stale_work = trio.Event()
            names, self._stale = list(self._stale), {}
            pages, self._stale_pages = list(self._stale_pages), {}
            folders, self._doubtful = self._doubtful, []
            below, self._below = [(folder.id, name) for folder, name in self._below], []
            if below:
                folders = [
                    node
                    for node in self._vault.tree.nodes()
                    if isinstance(node, FolderNode) and node.branch is self.branch
                ]
            nodes = [folder.id for folder in folders]
            for (folder_id, name), node in (await self._known(folders) if folders else {}).items():
                names.append((folder_id, name))
                nodes.append(node.id)
                node.cached_version = None
            with elsewhere:
                expire = partial(self._expire, below, names, nodes, pages)
                await trio.to_thread.run_sync(expire, abandon_on_cancel=True)

    def _expire(
        self,
        below: list[tuple[int, bytes]],
        names: list[tuple[int, bytes]],
        nodes: list[int],
        pages: list[int],
    ) -> None:
        for folder_id, name in below:
            self._expiry.everything_below(folder_id, name)
        for node_id in nodes:
            self._expiry.attributes(node_id)
        for folder_id, name in names:
            self._expiry.name(folder_id, name)
        for node_id in pages:
            self._expiry.pages(node_id)

    # Telling

    async def tell(self, announcer: Announcer, watch: Callable[[FolderNode], None]) -> None:
        """Tell what is heard, and `watch` what is new, until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self.new or self.pending or self._lost:
                for folder in list(self.new)[:_AT_ONCE]:
                    self.new.pop(folder, None)
                    if folder.lookups > 0:
                        watch(folder)
                changes = self.pending.take(_AT_ONCE)
                if changes:
                    await self._announce(announcer, changes)
                elif self._lost:
                    lost = [self._lost.popitem() for _ in range(min(len(self._lost), _AT_ONCE))]
                    await self._compare(lost)
                await trio.lowlevel.checkpoint()

    async def _announce(self, announcer: Announcer, changes: list[Changed]) -> None:
        gone = {change.folder for change in changes if change.removed or change.source is not None}
        old = await self._known(gone) if gone else {}
        changes = [
            change
            for change in changes
            if change.folder.lookups > 0 and self._vault.background.above(change.folder) is None
        ]
        with elsewhere:
            self.counts.announced += await announcer.announce(changes, old)

    async def _known(self, folders: Iterable[FolderNode]) -> KnownNodes:
        """The nodes that the kernel knows in these folders."""
        wanted = {folder.id for folder in folders}
        known: KnownNodes = {}
        for index, node in enumerate(list(self._vault.tree.nodes())):
            if index % 1000 == 999:
                await trio.lowlevel.checkpoint()
            parent = node.parent
            if parent is not None and parent.id in wanted and node.lookups > 0 and node.key > 0:
                known[parent.id, node.name] = node
        return known

    async def _compare(self, lost: list[tuple[FolderNode, int]]) -> None:
        """Find out what events would have told of these folders, each since then (ns)."""
        everything = await self._known(folder for folder, _ in lost)
        known: dict[int, dict[bytes, Node]] = {}
        for (folder_id, name), node in everything.items():
            known.setdefault(folder_id, {})[name] = node
        for folder, since in lost:
            try:
                found = await self.look(folder)
            except OSError as failure:
                log.info("a folder cannot be compared: %s", failure.strerror)
                continue
            before = known.get(folder.id, {})
            for name in {*before, *found}:
                if not self.is_ours(folder, name) and not self.is_hidden(folder, name):
                    self._compare_one(folder, name, before.get(name), found.get(name), since)
            self.begin()

    async def look(self, folder: FolderNode) -> dict[bytes, os.stat_result]:
        """What is in the folder: the status of each entry. Asked for in a thread."""
        fd = os.dup(await self._vault.folder_fd(folder))
        try:
            return await self.branch.call_slowly(AGENT, calls.everything_in, fd)
        finally:
            self.branch.close_later(fd)

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
            self.pending.removed(folder, name, is_folder)
            return
        if status.st_ctime_ns < since:
            return
        key = self._vault.tree.key(folder.branch, status.st_dev, status.st_ino)
        if node is None or node.key != key:
            self.name_changed(folder, name)  # that there is nothing, perhaps
            if node is not None:
                self.pending.removed(folder, name, is_folder)
            self.pending.made(folder, name)
        elif not is_folder and node.announced != version_of(status):
            self.pending.modified(folder, name, contents=True)
