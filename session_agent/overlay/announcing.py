"""Making the kernel tell programs of a foreign change, as if it had been made in the vault.

The kernel emits inotify events for system calls. So the herald (see heralding), another process, makes the
system call that the change would have been: mknod, mkdir, symlink, unlink, rmdir, rename, utimensat, open and
close. The requests come to the vault's handlers, which know the caller and the call by what is being
announced (see expected). They touch no backing file: a creation is answered with the file that is there, and
the rest with success. Whatever else the herald asked to change would be refused.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass, replace
from errno import ECONNRESET
from typing import TYPE_CHECKING

import msgspec
import trio

from session_agent.mounts import mountinfo
from session_agent.overlay.changes import Changed, Unclosed
from session_agent.overlay.expected import Expected, KnownNodes
from session_agent.overlay.heralding import (
    MESSAGE_LIMIT,
    Answer,
    Begin,
    Refresh,
    Request,
    Started,
    Tell,
    Told,
    Work,
)
from session_agent.overlay.nodes import FolderNode, Place, version_of

if TYPE_CHECKING:
    from session_agent.overlay.vault import Vault

log = logging.getLogger(__name__)

_ROOM = MESSAGE_LIMIT // 4  # bytes of a message that may be taken by names


@dataclass(frozen=True, slots=True)
class Mounted:
    """Where the vault is mounted, and the number of its file system."""

    path: str
    device: int


def find(mountpoint: str) -> Mounted | None:
    """Once the vault is mounted; None if it is not to be found there."""
    entries = [entry for entry in mountinfo.read() if entry.path == mountpoint]
    if not entries:
        return None
    major, _, minor = entries[-1].device.partition(":")
    return Mounted(mountpoint, os.makedev(int(major), int(minor)))


HANDLE = 0
"""The number of the herald's open files. No other has it, and there is no file behind it."""


class Herald:
    """The herald, as the process sees it that serves the vault.

    `expected`: the requests that are expected of its threads, by their ids.
    """

    def __init__(self, started: Started, expected: dict[int, Expected]) -> None:
        self._connection = trio.socket.from_stdlib_socket(started.connection)
        self.steps = memoryview(started.steps).cast("I")
        self.expected = expected
        self._answers: dict[int, list[int]] = {}
        self._waiting: dict[int, trio.Event] = {}
        self.gone = trio.Event()

    async def run(self) -> None:
        """Take its answers, until it is gone."""
        decoder = msgspec.msgpack.Decoder(Answer)
        while data := await self._hear():
            answer = decoder.decode(data)
            self._answers[answer.branch] = answer.numbers
            self._waiting[answer.branch].set()
        log.error("the process that announces foreign changes is gone: there are no more events")
        self.expected.clear()
        self.gone.set()
        for event in self._waiting.values():
            event.set()

    async def _hear(self) -> bytes:
        try:
            return await self._connection.recv(MESSAGE_LIMIT)
        except OSError:
            return b""

    async def ask(self, branch: int, work: Work) -> list[int]:
        """Have work done for a branch, one at a time for each; its answer. ConnectionError if it is gone."""
        if self.gone.is_set():
            raise ConnectionResetError(ECONNRESET, os.strerror(ECONNRESET))
        done = self._waiting[branch] = trio.Event()
        self._answers.pop(branch, None)
        await self._connection.send(msgspec.msgpack.encode(Request(branch, work)))
        await done.wait()
        if self.gone.is_set():
            raise ConnectionResetError(ECONNRESET, os.strerror(ECONNRESET))
        return self._answers[branch]


