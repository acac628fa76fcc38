"""Who does the work of one move: its own thread, and for large trees copier processes besides.

Making and removing files takes its time in the kernel, which lets one process at a time change a folder. So
folders are shared out, not files: a thread each, which has a copier do what is to be done with the files in
it, and waits. Threads alone would not help, as there is one interpreter for them all.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from session_agent.fsutil.credentials import AGENT, assume
from session_agent.moves.copiers import (
    CopiedEntries,
    Copier,
    Copiers,
    Copy,
    Measure,
    Remove,
    Terms,
    Verify,
    Work,
)
from session_agent.moves.data import SourceChangedError
from session_agent.moves.plan import Place, Size, measure
from session_agent.moves.progress import CancelledError, Progress
from session_agent.moves.retire import remove_all_unchanged, remove_unchanged
from session_agent.moves.snapshot import Copied
from session_agent.moves.verify import are_as_copied, verify

T = TypeVar("T")

MANY_FILES = 300  # in a tree for which processes are worth their start
_MOST = 4
_BATCH = 64
_GROUP = 400  # files to be looked at or removed by one call: some milliseconds


class Calls:
    """Calls that are made together; see Workers.together."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.futures: list[Future[Any]] = []

    def add(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call `function` in a thread to spare, else here."""
        future = self._workers.call(function, *arguments)
        self.futures.append(future)
        return future


class Workers:
    """To be closed when the move has ended."""

    def __init__(
        self, copiers: Copiers | None = None, others_wait: Callable[[], bool] = lambda: False
    ) -> None:
        """Until `begin`, or without `copiers`, everything is done by the caller.

        `others_wait`: whether somebody needs a processor just now; then one copier fewer is at work.
        """
        self._source = copiers
        self._others_wait = others_wait
        self._fewer = threading.Semaphore(0)
        self._copiers: queue.SimpleQueue[Copier | None] = queue.SimpleQueue()
        self._all: list[Copier] = []
        self._spare = threading.Semaphore(0)
        self._threads: ThreadPoolExecutor | None = None

    def begin(self) -> None:
        """There is much to do: get processes."""
        if self._source is None or self._all:
            return
        for _ in range(min(_MOST, os.cpu_count() or 1)):
            copier = self._source.new()
            if copier is None:
                return
            self._all.append(copier)
            self._copiers.put(copier)
        self._threads = ThreadPoolExecutor(len(self._all), "session-agent-move")
        # Besides the caller: so one thread more than copiers, which prepares what the next one does.
        self._spare.release(len(self._all))
        self._fewer.release(max(1, len(self._all) - 1))

    @property
    def processes(self) -> int:
        """How many there are besides the agent itself."""
        return len(self._all)

    def close(self) -> None:
        """Let the processes end. No call may be under way."""
        if self._threads is not None:
            self._threads.shutdown(wait=True)
        for copier in self._all:
            copier.close()
        self._all.clear()
        self._copiers = queue.SimpleQueue()

    # Calls in several threads

    @contextmanager
    def together(self) -> Iterator[Calls]:
        """At the block's end all its calls have ended; then the first one's exception is raised."""
        calls = Calls(self)
        try:
            yield calls
        finally:
            for future in calls.futures:  # they use descriptors that the caller closes
                future.exception()
        for future in calls.futures:
            future.result()

    def call(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call `function` in a thread to spare, else here. It may itself use these workers.

        Nobody waits for a thread to become free, so calls in calls cannot wait for each other.
        """

        def work() -> T:
            try:
                assume(AGENT)
                return function(*arguments)
            finally:
                self._spare.release()

        if self._threads is not None and self._spare.acquire(blocking=False):
            return self._threads.submit(work)
        done: Future[T] = Future()
        done.set_result(function(*arguments))
        return done

    # What copiers can do. A process that is gone, or was never there, is stood in for.

    def copy(
        self, source: int, target: int, names: list[bytes], terms: Terms, progress: Progress
    ) -> CopiedEntries | None:
        """copy.copy_alone; None if there is nobody else to do it. CancelledError."""
        return self._ask(Copy(names, terms), [source, target], CopiedEntries, progress)

    def verify(self, folder: int, entries: Iterable[tuple[bytes, Copied]]) -> None:
        """SourceChangedError unless these entries of a folder are what they were: verify.are_as_copied."""

        def some(group: list[tuple[bytes, Copied]]) -> None:
            answer = self._ask(Verify(group), [folder], bool)
            if not (are_as_copied(folder, group) if answer is None else answer):
                raise SourceChangedError

        with self.together() as calls:
            for group in _groups(entries):
                if _is_large(group):
                    calls.add(verify, folder, *group[0], self)
                else:
                    calls.add(some, group)

    def remove(self, folder: int, entries: Iterable[tuple[bytes, Copied]]) -> bool:
        """retire.remove_all_unchanged."""

        def some(group: list[tuple[bytes, Copied]]) -> bool:
            answer = self._ask(Remove(group), [folder], bool)
            return remove_all_unchanged(folder, group) if answer is None else answer

        with self.together() as calls:
            parts = [
                calls.add(remove_unchanged, folder, *group[0], self)
                if _is_large(group)
                else calls.add(some, group)
                for group in _groups(entries)
            ]
        return all(part.result() for part in parts)

    def measure(self, place: Place) -> Size:
        """plan.measure; after it processes are at hand if there is much to do."""
        size = measure(place, files_limit=MANY_FILES)
        if not size.exceeded:
            return size
        self.begin()
        return self._ask(Measure(place.name), [place.folder], Size) or measure(place)

    def _ask(
        self,
        work: Work,
        folders: list[int],
        result: type[T],
        progress: Progress | None = None,
    ) -> T | None:
        if not self._all:
            return None
        if self._others_wait():
            with self._fewer:
                return self._ask_one(work, folders, result, progress or Progress())
        return self._ask_one(work, folders, result, progress or Progress())

    def _ask_one(
        self, work: Work, folders: list[int], result: type[T], progress: Progress
    ) -> T | None:
        copier = self._copiers.get()
        answer = None
        try:
            if copier is not None:
                answer = copier.ask(work, folders, result, progress)
        except CancelledError:
            self._copiers.put(copier)
            raise
        self._copiers.put(None if answer is None else copier)  # it is gone for all others, too
        return answer


def _groups(entries: Iterable[tuple[bytes, Copied]]) -> Iterator[list[tuple[bytes, Copied]]]:
    """`entries` in parts of some hundred files; what has more below it is a part of its own."""
    group: list[tuple[bytes, Copied]] = []
    size = 0
    for entry in entries:
        count = entry[1].count
        if group and size + count > _GROUP:
            yield group
            group, size = [], 0
        group.append(entry)
        size += count
    if group:
        yield group


def _is_large(group: list[tuple[bytes, Copied]]) -> bool:
    return len(group) == 1 and group[0][1].count > _GROUP


def batches(files: Sequence[T]) -> Iterator[list[T]]:
    """`files` in parts that are some milliseconds of work, to be copied by one call."""
    rest = iter(files)
    while some := list(islice(rest, _BATCH)):
        yield some
