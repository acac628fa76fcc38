"""Several processes at work at the same time, each with an answer."""

from __future__ import annotations

import os
import pickle
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_PATIENCE = 60.0  # seconds after the time that the work takes


def at_once(
    seconds: float,
    workers: Sequence[Callable[[], T]],
    meanwhile: Callable[[], object] = lambda: None,
) -> list[T]:
    """What each worker answers; what one raises is raised here. They know themselves when to end.

    `seconds`: how long they work. `meanwhile` is called again and again until they have ended.
    """
    pipes: dict[int, tuple[int, int]] = {}
    for number, worker in enumerate(workers):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _answer(worker, writing)
        os.close(writing)
        pipes[reading] = (number, pid)
    answers: dict[int, Any] = {}
    data = dict.fromkeys(pipes, b"")
    deadline = time.monotonic() + seconds + _PATIENCE
    try:
        while pipes:
            for fd in select.select(list(pipes), [], [], 0.05)[0]:
                part = os.read(fd, 1 << 16)
                data[fd] += part
                if not part:
                    answers[pipes[fd][0]] = pickle.loads(data[fd])  # noqa: S301 - our own child's
                    _end(fd, pipes.pop(fd)[1])
            assert time.monotonic() < deadline, f"{len(pipes)} of {len(workers)} do not end"
            meanwhile()
    finally:
        for fd, (_, pid) in pipes.items():
            os.kill(pid, 9)
            _end(fd, pid)
    for _, failure in answers.values():
        if failure is not None:
            raise failure
    return [answers[number][0] for number in range(len(workers))]


def _answer(worker: Callable[[], object], writing: int) -> None:
    answer: Any = (None, RuntimeError("no answer"))
    try:
        answer = (worker(), None)
    except BaseException as failure:  # noqa: BLE001 - the child must never return into pytest
        answer = (None, failure)
    finally:
        with open(writing, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        os._exit(0)


def _end(fd: int, pid: int) -> None:
    os.close(fd)
    os.waitpid(pid, 0)