class Announcer:
    """Announces the changes in one branch, one after the other. ConnectionError once the herald is gone."""

    def __init__(
        self, vault: Vault, mounted: Mounted, herald: Herald, branch: int, unclosed: Unclosed
    ) -> None:
        self._vault = vault
        self._mounted = mounted
        self._herald = herald
        self._branch = branch
        self._unclosed = unclosed
        self._expected = Expected(vault, herald.steps, branch)
        self._failed: list[Changed] = []  # what the kernel would not do

    async def begin(self) -> None:
        """Before anything else. The vault has answered a request when this returns."""
        begin = Begin(os.fsencode(self._mounted.path), self._mounted.device)
        (thread,) = await self._ask(begin)
        self._herald.expected[thread] = self._expected

    async def _ask(self, work: Work) -> list[int]:
        return await self._herald.ask(self._branch, work)

    async def refresh(self, places: list[Place]) -> None:
        """Have the kernel look these names up anew, whatever it remembers of them."""
        names: list[tuple[list[bytes], bytes]] = []
        room = _ROOM
        for folder, name in places:
            names.append((path := _path(folder), name))
            room -= _size(path) + len(name)
            if room < 0:
                await self._ask(Refresh(names))
                names, room = [], _ROOM
        if names:
            await self._ask(Refresh(names))

    async def announce(self, changes: list[Changed], old: KnownNodes) -> list[Changed]:
        """Announce the changes. Answers those that programs could hear of.

        `old`: what the kernel knew in their folders, by name.
        """
        self._expected.old = old
        announced = await self._announce(changes)
        return announced + await self._announce(_otherwise(self._failed))

    async def _announce(self, changes: list[Changed]) -> list[Changed]:
        announced: list[Changed] = []
        self._failed = []
        room = _ROOM
        told: list[Told] = []
        of: list[Changed] = []
        for change in [part for whole in changes for part in await self._parts(whole)]:
            one = await self._told(change)
            if one is None:
                continue
            told.append(one)
            of.append(change)
            room -= _size(one.path) + _size(one.source_path)
            if room < 0:
                announced += await self._tell(told, of)
                told, of, room = [], [], _ROOM
            if len(of) % 8 == 7:
                await trio.lowlevel.checkpoint()  # requests of programs get their turn
        return announced + await self._tell(told, of)

    async def _tell(self, told: list[Told], changes: list[Changed]) -> list[Changed]:
        if not told:
            return []
        self._expected.begin(changes)
        numbers = await self._ask(Tell(told))
        for one in told:
            if one.node_id:
                self._vault.tree.forget(one.node_id, 0)  # unless the kernel was told of it
        self._failed += [change for index, change in enumerate(changes) if index not in numbers]
        return [changes[number] for number in numbers]

    async def _parts(self, change: Changed) -> list[Changed]:
        """The change; of a rename that is none by what is there now, what has come of it."""
        if change.source is None:
            return [change]
        if await self._expected.status(change.folder, change.name) is None:
            end = replace(change, source=None)
            return [end] if change.source_made else [Changed(*change.source, removed=True), end]
        if await self._expected.status(*change.source) is not None:
            # That name is another file's by now, and must not be lost to those who look for it.
            return [replace(change, source=None, made=True, removed=True)]
        return [change]

    async def _told(self, change: Changed) -> Told | None:
        """None if programs have been told already: of what the vault did itself, or a moment ago."""
        status = await self._expected.status(change.folder, change.name)
        if status is None:
            change.made = False
        node_id = 0
        if change.source is not None and status is not None:
            node_id = self._vault.tree.found(change.folder, change.name, status).id
        if status is not None:
            self._note_closed(change, status)
        modified = change.contents or change.attributes or change.closed
        if not (change.removed or change.replaced or (modified and status is not None)):
            return None
        source = change.folder if change.source is None else change.source[0]
        old = self._expected.old.get((change.folder.id, change.name))
        if old is not None:
            change.was_folder = isinstance(old, FolderNode)
        return Told(
            path=_path(change.folder),
            name=change.name,
            source_path=_path(source),
            source_name=b"" if change.source is None else change.source[1],
            mode=0 if status is None else status.st_mode,
            device=0 if status is None else status.st_rdev,
            node_id=node_id,
            was_known=old is not None,
            removed=change.removed,
            was_folder=change.was_folder,
            renamed=change.source is not None,
            source_made=change.source_made,
            source_closed=change.source_closed,
            made=change.made,
            contents=change.contents,
            attributes=change.attributes,
            closed=change.closed,
        )

    def _note_closed(self, change: Changed, status: os.stat_result) -> None:
        """Leave out what is no news: the vault's own writing, and that its files are closed."""
        tree = self._vault.tree
        key = tree.key(change.folder.branch, status.st_dev, status.st_ino)
        node = tree.find(key)
        if not change.replaced and node is not None and node.announced == version_of(status):
            change.contents = change.attributes = False
        regular = stat.S_ISREG(status.st_mode)
        if change.closed:
            news = change.contents or change.made or key in self._unclosed
            change.closed = regular and news
            self._unclosed.discard(key)
        elif regular and (change.contents or change.made):
            self._unclosed.add(key)


def _otherwise(failed: list[Changed]) -> list[Changed]:
    """What is to be told instead, of each name once."""
    parts: dict[Place, Changed] = {}
    for part in [part for change in failed for part in change.otherwise()]:
        place = part.folder, part.name
        if place not in parts:
            parts[place] = part
        elif part.replaced:
            parts[place] = replace(part, removed=True)
    return list(parts.values())


def _size(path: list[bytes]) -> int:
    return sum(map(len, path)) + 256


def _path(folder: FolderNode) -> list[bytes]:
    """The names that lead to the folder, from the vault's root on."""
    names = []
    while folder.parent is not None:
        names.append(folder.name)
        folder = folder.parent
    return names[::-1]
