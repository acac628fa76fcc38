"""Open files and folders: what a handle number of the kernel stands for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import trio

from session_agent.fsutil.credentials import Caller
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.nodes import FolderNode, Node

_ACCESS_MODE = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class _Movable:
    """A descriptor that a move puts on the file's new place, under the same number.

    It must not be closed before the move has ended: the number could by then be another file's.
    """

    __slots__ = ("moving",)

    def __init__(self) -> None:
        self.moving: trio.Event | None = None  # set when the move has ended

    async def settled(self) -> None:
        """Wait for the end of a move."""
        while self.moving is not None and not self.moving.is_set():
            await self.moving.wait()


class Handle(_Movable):
    """An open file."""

    __slots__ = ("append", "branch", "caller", "fd", "flags", "idle", "node", "writing")

    def __init__(self, fd: int, flags: int, node: Node, caller: Caller, branch: OpenBranch) -> None:
        super().__init__()
        self.fd = fd
        self.flags = flags
        self.append = flags & os.O_APPEND != 0
        self.node = node
        # Whoever opened it: writing with these rights makes the kernel clear set-uid bits as it should.
        self.caller = caller
        self.branch = branch
        self.writing = 0  # writes that a thread is carrying out
        self.idle: trio.Event | None = None  # to be set when there are none any more

    def written(self) -> None:
        """A write has ended."""
        self.writing -= 1
        if self.writing == 0 and self.idle is not None:
            self.idle.set()
            self.idle = None

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & _ACCESS_MODE != os.O_RDONLY

    @property
    def appends_only(self) -> bool:
        """Whether what is written through it always goes to the end of the file.

        The kernel gives an offset with every write, computed from a size that may be outdated when another
        session has appended meanwhile. Writing at the file's true end loses neither. Not so while the same
        file can be mapped for writing: the kernel may then send dirty pages through any handle.
        """
        if not self.append or self.flags & _ACCESS_MODE == os.O_RDWR:
            return False
        return not any(
            other.writable and (not other.append or other.flags & os.O_RDWR)
            for other in self.node.handles or ()
        )


class FolderHandle(_Movable):
    """An open folder. Entries are read as the kernel asks for them.

    `names` keeps what was read, so that a program can seek back to an entry (seekdir) and find the same.
    """

    __slots__ = (
        "caller",
        "entries",
        "fd",
        "found",
        "names",
        "node",
        "restarted",
        "virtual",
    )

    def __init__(self, fd: int, node: FolderNode, caller: Caller) -> None:
        super().__init__()
        self.fd = fd
        self.node = node
        self.caller = caller
        self.entries: Iterator[os.DirEntry[str]] | None = None
        self.names: list[bytes] = []
        self.found: dict[bytes, os.stat_result] | None = None  # what was listed, if that is wanted
        self.virtual = 0  # how many of the first names are not of the backing folder
        # After a move the listing began anew, in the new place; what was listed before is left out.
        self.restarted = False

    def note(self, names: list[bytes], statuses: list[os.stat_result | None]) -> None:
        """These entries were listed."""
        if self.found is not None:
            pairs = zip(names, statuses, strict=True)
            self.found.update((name, status) for name, status in pairs if status is not None)

    def restart(self) -> None:
        """The descriptor leads to another folder now, with the same entries: list the rest of them there."""
        if self.entries is not None:
            self.entries.close()  # type: ignore[attr-defined]  # an os.scandir iterator
            try:
                self.entries = os.scandir(self.fd)
            except OSError as failure:  # the move goes on; whoever lists the folder is told
                self.entries = _failing(failure)
            self.restarted = True
            self.found = None


def _failing(failure: OSError) -> Iterator[os.DirEntry[str]]:
    def entry() -> os.DirEntry[str]:
        raise failure

    yield entry()


class HandleTable:
    """Handle numbers: never used twice, so that a late request cannot meet the wrong file."""

    def __init__(self) -> None:
        self._next = 1
        self._files: dict[int, Handle] = {}
        self._folders: dict[int, FolderHandle] = {}

    def __len__(self) -> int:
        return len(self._files) + len(self._folders)

    def add(self, handle: Handle) -> int:
        """Number an open file."""
        number = self._next
        self._next += 1
        self._files[number] = handle
        if handle.node.handles is None:
            handle.node.handles = [handle]
        else:
            handle.node.handles.append(handle)
        return number

    def files(self) -> list[Handle]:
        """All open files."""
        return list(self._files.values())

    def folders(self) -> list[FolderHandle]:
        """All open folders."""
        return list(self._folders.values())

    def add_folder(self, handle: FolderHandle) -> int:
        """Number an open folder."""
        number = self._next
        self._next += 1
        self._folders[number] = handle
        return number

    def file(self, number: int) -> Handle:
        """The open file with that number."""
        return self._files[number]

    def folder(self, number: int) -> FolderHandle:
        """The open folder with that number."""
        return self._folders[number]

    def remove(self, number: int) -> Handle:
        """Drop an open file. Its descriptor is the caller's to close."""
        handle = self._files.pop(number)
        assert handle.node.handles is not None
        handle.node.handles.remove(handle)
        if not handle.node.handles:
            handle.node.handles = None
        return handle

    def remove_folder(self, number: int) -> FolderHandle:
        """Drop an open folder. Its descriptor is the caller's to close."""
        return self._folders.pop(number)

    def drain(self) -> list[int]:
        """Drop everything, and answer the descriptors to close."""
        fds = [handle.fd for handle in self._files.values()]
        fds += [handle.fd for handle in self._folders.values()]
        self._files.clear()
        self._folders.clear()
        return fds
