"""Making the kernel tell programs of a foreign change, as if it had been made in the vault.

The kernel emits inotify events for system calls. So the agent makes, in a thread, the system call that the
change would have been: mknod, mkdir, symlink, unlink, rmdir, rename, utimensat. The requests come back to its
own handlers, which know the thread by its id (the kernel gives it with each request, nobody can forge it) and
the call by what is being announced. They touch no backing file: a creation is answered with the file that is
there, and the rest with success. Whatever else such a thread asked to change would be refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from dataclasses import dataclass, field
from enum import Enum, auto
from errno import ENOENT, EPERM
from typing import TYPE_CHECKING

import pyfuse3
import trio

from session_agent.fsutil.at import FOLDER, stat_at
from session_agent.fsutil.credentials import AGENT, assume
from session_agent.fsutil.syscalls import touch_at
from session_agent.mounts import mountinfo
from session_agent.overlay.changes import Changed
from session_agent.overlay.tree import FolderNode, Node, version_of

if TYPE_CHECKING:
    from session_agent.overlay.vault import Entry, Vault

KnownNodes = dict[tuple[int, bytes], Node]
"""What the kernel knew, by the number of the folder and the name in it."""


class _Seen(Enum):
    """What the kernel is to find at a name during a step."""

    ABSENT = auto()
    GONE = auto()  # what was there before
    GONE_IF_KNOWN = auto()  # that, or nothing
    THERE = auto()  # what is there now, under the change's own name


@dataclass(frozen=True, slots=True)
class _Step:
    """A system call of the thread: the request it is to end in, and what its lookups are to find."""

    verb: str
    change: Changed
    seen: dict[tuple[int, bytes], _Seen] = field(default_factory=dict)
    shown: set[tuple[int, bytes]] = field(
        default_factory=set
    )  # gone, and looked up as if it were there


@dataclass(frozen=True, slots=True)
class _Task:
    """A change, as plain values for the thread: paths in the vault, status and number of what is there."""

    change: Changed
    path: list[bytes]
    source_path: list[bytes]
    status: os.stat_result | None
    was_known: bool
    node_id: int


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Announcer:
    """Announces changes one after the other. `thread` is the id of the thread that does so, 0 for none."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.thread = 0
        self._mountpoint = ""
        self._device = 0
        self._step: _Step | None = None
        self._old: KnownNodes = {}

    def find(self, mountpoint: str) -> bool:
        """Once the vault is mounted; False if it is not to be found there."""
        entries = [entry for entry in mountinfo.read() if entry.path == mountpoint]
        if not entries:
            return False
        major, _, minor = entries[-1].device.partition(":")
        self._mountpoint = mountpoint
        self._device = os.makedev(int(major), int(minor))
        return True

    async def announce(self, changes: list[Changed], old: KnownNodes) -> int:
        """Announce the changes. Answers how many of them programs could hear of.

        `old`: what the kernel knew in their folders, by name.
        """
        self._old = old
        tasks = [task for change in changes if (task := await self._task(change)) is not None]
        if not tasks:
            return 0

        def in_thread() -> int:
            assume(AGENT)
            # Not kept open: whoever wants to unmount the vault would find it in use.
            root = os.open(self._mountpoint, FOLDER)
            self.thread = threading.get_native_id()
            try:
                return sum(self._one(task, root) for task in tasks)
            finally:
                self.thread = 0
                self._step = None
                os.close(root)

        told = 0
        with contextlib.suppress(OSError):  # it has been unmounted
            told = await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True)
        for task in tasks:
            if task.node_id:
                self._vault.tree.forget(task.node_id, 0)  # unless the kernel was told of it
        return told

    async def _task(self, change: Changed) -> _Task | None:
        """None if programs have been told already: of what the vault did itself, or a moment ago."""
        status = await self._status(change.folder, change.name)
        if change.source is not None and await self._status(*change.source) is not None:
            # That name is another file's by now, and must not be lost to those who look for it.
            change.source, change.made, change.removed = None, True, True
        node_id = 0
        if change.source is not None and status is not None:
            node_id = self._vault.tree.found(change.folder, change.name, status).id
        if not (change.removed or change.made or change.source):
            if status is None:
                return None
            tree = self._vault.tree
            node = tree.find(tree.key(change.folder.branch, status.st_dev, status.st_ino))
            if node is not None and node.announced == version_of(status):
                return None
        source = change.folder if change.source is None else change.source[0]
        known = (change.folder.id, change.name) in self._old
        return _Task(change, _path(change.folder), _path(source), status, known, node_id)

    async def _status(self, folder: FolderNode, name: bytes) -> os.stat_result | None:
        """The status of what lies there; None if nothing does."""
        try:
            fd = await self._vault.folder_fd(folder)
            return await folder.branch.call(AGENT, stat_at, fd, name)
        except OSError:
            return None

    # In the thread

    def _one(self, task: _Task, root: int) -> bool:
        done = False
        with contextlib.suppress(OSError):  # things have moved on; other events tell how
            folder = self._open(root, task.path)
            try:
                done = self._steps(task, root, folder)
            finally:
                os.close(folder)
        return done

    def _open(self, root: int, path: list[bytes]) -> int:
        """The folder in the vault. EPERM if the way there leaves the vault."""
        self._step = None
        fd = os.dup(root)
        try:
            for name in path:
                below = os.open(name, FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
            if os.fstat(fd).st_dev != self._device:
                raise _error(EPERM)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _steps(self, task: _Task, root: int, folder: int) -> bool:
        change, status = task.change, task.status
        if change.removed and (status is None or (task.was_known and change.replaced)):
            self._remove(task, folder)
        if status is None:
            return change.removed
        if change.removed and not (change.replaced or change.contents or change.attributes):
            return False
        if change.source is not None:
            self._rename(task, root, folder)
        elif change.made:
            self._make(change, change.folder, change.name, folder, status)
        if change.contents or change.attributes:
            self._step = _Step("touch", change)
            touch_at(folder, change.name, modified=change.contents)
        return True

    def _remove(self, task: _Task, folder: int) -> None:
        change = task.change
        if task.status is not None or change.was_folder or not task.was_known:
            _invalidate(change.folder, change.name)  # another file's by now, or a folder elsewhere
        self._step = _Step("remove", change, {(change.folder.id, change.name): _Seen.GONE})
        with contextlib.suppress(OSError):
            if change.was_folder:
                os.rmdir(change.name, dir_fd=folder)
            else:
                os.unlink(change.name, dir_fd=folder)

    def _make(
        self, change: Changed, parent: FolderNode, name: bytes, folder: int, status: os.stat_result
    ) -> None:
        self._step = _Step("make", change, {(parent.id, name): _Seen.ABSENT})
        try:
            _make(folder, name, status)
        except FileExistsError:  # a program has looked it up already
            _invalidate(parent, name)
            _make(folder, name, status)

    def _rename(self, task: _Task, root: int, folder: int) -> None:
        change = task.change
        assert change.source is not None
        assert task.status is not None
        parent, name = change.source
        source = folder if parent is change.folder else self._open(root, task.source_path)
        try:
            if change.source_made:
                self._make(change, parent, name, source, task.status)
            _invalidate(change.folder, change.name)
            seen = {
                (parent.id, name): _Seen.THERE,
                (change.folder.id, change.name): _Seen.GONE_IF_KNOWN,
            }
            self._step = _Step("rename", change, seen)
            try:
                found = os.stat(name, dir_fd=source, follow_symlinks=False)
                if found.st_ino != task.node_id:
                    raise FileNotFoundError
                os.rename(name, change.name, src_dir_fd=source, dst_dir_fd=folder)
            except FileNotFoundError:  # the old name is another file's by now: it must not be lost
                self._make(change, change.folder, change.name, folder, task.status)
        finally:
            if source != folder:
                os.close(source)

    # The requests that the thread causes, in the trio thread

    async def lookup(self, parent_id: int, name: bytes) -> Entry | None:
        """What the kernel is to find at this name for the step; None: whatever is there.

        FUSEError ENOENT, which the kernel does not keep, if it is to find nothing: other programs must not
        miss the file for a moment. They wait for the step's call, which has the folder locked.
        """
        step = self._step
        seen = None if step is None else step.seen.get((parent_id, name))
        if step is None or seen is None:
            return None
        if seen is _Seen.THERE:
            assert step.change.source is not None
            if await self._status(*step.change.source) is not None:
                raise pyfuse3.FUSEError(ENOENT)
            return await self._there(step)
        if seen is _Seen.ABSENT:
            raise pyfuse3.FUSEError(ENOENT)
        change = step.change
        if not change.replaced and await self._status(change.folder, change.name) is not None:
            raise pyfuse3.FUSEError(
                ENOENT
            )  # made anew meanwhile, which programs hear of in its own way
        step.shown.add((parent_id, name))
        old = self._old.get((change.folder.id, change.name))
        if old is not None and await self._is_gone(old, change):
            handles = old.handles or ()
            fd = handles[0].fd if handles else old.fd
            return old, _stand_in(old.format) if fd < 0 else os.fstat(fd)
        if seen is _Seen.GONE_IF_KNOWN:
            raise pyfuse3.FUSEError(ENOENT)
        file_format = stat.S_IFDIR if change.was_folder else stat.S_IFREG
        stand_in = _stand_in(file_format)
        return self._vault.tree.stand_in(change.folder, change.name, stand_in), stand_in

    async def _is_gone(self, old: Node, change: Changed) -> bool:
        """Whether the old node can be removed in the kernel's eyes: it is known, and lies nowhere else."""
        if old.lookups <= 0 or isinstance(old, FolderNode) is not change.was_folder:
            return False
        if isinstance(old, FolderNode):
            # A folder that was moved elsewhere would be taken for a removed one for good.
            return old.fd >= 0 and os.fstat(old.fd).st_nlink == 0
        status = await self._status(change.folder, change.name)
        if status is None:
            return True
        tree = self._vault.tree
        return tree.key(change.folder.branch, status.st_dev, status.st_ino) != old.key

    async def answer(self, verb: str, parent_id: int, name: bytes) -> Entry:
        """The request for the step's call is answered. EPERM for any other."""
        step = self._step
        if step is None or step.verb != verb:
            raise _error(EPERM)
        source = step.change.source
        place = step.change.folder, step.change.name
        if verb == "make" and source is not None and (source[0].id, source[1]) == (parent_id, name):
            if await self._status(*source) is not None:
                raise _error(ENOENT)
        elif (place[0].id, place[1]) != (parent_id, name):
            raise _error(EPERM)
        if verb == "remove":
            # Where a program has made the name anew, the kernel must not remove that.
            if (parent_id, name) not in step.shown and await self._status(*place) is not None:
                raise _error(ENOENT)
            return step.change.folder, _stand_in(stat.S_IFDIR)
        if verb == "rename" and source is not None and await self._status(*source) is not None:
            raise _error(ENOENT)  # the name is another file's by now
        return await self._there(step)

    def touched(self, node: Node) -> bool:
        """Whether the request to change the node's times is the step's."""
        step = self._step
        if step is None or step.verb != "touch" or node.parent is None:
            return False
        # By number: a folder that the kernel has forgotten meanwhile has another node now.
        return (node.parent.id, node.name) == (step.change.folder.id, step.change.name)

    async def _there(self, step: _Step) -> Entry:
        change = step.change
        status = await self._status(change.folder, change.name)
        if status is None:
            raise _error(ENOENT)
        node = self._vault.tree.found(change.folder, change.name, status)
        node.announced = version_of(status)
        return node, status


def _make(folder: int, name: bytes, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, dir_fd=folder)
    elif kind == stat.S_IFLNK:
        os.symlink(b"-", name, dir_fd=folder)
    else:
        os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=folder)


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


def _stand_in(file_format: int) -> os.stat_result:
    """The status of what is not there any more. Its inode number says that it is not to be kept."""
    times = dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), 0)
    more = {**times, "st_blksize": 4096, "st_blocks": 0, "st_rdev": 0}
    return os.stat_result((file_format | 0o600, 0, 0, 1, 0, 0, 0, 0, 0, 0), more)
