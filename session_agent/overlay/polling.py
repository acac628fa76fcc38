"""Waiting for the kernel's next request without going to sleep too soon.

Half of what a small request costs is going to sleep and being woken: on a virtual machine, waking a halted
processor takes many times what the request takes. Where one request follows another (a program that walks
the vault) the next one comes within microseconds. So after a request the session's descriptor is

1. polled without sleeping, for `_SPIN` at most and only while requests come hot: after a wait that was too
   long to be worth it that is left out, until a request follows the one before it quickly again;
2. then slept for alone, for `_NAP` at most, which costs a third of what the event loop does for the same;
   not while calls are under way in threads, since only the event loop hears of their end;
3. then left to the event loop. An idle agent is not woken by itself.

Every `_TURN` requests the event loop's other tasks get their turn. Each poll lets go of the interpreter lock.

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

_SPIN = 50_000  # ns to poll without sleeping
_HOT = 300_000  # ns: after a wait shorter than this, waking up included, polling is worth it
_NAP = 2  # ms to sleep for the next request alone: so long other tasks may have to wait
_BUSY = 5_000_000  # ns since the last request
_TURN = 64  # requests after which the other tasks of the event loop get their turn
_TURN_PRESSED = 8  # the same while one of them has much to do that must not wait


class Underway:
    """Counts what is under way. Use as a context."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


elsewhere = Underway()
"""Calls in threads: only the event loop hears of their end."""

pressed = Underway()
"""What other tasks do and must not wait for: the kernel remembers what is not true until it is done."""


class _Lowlevel:
    """`trio.lowlevel` with another `wait_readable`."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._registered = -1
        self._requests = 0
        self._hot = False
        self.last = 0  # ns: when the last request was done

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        if self._registered != fd:
            self._poll = select.poll()  # what is ready of another one, or closed, must not wake us
            self._poll.register(fd, select.POLLIN)
            self._registered = fd
        self._requests += 1
        if self._requests >= (_TURN_PRESSED if pressed.count else _TURN):
            self._requests = 0
            await trio.lowlevel.checkpoint()
        poll, clock = self._poll.poll, time.monotonic_ns
        self.last = clock()
        if self._hot:
            limit = self.last + _SPIN
            while not poll(0):
                if clock() > limit:
                    break
            else:
                return
        start = clock()
        if not poll(0 if elsewhere.count or pressed.count else _NAP):
            await trio.lowlevel.wait_readable(fd)
        self._hot = clock() - start < _HOT


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


_trio = _Trio()


def install() -> None:
    """Make pyfuse3 wait in this way."""
    pyfuse3.trio = _trio  # type: ignore[attr-defined]  # a module attribute, as its asyncio adapter sets


def is_busy() -> bool:
    """Whether somebody is at work in the vault just now. From any thread."""
    return time.monotonic_ns() - _trio.lowlevel.last < _BUSY
