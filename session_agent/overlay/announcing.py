"""Making the kernel tell programs of a foreign change, as if it had been made in the vault.

The kernel emits inotify events for system calls. So the agent makes, in a thread, the system call that the
change would have been: mknod, mkdir, symlink, unlink, rmdir, rename, utimensat, open and close. The requests
come back to its own handlers, which know the thread by its id (the kernel gives it with each request, nobody
can forge it) and the call by what is being announced (see expected). They touch no backing file: a creation
is answered with the file that is there, and the rest with success. Whatever else such a thread asked to
change would be refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from dataclasses import dataclass
from errno import EPERM
from typing import TYPE_CHECKING

import pyfuse3
import trio

from session_agent.fsutil.at import FOLDER
from session_agent.fsutil.credentials import AGENT, assume
from session_agent.fsutil.syscalls import touch_at
from session_agent.mounts import mountinfo
from session_agent.overlay.changes import Changed, Unclosed
from session_agent.overlay.expected import Expected, KnownNodes, Seen, Step
from session_agent.overlay.tree import FolderNode, version_of

if TYPE_CHECKING:
    from session_agent.overlay.vault import Vault

# Not waiting, should it have become a pipe meanwhile.
_TO_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Task:
    """A change, as plain values for the thread: paths in the vault, status and number of what is there."""

    change: Changed
    path: list[bytes]
    source_path: list[bytes]
    status: os.stat_result | None
    was_known: bool
    node_id: int


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


class _Folders:
    """Folders of the vault that are open in an announcing thread, by the names that lead to them."""

    def __init__(self, mounted: Mounted) -> None:
        self._mounted = mounted
        self._open: dict[tuple[bytes, ...], int] = {}

    def open(self, path: list[bytes]) -> int:
        """The folder, which stays open. EPERM if the way there leaves the vault."""
        fd = self._open.get(tuple(path), -1)
        if fd >= 0:
            return fd
        fd = os.open(self._mounted.path, FOLDER)
        try:
            for name in path:
                below = os.open(name, FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
            if os.fstat(fd).st_dev != self._mounted.device:
                raise OSError(EPERM, os.strerror(EPERM))
        except OSError:
            os.close(fd)
            raise
        self._open[tuple(path)] = fd
        return fd

    def close(self) -> None:
        """Close them all."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


HANDLE = 0
"""The number of the announcing threads' open files. No other has it, and there is no file behind it."""


