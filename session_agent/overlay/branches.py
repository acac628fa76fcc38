"""Branches while they are served: the root descriptor of each, and the way to call into it.

A local branch is called inline, in the event loop: its answers come from memory or a local disk, and a
thread would cost more than the call. A remote branch (a network, or another FUSE server) is called in
worker threads of its own, so that one that hangs holds up nobody else. A call that does not end in time
makes the agent probe the branch: one that is alive is waited for, one that hangs answers ETIMEDOUT, at once
from then on, until a probe finds it alive again.

A thread whose caller was given up still runs. So descriptors of a remote branch are not closed while any
call into it runs: the number could be in use again by the time the thread gets to it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

import trio

from session_agent.fsutil.at import Opened
from session_agent.fsutil.credentials import AGENT, Caller, assume
from session_agent.model import Branch, MountState
from session_agent.mounts.probe import Sight, look_here
from session_agent.overlay.calls import Renamed
from session_agent.overlay.polling import elsewhere

log = logging.getLogger(__name__)

T = TypeVar("T")

_DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN})


class OpenBranch:
    """A branch, the O_PATH descriptor of its root, and how its calls are made.

    `fd` is -1 where the branch could not be opened. `serials` numbers the devices found in it (see tree).
    """

    remote = False

    def __init__(self, index: int, branch: Branch, fd: int) -> None:
        self.index = index
        self.info = branch
        self.fd = fd
        self.state = branch.state
        self.gone = False  # its mount is not there any more
        self.serials: dict[int, int] = {}
        self.last_status: os.stat_result | None = None  # of its root, when that was last asked for

    async def call(self, caller: Caller, function: Callable[..., T], *arguments: object) -> T:
        """Call `function` with `caller`'s rights on files. It must touch nothing but its arguments."""
        if self.gone:
            raise _unavailable(self.state)
        assume(caller)
        return function(*arguments)

    async def call_slowly(
        self, caller: Caller, function: Callable[..., T], *arguments: object
    ) -> T:
        """Call `function` in a thread: for what takes long even on a local disk (fsync, a move)."""
        if self.gone:
            raise _unavailable(self.state)

        def with_rights() -> T:
            assume(caller)
            return function(*arguments)

        with elsewhere:
            return await trio.to_thread.run_sync(with_rights)

    async def release(self, caller: Caller, fd: int) -> None:
        """Close the descriptor of an open file or folder. It is closed even if that is an error."""
        assume(caller)
        os.close(fd)

    def renew(self, fd: int) -> None:
        """`fd` is the root from now on. The old one stays open: a move in a thread may be using it."""
        self.fd = fd
        self.gone = False
        self.state = MountState.ALIVE

    def vanish(self) -> None:
        """Its mount is gone: errors from now on, though the root's descriptor may go on answering."""
        self.gone = True
        self.state = MountState.DEAD

    def close_later(self, fd: int) -> None:
        """Close an O_PATH descriptor as soon as no call can be using it."""
        os.close(fd)

    def close(self) -> None:
        """Close the root's descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Job:
    """One call into a remote branch: the thread fills it in, the task that waits may give it up.

    `certain`: it is to be done all the same, be it much later.
    """

    def __init__(self, work: Callable[[], object], certain: bool) -> None:
        self.work = work
        self.certain = certain
        self.done = trio.Event()
        self.result: object = None
        self.error: BaseException | None = None
        self.given_up = False

    def run(self) -> None:
        """In the thread. A job that was given up before it began must not change anything any more."""
        if self.given_up and not self.certain:
            return
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - carried over to the task that waits
            self.error = error


class RemoteBranch(OpenBranch):
    """A branch whose calls can wait for a network or for another program."""

    remote = True

    _THREADS = 16
    _PROBE_SECONDS = 1.0
    _RETRY_SECONDS = 2.0
    _CALM_SECONDS = 28.0

    def __init__(self, index: int, branch: Branch, fd: int, time_limit: float) -> None:
        super().__init__(index, branch, fd)
        self._time_limit = time_limit  # seconds after which a call that has not ended is suspected
        self._limiter = trio.CapacityLimiter(self._THREADS)
        self._running = 0
        self._to_close: list[int] = []
        self._next_probe = 0.0
        self._asking = trio.CapacityLimiter(1)
        self._question: _Job | None = None  # put to the root, and not answered as yet

    async def call(self, caller: Caller, function: Callable[..., T], *arguments: object) -> T:
        """As a local branch's, in a thread. OSError ETIMEDOUT when the branch hangs."""
        if (
            self.fd < 0
            or self.gone
            or (self.state is not MountState.ALIVE and not await self._revived())
        ):
            raise _unavailable(self.state)

        def work() -> T:
            assume(caller)
            return function(*arguments)

        job = self._start(work)
        await self._ended(job)
        return job.result  # type: ignore[return-value]  # what `work` returned

    call_slowly = call

    async def release(self, caller: Caller, fd: int) -> None:
        """As a local branch's, in a thread: closing a file tells its server, and may wait for it.

        While the branch hangs nobody waits, but it is closed in the end: a server may only then save it.
        """

        def work() -> None:
            assume(caller)
            os.close(fd)

        job = self._start(work, certain=True)
        if self.state is MountState.ALIVE:
            await self._ended(job)

    def _start(self, work: Callable[[], object], certain: bool = False) -> _Job:
        job = _Job(work, certain)
        self._running += 1
        trio.lowlevel.spawn_system_task(self._in_thread, job)
        return job

    async def _ended(self, job: _Job) -> None:
        """Wait for the job's end, and raise what it has raised. Give it up if the branch does not answer."""
        try:
            while not job.done.is_set():
                with elsewhere, trio.move_on_after(self._time_limit):
                    await job.done.wait()
                if not job.done.is_set() and not await self._answers() and not job.done.is_set():
                    raise _unavailable(self.state)
        except BaseException:  # trio.Cancelled included
            job.given_up = True
            if job.done.is_set():
                close_result(job.result)
            raise
        if job.error is not None:
            if isinstance(job.error, OSError) and job.error.errno in _DEAD:
                self._became(MountState.DEAD)
            raise job.error

    async def _in_thread(self, job: _Job) -> None:
        try:
            await self._thread(job.run)
            job.done.set()
            if job.given_up:
                await self._thread(lambda: close_result(job.result))
        finally:
            job.done.set()
            self._running -= 1
            if self._running == 0:
                fds, self._to_close = self._to_close, []
                for fd in fds:
                    os.close(fd)

    async def _thread(self, function: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(function, limiter=self._limiter, abandon_on_cancel=True)

    async def _answers(self) -> bool:
        """Whether the branch is alive; by the last probe, if that has ended just now."""
        if self._question is None and time.monotonic() < self._next_probe:
            return self.state is MountState.ALIVE
        return await self._probe()

    async def _revived(self) -> bool:
        """Ask a branch that is not alive once more, but not at every call."""
        return time.monotonic() >= self._next_probe and await self._probe()

    def is_due(self) -> bool:
        """Whether it has not been looked at for long: half a minute if it answered then, else not at all."""
        calm = self._CALM_SECONDS if self.state is MountState.ALIVE else 0.0
        return self.fd >= 0 and not self.gone and time.monotonic() >= self._next_probe + calm

    async def look(self) -> None:
        """See whether it answers."""
        await self._probe()

    async def _probe(self) -> bool:
        """Whether the root answers now. All that ask meanwhile wait for one answer.

        Asked in a thread of its own, never in a forked process: that has a copy of each open file, and when
        it ends the kernel tells the server that each was closed. rclone then ends an upload under way.
        """
        self._next_probe = time.monotonic() + self._RETRY_SECONDS
        if self._question is None:
            fd = self.fd

            def ask() -> Sight:
                assume(AGENT)
                return look_here(fd)

            self._question = _Job(ask, certain=True)
            trio.lowlevel.spawn_system_task(self._ask, self._question)
        question = self._question
        with elsewhere, trio.move_on_after(self._PROBE_SECONDS):
            await question.done.wait()
        if not question.done.is_set():
            self._became(MountState.HUNG)
        return self.state is MountState.ALIVE

    async def _ask(self, question: _Job) -> None:
        try:
            await trio.to_thread.run_sync(
                question.run, abandon_on_cancel=True, limiter=self._asking
            )
        finally:
            self._question = None
        if isinstance(question.result, Sight):
            self._became(question.result.state)
        question.done.set()

    def renew(self, fd: int) -> None:
        """`fd` is the root from now on. Whether it answers, the next call finds out."""
        former, self.fd = self.fd, fd
        self.gone = False
        self._next_probe = 0.0
        self._became(MountState.ALIVE)
        if former >= 0:
            self.close_later(former)

    def _became(self, state: MountState) -> None:
        if state is not self.state and not self.gone:
            log.warning("branch %s is %s (was %s)", self.info.name, state, self.state)
            self.state = state

    def close_later(self, fd: int) -> None:
        """Close an O_PATH descriptor when no call is under way that could be using it."""
        if self._running:
            self._to_close.append(fd)
        else:
            os.close(fd)


def close_result(result: object) -> None:
    """Close the descriptors in the result of a call whose caller is gone."""
    if isinstance(result, Renamed):
        result = result.replaced
    if isinstance(result, Opened):
        with contextlib.suppress(OSError):  # its server is gone: closed all the same
            os.close(result.fd)
    elif isinstance(result, list):
        for one in result:
            close_result(one)


def _unavailable(state: MountState) -> OSError:
    number = errno.ENOTCONN if state is MountState.DEAD else errno.ETIMEDOUT
    return OSError(number, os.strerror(number))
