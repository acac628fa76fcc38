"""Several folders of a tree at a time: a thread each, as long as there are some to spare.

Making and removing files takes its time in the kernel, which lets one thread at a time change a folder. So
the threads share out folders, not files. Where a file takes so little time that most of it is the
interpreter's, of which there is one, a second thread would only be in the way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from session_agent.fsutil.credentials import AGENT, assume

T = TypeVar("T")

_WORTH = 150e-6  # seconds for a file, from which on threads help
MANY_FILES = 500  # in a tree for which threads are worth their start
_MOST = 4


class Result(Generic[T]):
    """What a call has given, or will have given."""

    def __init__(self, value: T | None, future: Future[T] | None = None) -> None:
        self._value = value
        self._future = future

    def wait(self) -> None:
        """Wait for it, whatever it is."""
        if self._future is not None:
            self._future.exception()

    def get(self) -> T:
        """Wait for it. Raises what the call has raised."""
        if self._future is not None:
            return self._future.result()
        return self._value  # type: ignore[return-value]  # what the call has returned


class Workers:
    """Threads besides the caller's own. Use as a context: at its end every call has ended."""

    def __init__(self, files: int) -> None:
        """`files` are to be worked on. For few, or on one processor, everything is done by the caller."""
        count = min(_MOST, os.cpu_count() or 1) - 1 if files > MANY_FILES else 0
        self._files = 0
        self._seconds = 0.0
        self._spare = threading.Semaphore(count)
        self._threads = ThreadPoolExecutor(max(count, 1), "session-agent-move")

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True)

    def took(self, files: int, seconds: float) -> None:
        """So much was done in one thread, by itself."""
        self._files += files
        self._seconds += seconds

    def run(self, function: Callable[[], T]) -> Result[T]:
        """Call `function` in a thread to spare, else here. It may itself use these workers.

        Nobody waits for a thread to become free, so calls in calls cannot wait for each other.
        """
        slow = self._files > 0 and self._seconds / self._files > _WORTH
        if not slow or not self._spare.acquire(blocking=False):
            return Result(function())

        def work() -> T:
            try:
                assume(AGENT)
                return function()
            finally:
                self._spare.release()

        return Result(None, self._threads.submit(work))


def wait_for(results: Iterable[Result[T]]) -> None:
    """Wait for all of them, whatever they are."""
    for result in results:
        result.wait()