class Announcer:
    """Announces the changes in one branch, one after the other.

    `at_work`: what is expected of the announcing threads, by their ids, while they are at work.
    """

    def __init__(
        self, vault: Vault, mounted: Mounted, at_work: dict[int, Expected], unclosed: Unclosed
    ) -> None:
        self._vault = vault
        self._mounted = mounted
        self._at_work = at_work
        self.expected = Expected(vault)
        self._unclosed = unclosed

    async def announce(self, changes: list[Changed], old: KnownNodes) -> int:
        """Announce the changes. Answers how many of them programs could hear of.

        `old`: what the kernel knew in their folders, by name.
        """
        self.expected.old = old
        tasks = []
        for change in changes:
            task = await self._task(change)
            if task is not None:
                tasks.append(task)
            if len(tasks) % 8 == 7:
                await trio.lowlevel.checkpoint()  # requests of programs get their turn
        if not tasks:
            return 0

        def in_thread() -> int:
            assume(AGENT)
            thread = threading.get_native_id()
            self._at_work[thread] = self.expected
            folders = _Folders(self._mounted)
            try:
                return sum(self._one(task, folders) for task in tasks)
            finally:
                # Not kept open: whoever wants to unmount the vault would find it in use.
                folders.close()
                del self._at_work[thread]
                self.expected.step = None

        told = 0
        with contextlib.suppress(OSError):  # it has been unmounted
            told = await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True)
        for task in tasks:
            if task.node_id:
                self._vault.tree.forget(task.node_id, 0)  # unless the kernel was told of it
        return told

    async def _task(self, change: Changed) -> _Task | None:
        """None if programs have been told already: of what the vault did itself, or a moment ago."""
        status = await self.expected.status(change.folder, change.name)
        if change.source is not None and await self.expected.status(*change.source) is not None:
            # That name is another file's by now, and must not be lost to those who look for it.
            change.source, change.made, change.removed = None, True, True
        node_id = 0
        if change.source is not None and status is not None:
            node_id = self._vault.tree.found(change.folder, change.name, status).id
        if status is not None:
            self._note_closed(change, status)
        modified = change.contents or change.attributes or change.closed
        if not (change.removed or change.replaced or (modified and status is not None)):
            return None
        source = change.folder if change.source is None else change.source[0]
        known = (change.folder.id, change.name) in self.expected.old
        return _Task(change, _path(change.folder), _path(source), status, known, node_id)

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

    # In the thread

    def _one(self, task: _Task, folders: _Folders) -> bool:
        self.expected.step = None  # while the folders are opened
        with contextlib.suppress(OSError):  # things have moved on; other events tell how
            return self._steps(task, folders)
        return False

    def _steps(self, task: _Task, folders: _Folders) -> bool:
        change, status = task.change, task.status
        folder, source = folders.open(task.path), folders.open(task.source_path)
        if change.removed and (status is None or (task.was_known and change.replaced)):
            self._remove(task, folder)
        if status is None:
            return change.removed
        if change.removed and not (change.replaced or change.contents or change.attributes):
            return False
        held = -1
        if change.source is not None:
            held = self._rename(task, folder, source)
        elif change.made:
            held = self._make(change, change.folder, change.name, folder, status, change.closed)
        self._modify(change, folder, held)
        return True

    def _modify(self, change: Changed, folder: int, held: int) -> None:
        """`held`: a descriptor of the file in the vault, -1 for none. It is closed."""
        try:
            if change.closed and held < 0:
                self.expected.step = Step("open", change)
                with contextlib.suppress(OSError):  # it is being executed, or has become a pipe
                    held = os.open(change.name, _TO_WRITE, dir_fd=folder)
            if change.contents or change.attributes:
                self.expected.step = Step("touch", change)
                if held >= 0:
                    touch_at(held, None, modified=change.contents)
                else:
                    touch_at(folder, change.name, modified=change.contents)
        finally:
            if held >= 0:
                os.close(held)

    def _remove(self, task: _Task, folder: int) -> None:
        change = task.change
        if task.status is not None or change.was_folder or not task.was_known:
            _invalidate(change.folder, change.name)  # another file's by now, or a folder elsewhere
        self.expected.step = Step("remove", change, {(change.folder.id, change.name): Seen.GONE})
        with contextlib.suppress(OSError):
            if change.was_folder:
                os.rmdir(change.name, dir_fd=folder)
            else:
                os.unlink(change.name, dir_fd=folder)

    def _make(
        self,
        change: Changed,
        parent: FolderNode,
        name: bytes,
        folder: int,
        status: os.stat_result,
        closed: bool,
    ) -> int:
        """Answers a descriptor of the new file if it is to be `closed`, else -1."""
        self.expected.step = Step("make", change, {(parent.id, name): Seen.ABSENT})
        try:
            return _make(folder, name, status, closed)
        except FileExistsError:  # a program has looked it up already
            _invalidate(parent, name)
            return _make(folder, name, status, closed)

    def _rename(self, task: _Task, folder: int, source: int) -> int:
        """Answers as `_make`."""
        change = task.change
        assert change.source is not None
        assert task.status is not None
        parent, name = change.source
        if change.source_made:
            made = self._make(change, parent, name, source, task.status, change.source_closed)
            if made >= 0:
                os.close(made)
        _invalidate(change.folder, change.name)
        seen = {
            (parent.id, name): Seen.THERE,
            (change.folder.id, change.name): Seen.GONE_IF_KNOWN,
        }
        self.expected.step = Step("rename", change, seen)
        try:
            found = os.stat(name, dir_fd=source, follow_symlinks=False)
            if found.st_ino != task.node_id:
                raise FileNotFoundError
            os.rename(name, change.name, src_dir_fd=source, dst_dir_fd=folder)
        except FileNotFoundError:  # the old name is another file's by now: it must not be lost
            place = (change.folder, change.name, folder)
            return self._make(change, *place, task.status, change.closed)
        return -1


def _make(folder: int, name: bytes, status: os.stat_result, closed: bool) -> int:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, dir_fd=folder)
    elif kind == stat.S_IFLNK:
        os.symlink(b"-", name, dir_fd=folder)
    elif kind == stat.S_IFREG and closed:
        return os.open(name, _TO_WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    else:
        os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=folder)
    return -1


def _invalidate(folder: FolderNode, name: bytes) -> None:
    with contextlib.suppress(OSError):  # the kernel does not know it
        pyfuse3.invalidate_entry(pyfuse3.InodeT(folder.id), pyfuse3.FileNameT(name))


def _path(folder: FolderNode) -> list[bytes]:
    """The names that lead to the folder, from the vault's root on."""
    names = []
    while folder.parent is not None:
        names.append(folder.name)
        folder = folder.parent
    return names[::-1]
