"""The nursery and the copier processes themselves.

A copier cannot be forked from the agent when it is needed: a child of a process that has the branches' files
open would tell their servers, when it ends, that each was closed (see overlay/branches.py). So one small
process, the nursery, is forked before anything is opened. It forks the copiers, and hands nothing on.

A copier is given descriptors of folders and names in them, and knows nothing else. Whatever it does not do,
whoever asked it does: so one that is killed costs time only. It dies with the agent, so that nothing is
written once recovery has begun.
"""

from __future__ import annotations

import os
import signal
import socket

import msgspec

from session_agent.fsutil import bounded
from session_agent.fsutil.syscalls import die_with_parent
from session_agent.moves.copiers import (
    ANSWER,
    GO_ON,
    MESSAGE_LIMIT,
    STAGED,
    Copiers,
    Copy,
    Remove,
    Verify,
    Work,
    socket_pair,
)
from session_agent.moves.copy import copy_alone
from session_agent.moves.plan import Place, measure
from session_agent.moves.progress import CancelledError, Progress
from session_agent.moves.retire import remove_all_unchanged
from session_agent.moves.verify import are_as_copied

_NICER = 5  # than the agent: whoever waits for the vault comes first
_STEP = (
    8 << 20,
    100,
)  # bytes and files, after which it tells how far it is and hears whether to go on

_decoder = msgspec.msgpack.Decoder(Work)


def start() -> Copiers:
    """Fork the nursery. To be called before any branch is opened, and before any thread is started."""
    ours, its = socket_pair()
    agent = os.getpid()
    pid = bounded.start_for_good(lambda: _raise_copiers(its, agent), None, keep={its.fileno(), 2})
    its.close()
    return Copiers(pid, ours)


def _raise_copiers(connection: socket.socket, agent: int) -> None:
    """The nursery's life."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the copiers
    os.umask(0)
    if not die_with_parent(agent):
        return
    nursery = os.getpid()
    while True:
        _, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
        if not descriptors:
            return
        if os.fork() == 0:
            connection.close()
            _work(socket.socket(fileno=descriptors[0]), nursery)
        os.close(descriptors[0])


def _work(connection: socket.socket, nursery: int) -> None:
    """A copier's life."""
    try:
        if die_with_parent(nursery):
            os.nice(_NICER)
            while True:
                request, folders, _, _ = socket.recv_fds(connection, MESSAGE_LIMIT, 2)
                if not request:
                    break
                answer = _do(_decoder.decode(request), folders, _Told(connection))
                connection.send(ANSWER + msgspec.msgpack.encode(answer))
                for folder in folders:
                    os.close(folder)
    finally:
        os._exit(0)


def _do(work: Work, folders: list[int], progress: Progress) -> object:
    if isinstance(work, Copy):
        return copy_alone(folders[0], folders[1], work.names, work.terms, progress)
    if isinstance(work, Verify):
        return are_as_copied(folders[0], work.entries)
    if isinstance(work, Remove):
        return remove_all_unchanged(folders[0], work.entries)
    return measure(Place(folders[0], work.name, ""))


class _Told(Progress):
    """Progress that is told to the agent, and waits for its word."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection

    def add(self, count: int = 0, files: int = 0) -> None:
        self.bytes += count
        self.files += files
        if self.bytes < _STEP[0] and self.files < _STEP[1]:
            return
        self._connection.send(STAGED + msgspec.msgpack.encode((self.bytes, self.files)))
        self.bytes = self.files = 0
        if self._connection.recv(len(GO_ON)) != GO_ON:
            raise CancelledError
