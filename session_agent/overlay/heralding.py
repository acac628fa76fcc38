"""The herald: the process that makes the calls by which programs hear of foreign changes.

A call on the vault waits for the process that serves it. Made in a thread of that very process it would
never end if the process is killed just then: the thread cannot be, and keeps the connection open that would
have to break. So the calls are made here, in a process that is forked before the connection is opened. It has
a thread for each branch, so that one in which nothing goes forward holds up no other.

What it is told are plain values. Before each call it writes the number of its step into memory that it
shares with the serving process, which knows by that what the kernel is to find (see expected).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import signal
import socket
import stat
import threading
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from errno import EPERM
from typing import TypeAlias

import msgspec

from session_agent.fsutil import bounded
from session_agent.fsutil.at import FOLDER
from session_agent.fsutil.syscalls import die_with_parent, touch_at

MESSAGE_LIMIT = 1 << 17  # bytes
MOST_BRANCHES = 1024  # that have a herald's thread

# What a step does, in the last bits of its number; the rest is the number of the change in its message.
REMOVE, MAKE, MAKE_SOURCE, RENAME, TOUCH, OPEN, REFRESH, LOOK_GONE, LOOK_THERE = range(1, 10)
VERB_BITS = 4

# Not waiting, should it have become a pipe meanwhile.
_TO_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Begin(msgspec.Struct, tag="begin", array_like=True):
    """Begin with a branch. `device`: the number of the vault's file system, which is mounted at `vault`."""

    vault: bytes
    device: int


class Told(msgspec.Struct, array_like=True):
    """A change that is to be told. `mode` and `device`: of what is there now; mode 0 if nothing is."""

    path: list[bytes]  # of the folder, in the vault
    name: bytes
    source_path: list[bytes]
    source_name: bytes
    mode: int
    device: int
    node_id: int  # of what was renamed
    was_known: bool
    removed: bool
    was_folder: bool
    renamed: bool
    source_made: bool
    source_closed: bool
    made: bool
    contents: bool
    attributes: bool
    closed: bool


class Tell(msgspec.Struct, tag="tell", array_like=True):
    """Tell these changes."""

    changes: list[Told]


class Refresh(msgspec.Struct, tag="refresh", array_like=True):
    """Have these names, each with the way to its folder, looked up anew."""

    names: list[tuple[list[bytes], bytes]]


Work: TypeAlias = Begin | Tell | Refresh


class Request(msgspec.Struct, array_like=True):
    """Work for the thread of a branch, which is known by its number."""

    branch: int
    work: Work


class Answer(msgspec.Struct, array_like=True):
    """The work is done. Of `Tell`, the numbers of the changes that were told; of `Begin`, the thread's id."""

    branch: int
    numbers: list[int]


@dataclass(frozen=True, slots=True)
class Started:
    """The herald's process, as whoever has started it knows it."""

    pid: int
    connection: socket.socket
    steps: mmap.mmap

    def end(self) -> None:
        """End it. Only when nobody serves the vault any more, since it may be waiting for that."""
        self.connection.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def start() -> Started:
    """Fork the herald. To be called before any branch or connection is opened, and before any thread."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in (ours, its):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_LIMIT)
    steps = mmap.mmap(-1, 4 * MOST_BRANCHES)
    agent = os.getpid()
    pid = bounded.start_for_good(lambda: _live(its, steps, agent), None, keep={its.fileno(), 2})
    its.close()
    return Started(pid, ours, steps)


def _live(connection: socket.socket, steps: mmap.mmap, agent: int) -> None:
    decoder = msgspec.msgpack.Decoder(Request)
    threads: dict[int, queue.SimpleQueue[Work]] = {}
    os.umask(0)
    if not die_with_parent(agent):
        return
    while data := _hear(connection):
        request = decoder.decode(data)
        if request.branch not in threads:
            work: queue.SimpleQueue[Work] = queue.SimpleQueue()
            threads[request.branch] = work
            herald = _Herald(connection, memoryview(steps).cast("I"), request.branch)
            threading.Thread(target=herald.live, args=(work,), daemon=True).start()
        threads[request.branch].put(request.work)
    os._exit(0)


def _hear(connection: socket.socket) -> bytes:
    try:
        return connection.recv(MESSAGE_LIMIT)
    except ConnectionResetError:  # it has ended, and has not read an answer
        return b""


class _Folders:
    """Folders of the vault that are open, by the names that lead to them."""

    def __init__(self, begun: Begin) -> None:
        self._begun = begun
        self._open: dict[tuple[bytes, ...], int] = {}

    def open(self, path: Iterable[bytes]) -> int:
        """The folder, which stays open. EPERM if the way there leaves the vault."""
        key = tuple(path)
        fd = self._open.get(key, -1)
        if fd >= 0:
            return fd
        fd = os.open(self._begun.vault, FOLDER)
        try:
            for name in key:
                below = os.open(name, FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
            if os.fstat(fd).st_dev != self._begun.device:
                raise OSError(EPERM, os.strerror(EPERM))
        except OSError:
            os.close(fd)
            raise
        self._open[key] = fd
        return fd

    def close(self) -> None:
        """Close them all."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


