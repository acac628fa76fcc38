"""What the kernel is to find, and to be answered, during the calls that the herald makes (see heralding).

The requests arrive while one of its threads is within its call. That thread is known by its id, which the
kernel gives with each request and nobody can forge; the call, by the number in the memory that both share.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from enum import Enum, auto
from errno import ENOENT, EPERM
from typing import TYPE_CHECKING, TypeAlias

import pyfuse3

from session_agent.fsutil.at import stat_at
from session_agent.fsutil.credentials import AGENT
from session_agent.overlay.changes import Changed
from session_agent.overlay.heralding import (
    LOOK_GONE,
    LOOK_THERE,
    MAKE,
    MAKE_SOURCE,
    OPEN,
    REMOVE,
    RENAME,
    TOUCH,
    VERB_BITS,
)
from session_agent.overlay.nodes import REMOVED, FolderNode, Node, version_of

if TYPE_CHECKING:
    from session_agent.overlay.vault import Entry, Vault

KnownNodes = dict[tuple[int, bytes], Node]
"""What the kernel knew, by the number of the folder and the name in it."""


class Seen(Enum):
    """What the kernel is to find at a name during a step."""

    ABSENT = auto()
    GONE = auto()  # what was there before
    GONE_IF_KNOWN = auto()  # that, or nothing
    THERE = auto()  # what is there now, under the change's own name


@dataclass(frozen=True, slots=True)
class Step:
    """A system call of the thread: the request that it is to end in, and what its lookups are to find."""

    verb: str
    change: Changed
    seen: dict[tuple[int, bytes], Seen] = field(default_factory=dict)
    shown: set[tuple[int, bytes]] = field(
        default_factory=set
    )  # gone, and looked up as if it were there


_VERBS = {
    REMOVE: "remove",
    MAKE: "make",
    MAKE_SOURCE: "make",
    RENAME: "rename",
    TOUCH: "touch",
    OPEN: "open",
    LOOK_GONE: "look",
    LOOK_THERE: "look",
}


class Expected:
    """The requests that are expected of one of the herald's threads.

    `steps`: the memory that is shared with it; the thread's number is at `index`.
    """

    def __init__(self, vault: Vault, steps: memoryview[int], index: int) -> None:
        self._vault = vault
        self._numbers = steps
        self._index = index
        self._changes: list[Changed] = []
        self._steps: dict[int, Step] = {}
        self.old: KnownNodes = {}

    def begin(self, changes: list[Changed]) -> None:
        """The thread is about to be given these."""
        self._changes = changes
        self._steps.clear()

    @property
    def step(self) -> Step | None:
        """The call that the thread is in, if it is one that tells of a change."""
        number = self._numbers[self._index]
        verb = _VERBS.get(number & (1 << VERB_BITS) - 1)
        if verb is None or number >> VERB_BITS >= len(self._changes):
            return None
        step = self._steps.get(number)
        if step is None:
            change = self._changes[number >> VERB_BITS]
            place = change.folder.id, change.name
            source = None if change.source is None else (change.source[0].id, change.source[1])
            seen = _seen(number & (1 << VERB_BITS) - 1, place, source)
            self._steps[number] = step = Step(verb, change, seen)
        return step

    async def status(self, folder: FolderNode, name: bytes) -> os.stat_result | None:
        """The status of what lies there; None if nothing does."""
        try:
            fd = await self._vault.folder_fd(folder)
            return await folder.branch.call(AGENT, stat_at, fd, name)
        except OSError:
            return None

    async def lookup(self, parent_id: int, name: bytes) -> Entry | None:
        """What the kernel is to find at this name for the step; None: whatever is there.

        FUSEError ENOENT, which the kernel does not keep, if it is to find nothing: other programs must not
        miss the file for a moment. They wait for the step's call, which has the folder locked.
        """
        step = self.step
        seen = None if step is None else step.seen.get((parent_id, name))
        if step is None or seen is None:
            return None
        if seen is Seen.THERE:
            assert step.change.source is not None
            if await self.status(*step.change.source) is not None:
                raise pyfuse3.FUSEError(ENOENT)
            return await self._there(step)
        if seen is Seen.ABSENT:
            raise pyfuse3.FUSEError(ENOENT)
        change = step.change
        if not change.replaced and await self.status(change.folder, change.name) is not None:
            raise pyfuse3.FUSEError(
                ENOENT
            )  # made anew meanwhile, which programs hear of in its own way
        step.shown.add((parent_id, name))
        old = self.old.get((change.folder.id, change.name))
        if old is not None and await self._is_gone(old, change):
            handles = old.handles or ()
            fd = handles[0].fd if handles else old.fd
            return old, await self._status_of(old, fd)
        if seen is Seen.GONE_IF_KNOWN:
            raise pyfuse3.FUSEError(ENOENT)
        file_format = stat.S_IFDIR if change.was_folder else stat.S_IFREG
        stand_in = _stand_in(file_format)
        return self._vault.tree.stand_in(change.folder, change.name, stand_in), stand_in

    async def _status_of(self, old: Node, fd: int) -> os.stat_result:
        return _stand_in(old.format) if fd < 0 else await old.branch.call(AGENT, os.fstat, fd)

    async def _is_gone(self, old: Node, change: Changed) -> bool:
        """Whether the old node can be removed in the kernel's eyes: it is known, and lies nowhere else."""
        if old.lookups <= 0 or isinstance(old, FolderNode) is not change.was_folder:
            return False
        if isinstance(old, FolderNode):
            # A folder that was moved elsewhere would be taken for a removed one for good.
            return old.fd >= 0 and (await self._status_of(old, old.fd)).st_nlink == 0
        status = await self.status(change.folder, change.name)
        if status is None:
            return True
        tree = self._vault.tree
        return tree.key(change.folder.branch, status.st_dev, status.st_ino) != old.key

    async def answer(self, verb: str, parent_id: int, name: bytes) -> Entry:
        """The request for the step's call is answered. EPERM for any other."""
        step = self.step
        if step is None or step.verb != verb:
            raise _error(EPERM)
        source = step.change.source
        place = step.change.folder, step.change.name
        if verb == "make" and source is not None and (source[0].id, source[1]) == (parent_id, name):
            if await self.status(*source) is not None:
                raise _error(ENOENT)
        elif (place[0].id, place[1]) != (parent_id, name):
            raise _error(EPERM)
        if verb == "remove":
            # Where a program has made the name anew, the kernel must not remove that.
            if (parent_id, name) not in step.shown and await self.status(*place) is not None:
                raise _error(ENOENT)
            if (old := self.old.get((parent_id, name))) is not None:
                old.announced = REMOVED
            return step.change.folder, _stand_in(stat.S_IFDIR)
        if verb == "rename" and source is not None and await self.status(*source) is not None:
            raise _error(ENOENT)  # the name is another file's by now
        return await self._there(step)

    def concerns(self, verb: str, node: Node) -> bool:
        """Whether the request to open the node's file, or to change its times, is the step's."""
        step = self.step
        if step is None or step.verb != verb or node.parent is None:
            return False
        # By number: a folder that the kernel has forgotten meanwhile has another node now.
        return (node.parent.id, node.name) == (step.change.folder.id, step.change.name)

    async def _there(self, step: Step) -> Entry:
        change = step.change
        status = await self.status(change.folder, change.name)
        if status is None:
            raise _error(ENOENT)
        node = self._vault.tree.found(change.folder, change.name, status)
        node.announced = version_of(status)
        return node, status


_Place: TypeAlias = tuple[int, bytes]


def _seen(verb: int, place: _Place, source: _Place | None) -> dict[_Place, Seen]:
    if verb in (REMOVE, LOOK_GONE):
        return {place: Seen.GONE}
    if verb == MAKE:
        return {place: Seen.ABSENT}
    if verb == MAKE_SOURCE and source is not None:
        return {source: Seen.ABSENT}
    if verb in (RENAME, LOOK_THERE) and source is not None:
        return {source: Seen.THERE, place: Seen.GONE_IF_KNOWN}
    return {}


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _stand_in(file_format: int) -> os.stat_result:
    """The status of what is not there any more. Its inode number says that it is not to be kept."""
    times = dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), 0)
    more = {**times, "st_blksize": 4096, "st_blocks": 0, "st_rdev": 0}
    return os.stat_result((file_format | 0o600, 0, 0, 1, 0, 0, 0, 0, 0, 0), more)
