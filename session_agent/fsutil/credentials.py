"""Whose rights a backing call is made with.

As root the agent acts for whoever called: each thread has a file-system identity (fsuid, fsgid and
supplementary groups, see setfsuid(2)) that the kernel checks instead of root's. Leaving fsuid 0 also drops
the capabilities that overrule file permissions, and coming back restores them. A thread remembers the
identity it has, so a run of calls by one caller costs no system call.

Started as a user the agent cannot change identity and need not: whatever it does is that user's doing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from session_agent.fsutil.syscalls import set_fs_identity
from session_agent.model import SessionUser


class Caller(NamedTuple):
    """A file-system identity."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


AGENT = Caller(os.geteuid(), os.getegid(), tuple(os.getgroups()))
"""The identity that the process was started with."""

_CAN_SWITCH = AGENT.uid == 0
_ROOT = Caller(0, 0)


class _Current(threading.local):
    # A new thread inherits the identity of the thread that made it, which may be any caller's.
    caller: Caller | None = None


_current = _Current()


def assume(caller: Caller) -> None:
    """Make this thread act as `caller` until the next call. Nothing to do unless the agent is root."""
    if _current.caller is caller or not _CAN_SWITCH:
        return
    if _current.caller != caller:
        _current.caller = None  # unknown, should one of the calls fail half way
        set_fs_identity(caller.uid, caller.gid, caller.groups)
    _current.caller = caller


@contextmanager
def acting_as(user: SessionUser | Caller) -> Iterator[None]:
    """Within the block this thread has `user`'s rights on files; afterwards the agent's own."""
    caller = user if isinstance(user, Caller) else Caller(user.uid, user.gid, user.groups)
    assume(caller)
    try:
        yield
    finally:
        assume(AGENT)


class CallerCache:
    """The caller of a FUSE request, with the supplementary groups that the request does not carry.

    They are read from /proc/PID/status and kept for a second: a program that calls setgroups(2) is served
    with its old groups for that long. That widens nothing, since the kernel has already checked the request
    against the true ones (mount option default_permissions).
    """

    _KEEP_SECONDS = 1.0
    _LIMIT = 1024

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], tuple[Caller, float]] = {}

    def caller(self, pid: int, uid: int, gid: int) -> Caller:
        """The identity behind a request by process `pid`."""
        if not _CAN_SWITCH:
            return AGENT
        if uid == 0 and gid == 0:  # root overrules group permissions: its groups need not be known
            return _ROOT
        key = (pid, uid, gid)
        now = time.monotonic()
        known = self._known.get(key)
        if known is not None and now < known[1]:
            return known[0]
        caller = Caller(uid, gid, () if uid == 0 else _supplementary_groups(pid))
        if known is not None and known[0] == caller:
            caller = known[0]  # the same object, so that `assume` sees it at a glance
        if len(self._known) >= self._LIMIT:
            self._known.clear()
        self._known[key] = (caller, now + self._KEEP_SECONDS)
        return caller


def _supplementary_groups(pid: int) -> tuple[int, ...]:
    """The groups of `pid`; none for a process that has ended or that lives in another PID namespace."""
    assume(AGENT)
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            # All of it: what is left of a number that is cut off would be another group's.
            text = file.read()
    except OSError:  # it has ended
        return ()
    start = text.find(b"\nGroups:")
    if start < 0:
        return ()
    return tuple(int(word) for word in text[start + 8 : text.find(b"\n", start + 8)].split())