class _Herald:
    """A thread's work: that of one branch."""

    def __init__(self, connection: socket.socket, steps: memoryview[int], branch: int) -> None:
        self._connection = connection
        self._steps = steps
        self._branch = branch
        self._begun = Begin(b"/", -1)
        self._number = 0  # of the change

    def live(self, work: queue.SimpleQueue[Work]) -> None:
        """Do what comes. What nobody expected ends the process: whoever waits for an answer hears of that."""
        try:
            while True:
                numbers = self._do(work.get())
                with contextlib.suppress(OSError):  # nobody waits any more
                    self._connection.send(msgspec.msgpack.encode(Answer(self._branch, numbers)))
        except Exception:  # noqa: BLE001 - told in the agent's log, and by the end
            traceback.print_exc()
            os._exit(1)

    def _do(self, work: Work) -> list[int]:
        if isinstance(work, Begin):
            self._begun = work
            with contextlib.suppress(OSError):
                os.stat(work.vault)  # once that is answered the vault is usable
            return [threading.get_native_id()]
        # Not kept open: whoever wants to unmount the vault would find it in use.
        folders = _Folders(self._begun)
        try:
            if isinstance(work, Refresh):
                for path, name in work.names:
                    self._refresh(folders, path, name)
                return []
            told = []
            for number, change in enumerate(work.changes):
                self._number = number
                self._rest()  # while the folders are opened
                with contextlib.suppress(OSError):  # things have moved on; other events tell how
                    if self._tell(change, folders):
                        told.append(number)
            return told
        finally:
            self._rest()
            folders.close()

    def _step(self, verb: int) -> None:
        self._steps[self._branch] = self._number << VERB_BITS | verb

    def _rest(self) -> None:
        self._steps[self._branch] = 0

    def _refresh(self, folders: _Folders, path: list[bytes], name: bytes) -> None:
        self._rest()
        with contextlib.suppress(OSError):
            folder = folders.open(path)
            self._number = 0
            self._step(REFRESH)
            _look_up(folder, name)

    def _tell(self, change: Told, folders: _Folders) -> bool:
        folder = folders.open(change.path)
        replaced = change.made or change.renamed
        if not change.mode:
            if change.removed:
                self._remove(change, folder)
            return change.removed
        if change.removed and change.was_known and replaced:
            with contextlib.suppress(OSError):
                self._remove(change, folder)
        modified = change.contents or change.attributes or change.closed
        if change.removed and not (replaced or modified):
            return False
        held = -1
        if change.renamed:
            self._rename(change, folder, folders.open(change.source_path))
        elif change.made:
            self._step(MAKE)
            held = _make(folder, change.name, change, closed=change.closed)
        self._modify(change, folder, held)
        return True

    def _remove(self, change: Told, folder: int) -> None:
        remove = os.rmdir if change.was_folder else os.unlink
        if change.was_known and not change.was_folder and not change.mode:
            with contextlib.suppress(OSError):
                self._step(REMOVE)
                remove(change.name, dir_fd=folder)
                return
        # Another file's by now, or a folder elsewhere; or known as gone already.
        self._step(LOOK_GONE)
        _look_up(folder, change.name)
        self._step(REMOVE)
        remove(change.name, dir_fd=folder)

    def _rename(self, change: Told, folder: int, source: int) -> None:
        if change.source_made:
            self._step(MAKE_SOURCE)
            made = _make(source, change.source_name, change, closed=change.source_closed)
            if made >= 0:
                os.close(made)
        self._step(LOOK_THERE)
        _look_up(source, change.source_name)
        self._step(RENAME)
        found = os.stat(change.source_name, dir_fd=source, follow_symlinks=False)
        if found.st_ino != change.node_id:  # another file's by now, which must not be lost
            raise FileNotFoundError
        os.rename(change.source_name, change.name, src_dir_fd=source, dst_dir_fd=folder)

    def _modify(self, change: Told, folder: int, held: int) -> None:
        """`held`: a descriptor of the file in the vault, -1 for none. It is closed."""
        try:
            if change.closed and held < 0:
                self._step(OPEN)
                with contextlib.suppress(OSError):  # it is being executed, or has become a pipe
                    held = os.open(change.name, _TO_WRITE, dir_fd=folder)
            if change.contents or change.attributes:
                self._step(TOUCH)
                if held >= 0:
                    touch_at(held, None, modified=change.contents)
                else:
                    touch_at(folder, change.name, modified=change.contents)
        finally:
            if held >= 0:
                os.close(held)


def _look_up(folder: int, name: bytes) -> None:
    """Have the kernel look the name up, whatever it remembers: as it does before it makes something new.

    Nothing is made: either there is something, or the request is refused.
    """
    with contextlib.suppress(OSError):
        os.mknod(name, stat.S_IFREG | 0o600, dir_fd=folder)


def _make(folder: int, name: bytes, change: Told, *, closed: bool) -> int:
    """Answers a descriptor of the new file if it is to be `closed`, else -1."""
    kind = stat.S_IFMT(change.mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, dir_fd=folder)
    elif kind == stat.S_IFLNK:
        os.symlink(b"-", name, dir_fd=folder)
    elif kind == stat.S_IFREG and closed:
        return os.open(name, _TO_WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    else:
        os.mknod(name, kind | 0o600, change.device, dir_fd=folder)
    return -1
