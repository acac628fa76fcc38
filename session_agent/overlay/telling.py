"""From what is heard of a branch to what programs are told: gathered, looked at again, announced.

What is found is no hint: events may come late or be lost, and listings are old when they have been read. So
before a change is announced the name is looked at again, and where events were lost, folders are compared
with what the kernel knew.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import TYPE_CHECKING

import trio

from session_agent.fsutil.at import stat_at
from session_agent.fsutil.credentials import AGENT, assume
from session_agent.fsutil.syscalls import born_at
from session_agent.overlay import calls
from session_agent.overlay.announcing import Announcer
from session_agent.overlay.changes import Changed, Forgotten, Pending, Unclosed, Was
from session_agent.overlay.counts import ForeignCounts
from session_agent.overlay.expected import KnownNodes
from session_agent.overlay.last_words import LastWords, Word
from session_agent.overlay.nodes import FolderNode, Place, version_of

if TYPE_CHECKING:
    from session_agent.overlay.branches import OpenBranch
    from session_agent.overlay.expiry import Absent, Expiry
    from session_agent.overlay.vault import Vault

log = logging.getLogger(__name__)

_TOLD_AGAIN = 3  # times at most; there are folders in which the agent may not announce anything
_AT_ONCE = 64  # changes announced before others get their turn
_FEW = 256  # changes that are to be told
_SLACK = 1_000_000_000  # ns that files may be older than what happened to them


class Stale(IntEnum):
    """How much is to be done about a name that may not be what the kernel remembers."""

    MADE = 1  # there was nothing: only if that is remembered
    CHANGED = 2  # something else is there, or nothing any more
    FORCED = 3  # it may be remembered for longer than it may


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
        absent: Absent,
        is_ours: Callable[[FolderNode, bytes], bool],
    ) -> None:
        self.branch = branch
        self.counts = counts
        self.pending = Pending()
        self.unclosed = Unclosed()
        self.forgotten = Forgotten()
        self.last_words = LastWords()
        self.new: dict[FolderNode, None] = {}  # to be watched
        self.is_ours = is_ours
        self.hear_all: Callable[[], None] = lambda: None  # that has happened until now
        self._vault = vault
        self._expiry = expiry
        self._absent = absent
        self._lost: dict[FolderNode, int] = {}  # to be compared, since when (ns)
        self._doubtful: list[FolderNode] = []  # of what is in them the kernel may remember anything
        self._below: list[FolderNode] = []  # roots of branches, likewise for all below them
        self._stale: dict[Place, Stale] = {}  # names that are to run out
        self._overdue = False  # some of them have not run out by being told of
        self._work = trio.Event()

    def is_hidden(self, folder: FolderNode, name: bytes) -> bool:
        """Whether nobody is to hear of that name: a branch is shown there, or a policy hides it."""
        if folder.mounted is not None and name in folder.mounted:
            return True
        return self._is_forbidden(folder, name)

    def _is_forbidden(self, folder: FolderNode, name: bytes) -> bool:
        limits = self._vault.limits
        return limits is not None and not limits.shown(folder, (name,))

    def is_full(self, folder: FolderNode, since: int) -> bool:
        """Whether too much waits to be told. Then the folder is compared, for all that has happened `since`.

        Until then nothing more is gathered of it: a file of which only a later event was told would pass for
        one that is known.
        """
        if len(self.pending) < Pending.LIMIT and folder not in self._lost:
            return False
        self.counts.dropped += 1
        self.counts.rescanned += folder not in self._lost
        self._lost.setdefault(folder, since)
        return True

    def lose(self, folders: Iterable[FolderNode], since: int) -> None:
        """What has happened in these folders since then (ns) was not heard of."""
        before = len(self._lost)
        for folder in folders:
            self._doubtful.append(folder)
            self._lost.setdefault(folder, since)
        self.counts.rescanned += len(self._lost) - before

    def begin(self) -> None:
        """There may be something to be told."""
        waiting = (self.pending, self._lost, self.new, self._stale, self._doubtful, self._below)
        if any(waiting):
            self._work.set()

    # What the kernel remembers

    def name_changed(self, folder: FolderNode, name: bytes, stale: Stale) -> None:
        """What the kernel remembers of that name runs out, when it is told of or before."""
        known = self._stale.get((folder, name), stale)
        self._stale[folder, name] = max(known, stale)

    def forget_below(self, root: FolderNode) -> None:
        """The root's branch is not what it was: nothing that is remembered of it is true any more."""
        self._below.append(root)
        self.begin()

    def file_changed(self, folder: FolderNode, name: bytes, *, closed: bool) -> bool:
        """A file's contents and attributes run out. False if that is no news to programs.

        `closed`: all that is known is that somebody has closed it who could write to it.
        """
        if (folder, name) in self._stale:
            return True
        try:
            assume(AGENT)
            status = stat_at(folder.fd, name)
        except FileNotFoundError:
            return False  # of that it went others have told
        except OSError:  # the folder is to be opened first
            self.name_changed(folder, name, Stale.CHANGED)
            return True
        tree = self._vault.tree
        key = tree.key(self.branch, status.st_dev, status.st_ino)
        node = tree.find(key)
        if node is None:
            self.name_changed(folder, name, Stale.CHANGED)
            return True
        if node.announced == version_of(status):
            return closed and key in self.unclosed
        node.cached_version = None
        self._expiry.attributes(node.id)
        return True

    async def _expire(self, announcer: Announcer) -> None:
        """What is stale runs out."""
        folders, self._doubtful = self._doubtful, []
        below, self._below = self._below, []
        if below:
            nodes = self._vault.tree.nodes()
            folders += [
                node
                for node in nodes
                if isinstance(node, FolderNode) and node.branch is self.branch
            ]
        stale, self._stale = self._stale, {}
        self._overdue = False
        known = await self._known({*folders, *(folder for folder, _ in stale)})
        for folder in folders:
            self._expiry.attributes(folder.id)
            for name in self._absent.names_in(folder.id) if below else ():
                stale[folder, name] = Stale.FORCED
        doubtful = {folder.id for folder in folders}
        for (folder_id, name), node in known.items():
            if folder_id in doubtful and node.parent is not None:
                stale.setdefault((node.parent, name), Stale.CHANGED)
        await announcer.refresh(
            [place for place, how in stale.items() if self._is_to_be_looked_up(place, how, known)]
        )

    def _is_to_be_looked_up(self, place: Place, how: Stale, known: KnownNodes) -> bool:
        """Whether it is not enough that the attributes run out, which is done here."""
        folder, name = place
        if self._is_forbidden(folder, name):  # the kernel was never told of it
            return False
        # Of a branch that is away it cannot be looked up: it stays in the list until it can.
        absent = how is Stale.FORCED or self._absent.pop(folder.id, name)
        node = known.get((folder.id, name))
        if node is None:
            return absent or how is not Stale.MADE
        node.cached_version = None
        self._expiry.attributes(node.id)
        # What has an open descriptor answers for itself, whatever is at its name.
        kept = isinstance(node, FolderNode) or bool(node.handles) or node.fd >= 0
        return kept or absent

    # Telling

    async def tell(self, announcer: Announcer, watch: Callable[[FolderNode], None]) -> None:
        """Tell what is heard, and `watch` what is new, until cancelled."""
        while True:
            with trio.move_on_at(self.last_words.first_due()):
                await self._work.wait()
            self._work = trio.Event()
            while self._has_work():
                await self._check_last_words()
                for folder in list(self.new)[:_AT_ONCE]:
                    self.new.pop(folder, None)
                    if folder.lookups > 0:
                        watch(folder)
                if self._is_to_expire():
                    await self._expire(announcer)
                changes = self.pending.take(_AT_ONCE)
                if changes:
                    await self._announce(announcer, changes)
                # Not only when nothing else is to be told: somebody may write all the time.
                if self._lost and len(self.pending) <= Pending.LIMIT // 2:
                    await self._compare(self._take_lost())
                await trio.lowlevel.checkpoint()

    def _has_work(self) -> bool:
        if self.last_words.first_due() <= trio.current_time():
            return True
        return any((self.pending, self._lost, self.new)) or self._is_to_expire()

    def _is_to_expire(self) -> bool:
        """Not while it is told of in a moment, by which a name is looked up anew as well."""
        if self._doubtful or self._below or self._overdue:
            return True
        return bool(self._stale) and not 0 < len(self.pending) <= _AT_ONCE

    async def _announce(self, announcer: Announcer, changes: list[Changed]) -> None:
        gone = {change.folder for change in changes if change.removed or change.source is not None}
        gone |= {change.source[0] for change in changes if change.source is not None}
        old = await self._known(gone) if gone else {}
        changes = [
            change
            for change in changes
            if change.folder.lookups > 0 and self._vault.background.above(change.folder) is None
        ]
        stale: dict[Place, Stale] = {}
        for change in changes:
            for place in change.places:
                self._take_stale(place, stale)
        announced = await announcer.announce(changes, old)
        self.counts.announced += len(announced)
        for change in announced:
            if change.removed or change.replaced:  # the kernel has looked the names up for that
                for place in change.places:
                    stale.pop(place, None)
        for place, how in stale.items():
            self.name_changed(*place, how)
            self._overdue = True

    async def _check_last_words(self) -> None:
        """Have programs told how things are at names of which they have heard last something else."""
        if len(self.pending) > _FEW:
            return
        for folder, _ in self.last_words.due(_AT_ONCE):
            with contextlib.suppress(OSError):
                await self._vault.folder_fd(folder)
        if not self.last_words.due(1):
            return
        self.hear_all()  # in the same step as what follows
        assume(AGENT)
        to_be_told = self.pending.places()
        for place in self.last_words.due(_AT_ONCE):
            word = self.last_words.pop(place)
            if place in to_be_told:
                self.last_words.wait(place, word)
            else:
                self._check_last_word(place, word)

    def _check_last_word(self, place: Place, word: Word) -> None:
        folder, name = place
        if word.there is None or word.told_again == _TOLD_AGAIN or self.is_hidden(folder, name):
            return
        if folder.lookups <= 0 or folder.key < 0 or folder.fd < 0:  # nobody listens
            return
        if self.is_ours(folder, name):
            self.last_words.wait(place, word)
            return
        there = _is_there(folder.fd, name)
        if there is None or there is word.there:
            return
        word.told_again += 1
        self.last_words.wait(place, word)
        if there:
            self.pending.made(folder, name)
        else:
            self.pending.removed(folder, name, word.was_folder)

    def told(self, folder: FolderNode, name: bytes) -> None:
        """A program in the vault has changed what is at that name."""
        self.pending.told(folder, name)
        self.forgotten.discard(folder, name)

    def _take_stale(self, place: Place, stale: dict[Place, Stale]) -> None:
        folder, name = place
        self.forgotten.discard(folder, name)
        if place in self._stale:
            stale[place] = self._stale.pop(place)
        if self._absent.pop(folder.id, name):
            stale[place] = Stale.FORCED

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

    def _take_lost(self) -> list[tuple[FolderNode, int]]:
        return [self._lost.popitem() for _ in range(min(len(self._lost), _AT_ONCE))]

    async def _compare(self, lost: list[tuple[FolderNode, int]]) -> None:
        """Find out what events would have told of these folders, each since then (ns)."""
        everything = await self._known(folder for folder, _ in lost)
        known = {folder.id: dict(self.forgotten.of(folder)) for folder, _ in lost}
        for (folder_id, name), node in everything.items():
            known[folder_id][name] = Was(node.key, isinstance(node, FolderNode), node)
        for folder, since in lost:
            try:
                found = await self.look(folder)
            except OSError as failure:
                log.info("a folder cannot be compared: %s", failure.strerror)
                continue
            before = known[folder.id]
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
        was: Was | None,
        status: os.stat_result | None,
        since: int,
    ) -> None:
        if status is None:
            was_folder = was is not None and was.is_folder
            self.last_words.changed((folder, name), None, was_folder)
            self.pending.removed(folder, name, was_folder)
            return
        if status.st_ctime_ns < since - _SLACK:
            return
        key = self._vault.tree.key(folder.branch, status.st_dev, status.st_ino)
        if was is None or was.key != key:
            self.name_changed(folder, name, Stale.CHANGED if was else Stale.MADE)
            self.last_words.changed((folder, name), None)
            if was is not None:
                self.pending.removed(folder, name, was.is_folder)
            self.pending.made(folder, name)
            return
        announced = None if was.node is None else was.node.announced
        if was.node is not None and announced is None and self._is_born_since(folder, name, since):
            self.pending.made(folder, name)  # a program has come upon it, but none was told
        elif not was.is_folder and announced != version_of(status):
            self.pending.modified(folder, name, contents=True)

    def _is_born_since(self, folder: FolderNode, name: bytes, since: int) -> bool:
        try:
            assume(AGENT)
            return born_at(folder.fd, name) >= since
        except OSError:  # it has gone, of which others tell
            return False


def _is_there(folder_fd: int, name: bytes) -> bool | None:
    try:
        stat_at(folder_fd, name)
    except FileNotFoundError:
        return False
    except OSError:  # the disk does not say: nothing is to be told to be gone for that
        return None
    return True
