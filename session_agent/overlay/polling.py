"""Waiting for the kernel's next request without sleeping too soon.

Half of what a request costs is waking up: the server sleeps in epoll, and on a virtual machine waking a
halted processor takes tens of microseconds. Where one request follows another (a program that walks the
vault), the next one is there before the server is asleep. So after a request the session's descriptor is
polled for a few tens of microseconds first.

- Only while requests come hot: after a wait that was too long to be worth it, the server sleeps at once,
  until a request follows the one before it quickly again. An idle agent does not poll.
- Only while there is a processor to spare: if polling is interrupted, somebody else needs it, and for a
  while the server sleeps at once. It is then woken as soon as a request comes, ahead of who is computing.
- Each round lets go of the interpreter lock, so that worker threads get on.
- Then the thread sleeps for the descriptor alone for two milliseconds, unless calls are under way in
  threads, whose end only the event loop hears of; then in the event loop, for as long as it takes.
- After at most `_TURN` in one go the event loop's other tasks get their turn.

pyfuse3 takes its event library from its own module attribute `trio`; the stand-in here is put there.
Its lock also differs from trio's: pyfuse3 keeps several tasks of which one at a time reads requests, and
trio's lock would switch tasks at each request for fairness that nobody needs.
"""

from __future__ import annotations

import select
import time
from typing import Any

import pyfuse3
import trio

_SPIN = 50_000  # ns to poll before going to sleep
_HOT = 150_000  # ns: a wait shorter than this, waking up included, is worth polling for
_INTERRUPTED = 20_000  # ns between two rounds of polling: somebody else had the processor
_PAUSE = 100_000_000  # ns for which there is no polling then
_NAP = 2  # ms to sleep for the next request alone, which costs a third of what the event loop does
_TURN = 2_000_000  # ns after which the other tasks of the event loop get their turn


class Elsewhere:
    """Counts the calls that are under way in threads. Use as a context."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


elsewhere = Elsewhere()


class _Lowlevel:
    """`trio.lowlevel` with another `wait_readable`."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._registered = -1
        self._hot = False
        self._turn_ends = 0
        self._no_polling_until = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        if self._registered != fd:
            self._poll = select.poll()  # what is ready of another one, or closed, must not wake us
            self._poll.register(fd, select.POLLIN)
            self._registered = fd
        start = now = time.monotonic_ns()
        if now > self._turn_ends:
            await trio.lowlevel.checkpoint()
            start = now = time.monotonic_ns()
            self._turn_ends = now + _TURN
        if self._hot and now > self._no_polling_until:
            poll = self._poll.poll
            limit = now + _SPIN
            while now < limit:
                if poll(0):
                    return
                before, now = now, time.monotonic_ns()
                if now - before > _INTERRUPTED:
                    self._no_polling_until = now + _PAUSE
                    break
        if elsewhere.count or not self._poll.poll(_NAP):
            await trio.lowlevel.wait_readable(fd)
        now = time.monotonic_ns()
        self._hot = now - start < _HOT


class _ReadLock:
    """A lock without fairness: a task that releases it and comes back first has it again.

    One that waits is woken at a release all the same. It runs only if the releasing task stops for
    something else (a remote branch, an fsync), and then has to take over; else it finds the lock taken.
    """

    def __init__(self) -> None:
        self._held = False
        self._sleepers: list[trio.lowlevel.Task] = []
        self._woken: trio.lowlevel.Task | None = None

    async def __aenter__(self) -> None:
        while self._held:
            task = trio.lowlevel.current_task()
            self._sleepers.append(task)

            def forget(
                _raise_cancel: object, task: trio.lowlevel.Task = task
            ) -> trio.lowlevel.Abort:
                self._sleepers.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(forget)
            if self._woken is task:
                self._woken = None
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False
        if self._sleepers and self._woken is None:
            self._woken = self._sleepers.pop()
            trio.lowlevel.reschedule(self._woken)


class _Trio:
    """`trio` as pyfuse3 sees it."""

    Lock = _ReadLock

    def __init__(self) -> None:
        self.lowlevel = _Lowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install() -> None:
    """Make pyfuse3 wait in this way."""
    pyfuse3.trio = _Trio()  # type: ignore[attr-defined]  # a module attribute, as its asyncio adapter sets
