"""Waiting for requests: no request is missed, nobody else is kept waiting, and an idle agent sleeps."""

from __future__ import annotations

import itertools
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pyfuse3
import pytest
import trio
import trio.lowlevel
import trio.testing

from session_agent.overlay import polling
from session_agent.overlay.polling import _Lowlevel, _ReadLock, elsewhere


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def lowlevel() -> Iterator[_Lowlevel]:
    yield _Lowlevel()
    assert elsewhere.count == 0


def run(function: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
    """In an event loop, for 20 s at most."""

    async def bounded() -> None:
        with trio.fail_after(20):
            await function(*arguments)

    trio.run(bounded)


def _echo(theirs: socket.socket, times: int, pause: float = 0.0) -> threading.Thread:
    """A client that asks, and waits for the answer before it asks again."""

    def ask() -> None:
        for _ in range(times):
            theirs.send(b"?")
            assert theirs.recv(1) == b"!"
            if pause:
                time.sleep(pause)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


async def _answer(lowlevel: _Lowlevel, ours: socket.socket, times: int) -> None:
    for _ in range(times):
        await lowlevel.wait_readable(ours.fileno())
        assert select.select([ours], [], [], 0)[0], "woken without a request"
        assert ours.recv(1) == b"?"
        ours.send(b"!")


# wait_readable


@pytest.mark.parametrize(("times", "pause"), [(2000, 0), (30, 0.001), (10, 0.02)])
@pytest.mark.parametrize("busy_elsewhere", [False, True])
def test_every_request_is_answered(
    lowlevel: _Lowlevel,
    pair: tuple[socket.socket, socket.socket],
    times: int,
    pause: float,
    busy_elsewhere: bool,
) -> None:
    async def main() -> None:
        thread = _echo(pair[1], times, pause)
        if busy_elsewhere:
            with elsewhere:
                await _answer(lowlevel, pair[0], times)
        else:
            await _answer(lowlevel, pair[0], times)
        thread.join()

    run(main)


def test_an_idle_agent_sleeps(
    lowlevel: _Lowlevel, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Also right after a run of requests; neither processor time nor being woken."""

    async def main() -> None:
        thread = _echo(pair[1], 500)
        await _answer(lowlevel, pair[0], 500)
        thread.join()
        await trio.lowlevel.checkpoint()
        used, voluntary = time.thread_time(), _switches()
        with trio.move_on_after(1.0) as scope:
            await lowlevel.wait_readable(pair[0].fileno())
        assert scope.cancelled_caught
        assert time.thread_time() - used < 0.2  # a virtual machine counts some for sleeping, too
        assert _switches() - voluntary < 20

    run(main)


def _switches() -> int:
    """How often this thread has gone to sleep."""
    with open(f"/proc/self/task/{threading.get_native_id()}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("voluntary"):
                return int(line.split()[1])
    raise AssertionError


def test_other_tasks_get_their_turn_while_requests_come_hot(
    lowlevel: _Lowlevel, pair: tuple[socket.socket, socket.socket]
) -> None:
    async def main() -> None:
        turns: list[float] = []

        async def other() -> None:
            while True:
                turns.append(time.monotonic())
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            thread = _echo(pair[1], 3000)
            await _answer(lowlevel, pair[0], 3000)
            thread.join()
            nursery.cancel_scope.cancel()
        waits = sorted(after - before for before, after in itertools.pairwise(turns))
        assert len(waits) > 10
        assert waits[len(waits) // 2] < 0.02  # 2 ms, if the machine has nothing else to do

    run(main)


def test_a_timer_is_late_by_little_while_nobody_asks(
    lowlevel: _Lowlevel, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The sleep for the next request alone must not be the event loop's only one."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lowlevel.wait_readable, pair[0].fileno())
            start = time.monotonic()
            await trio.sleep(0.05)
            assert time.monotonic() - start < 0.5
            nursery.cancel_scope.cancel()

    run(main)


def test_a_thread_that_ends_is_heard_of(
    lowlevel: _Lowlevel, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Its end wakes the event loop, not the descriptor that is waited for."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lowlevel.wait_readable, pair[0].fileno())
            start = time.monotonic()
            for _ in range(50):
                with elsewhere:
                    await trio.to_thread.run_sync(os.getpid)
            assert time.monotonic() - start < 1.0
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("hot", [False, True])
def test_waiting_can_be_cancelled(
    lowlevel: _Lowlevel, pair: tuple[socket.socket, socket.socket], hot: bool
) -> None:
    async def main() -> None:
        if hot:
            thread = _echo(pair[1], 200)
            await _answer(lowlevel, pair[0], 200)
            thread.join()
        with trio.move_on_after(0.05) as scope:
            await lowlevel.wait_readable(pair[0].fileno())
        assert scope.cancelled_caught
        # And again, as if nothing had been.
        thread = _echo(pair[1], 1)
        await _answer(lowlevel, pair[0], 1)
        thread.join()

    run(main)


def test_a_stream_of_requests_does_not_keep_a_cancellation_off(
    lowlevel: _Lowlevel, pair: tuple[socket.socket, socket.socket]
) -> None:
    async def main() -> None:
        pair[1].send(b"?")  # is never taken: readable for good
        with trio.move_on_after(0.05) as scope:
            while True:
                await lowlevel.wait_readable(pair[0].fileno())
        assert scope.cancelled_caught

    run(main)


def test_another_descriptor(lowlevel: _Lowlevel, pair: tuple[socket.socket, socket.socket]) -> None:
    """The one before it, closed or readable, is of no interest any more."""
    for keep_open in (True, False):
        ours, theirs = socket.socketpair()
        with ours, theirs:

            async def first(ours: socket.socket, theirs: socket.socket) -> None:
                thread = _echo(theirs, 500)
                await _answer(lowlevel, ours, 500)
                thread.join()
                theirs.send(b"unread")

            run(first, ours, theirs)
            if not keep_open:
                ours.close()

            async def second() -> None:
                with trio.move_on_after(0.05) as scope:
                    await lowlevel.wait_readable(pair[0].fileno())
                assert scope.cancelled_caught, "woken by the old descriptor"
                thread = _echo(pair[1], 100)
                await _answer(lowlevel, pair[0], 100)
                thread.join()

            run(second)


# The lock


def test_one_at_a_time() -> None:
    async def main() -> None:
        lock = _ReadLock()
        inside = 0
        entered = 0

        async def work(seed: int) -> None:
            nonlocal inside, entered
            rng = random.Random(seed)
            for _ in range(50):
                async with lock:
                    inside += 1
                    entered += 1
                    assert inside == 1
                    for _ in range(rng.randrange(3)):
                        await trio.lowlevel.checkpoint()
                    inside -= 1
                if rng.random() < 0.5:
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for seed in range(20):
                nursery.start_soon(work, seed)
        assert entered == 20 * 50

    run(main)


def test_who_releases_it_and_comes_back_has_it_again() -> None:
    """No change of tasks for a request that was answered without waiting for anything."""

    async def main() -> None:
        lock = _ReadLock()
        order: list[str] = []

        async def waiter() -> None:
            async with lock:
                order.append("waiter")

        async with trio.open_nursery() as nursery:
            await lock.__aenter__()
            nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                await lock.__aexit__()
                with trio.testing.assert_no_checkpoints():
                    await lock.__aenter__()
                order.append("first")
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["first"] * 3  # the waiter was woken, and found it taken
            await lock.__aexit__()
        assert order == ["first"] * 3 + ["waiter"]

    run(main)


def test_the_one_that_came_last_is_first() -> None:
    """Its memory is the warmest."""

    async def main() -> None:
        lock = _ReadLock()
        order: list[int] = []

        async def waiter(number: int) -> None:
            async with lock:
                order.append(number)

        async with trio.open_nursery() as nursery:
            await lock.__aenter__()
            for number in range(4):
                nursery.start_soon(waiter, number)
                await trio.testing.wait_all_tasks_blocked()
            await lock.__aexit__()
        assert order == [3, 2, 1, 0]

    run(main)


def test_an_error_inside_releases_it() -> None:
    async def main() -> None:
        lock = _ReadLock()
        with pytest.raises(ZeroDivisionError):
            async with lock:
                raise ZeroDivisionError
        with trio.testing.assert_no_checkpoints():
            await lock.__aenter__()

    run(main)


def test_a_waiter_that_is_cancelled_takes_no_turn_with_it() -> None:
    """Before, while and after it is woken; whoever else waits gets the lock all the same."""

    async def main(seed: int) -> None:
        rng = random.Random(seed)
        lock = _ReadLock()
        got: list[int] = []
        scopes = [trio.CancelScope() for _ in range(8)]

        async def waiter(number: int) -> None:
            with scopes[number]:
                async with lock:
                    got.append(number)
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            await lock.__aenter__()
            for number in range(8):
                nursery.start_soon(waiter, number)
                await trio.testing.wait_all_tasks_blocked()
            cancelled = rng.sample(range(8), rng.randrange(8))
            early = rng.randrange(len(cancelled) + 1)
            for number in cancelled[:early]:
                scopes[number].cancel()
            await lock.__aexit__()
            for number in cancelled[early:]:  # the woken one among them, perhaps
                scopes[number].cancel()
        assert set(range(8)) - set(cancelled) <= set(got)
        with trio.testing.assert_no_checkpoints():
            await lock.__aenter__()

    for seed in range(200):
        run(main, seed)


# pyfuse3's trio


def test_pyfuse3_waits_in_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "trio", trio)
    polling.install()
    stand_in: Any = pyfuse3.trio  # type: ignore[attr-defined]
    assert isinstance(stand_in.lowlevel, _Lowlevel)
    assert isinstance(stand_in.Lock(), _ReadLock)
    assert stand_in.open_nursery is trio.open_nursery
    assert stand_in.lowlevel.current_task is trio.lowlevel.current_task
    with pytest.raises(AttributeError):
        _ = stand_in.no_such_thing


def test_what_is_under_way_elsewhere_is_counted() -> None:
    with elsewhere, elsewhere:
        assert elsewhere.count == 2
        with pytest.raises(ZeroDivisionError), elsewhere:
            raise ZeroDivisionError
        assert elsewhere.count == 2
    assert elsewhere.count == 0
