"""The counts of what is staged, and how fast they grow."""

from __future__ import annotations

import threading
import time

import pytest

from session_agent.moves.data import _next_chunk
from session_agent.moves.progress import CancelledError, Progress

MIB = 1 << 20


def test_nothing_is_staged_yet() -> None:
    assert Progress().rate == 0.0


def test_the_rate_is_that_of_the_last_seconds() -> None:
    progress = Progress()
    begun = time.monotonic()
    while time.monotonic() - begun < 2.2:
        progress.add(1000)
        time.sleep(0.01)
    average = progress.bytes / (time.monotonic() - begun)
    assert 0.5 * average < progress.rate < 2 * average
    before = progress.rate
    time.sleep(2.0)
    assert progress.rate < 0.7 * before  # it stands still, and that shows


def test_time_that_a_move_waits_for_its_turn_does_not_count() -> None:
    progress = Progress()
    time.sleep(0.5)
    progress.add(0, 1)
    time.sleep(0.1)
    progress.add(MIB)
    assert progress.rate > 4 * MIB


def test_several_threads_count_together() -> None:
    progress = Progress()

    def work() -> None:
        for _ in range(2000):
            progress.add(3, 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (progress.bytes, progress.files) == (24_000, 8000)


def test_cancelled_while_it_waits() -> None:
    progress = Progress()
    progress.pause()
    threading.Timer(0.1, progress.cancel).start()
    with pytest.raises(CancelledError):
        progress.add(1)


@pytest.mark.parametrize(
    ("chunk", "seconds", "then"),
    [
        (MIB, 0.001, 2 * MIB),
        (8 * MIB, 0.001, 8 * MIB),
        (MIB, 0.2, MIB),
        (MIB, 3.0, MIB // 2),
        (MIB // 8, 3.0, MIB // 8),
    ],
)
def test_slow_storage_is_given_less_at_a_time(chunk: int, seconds: float, then: int) -> None:
    assert _next_chunk(chunk, seconds) == then
