"""Copier processes, as the agent sees them: they do for a move what takes many small calls.

A thread that copies thousands of notes shares the interpreter with the requests of the vault, which wait for
it. A process does not. See copier_process for the other side.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from session_agent.moves.progress import CancelledError, Progress
from session_agent.moves.snapshot import Copied

T = TypeVar("T")

MESSAGE_LIMIT = 1 << 20  # bytes; some hundred files with the longest names take a third of it
GO_ON, STOP = b"go", b"stop"
STAGED, ANSWER = b"s", b"a"  # what the first byte of a copier's message says of it


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """What all files of a stage have in common: see copy.Staging."""

    device: int
    forbidden: tuple[int, int]
    cloning: bool
    distrusted: bool


class Copy(msgspec.Struct, tag=True):
    """Copy these entries of the first folder to the second one: copy.copy_alone."""

    names: list[bytes]
    terms: Terms


class CopiedEntries(msgspec.Struct, array_like=True):
    """What has become of each entry; None if it is not copied. `cloning`: it is still worth an attempt."""

    entries: list[Copied | None]
    losses: list[str]
    cloned: bool
    cloning: bool


class Verify(msgspec.Struct, tag=True):
    """Look at these entries of the folder: verify.are_as_copied."""

    entries: list[tuple[bytes, Copied]]


class Remove(msgspec.Struct, tag=True):
    """Remove these entries of the folder: retire.remove_all_unchanged."""

    entries: list[tuple[bytes, Copied]]


class Measure(msgspec.Struct, tag=True):
    """Measure this entry of the folder: plan.measure."""

    name: bytes


Work = Copy | Verify | Remove | Measure


class Copier:
    """One process, as who has asked for it sees it. Not to be used by two threads at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def ask(
        self, work: Work, folders: Sequence[int], result: type[T], progress: Progress
    ) -> T | None:
        """The result of `work` with these descriptors; None if the process is gone. CancelledError.

        It does nothing more when this returns or raises.
        """
        try:
            socket.send_fds(self._connection, [msgspec.msgpack.encode(work)], folders)
            message = self._connection.recv(MESSAGE_LIMIT)
            while message[:1] == STAGED:
                self._connection.send(self._add(progress, message[1:]))
                message = self._connection.recv(MESSAGE_LIMIT)
        except OSError:
            return None
        progress.check()
        return msgspec.msgpack.decode(message[1:], type=result) if message else None

    def _add(self, progress: Progress, message: bytes) -> bytes:
        try:
            progress.add(*msgspec.msgpack.decode(message, type=tuple[int, int]))
        except CancelledError:
            return STOP
        return GO_ON

    def close(self) -> None:
        """Let the process end."""
        self._connection.close()


class Copiers:
    """Where copier processes come from."""

    def __init__(self, pid: int, nursery: socket.socket) -> None:
        self._pid = pid
        self._nursery = nursery

    def new(self) -> Copier | None:
        """A new process, None if there can be none."""
        ours, its = socket_pair()
        with its:
            try:
                socket.send_fds(self._nursery, [b"new"], [its.fileno()])
            except OSError:
                ours.close()
                return None
        return Copier(ours)

    def end(self) -> None:
        """End all of them."""
        self._nursery.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that messages of MESSAGE_LIMIT fit through."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in pair:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_LIMIT)
    return pair
