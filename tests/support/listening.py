"""A program that waits for changes in a folder of the vault, and what it has heard."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE = 5.0  # seconds, on a loaded machine; the bound that is promised is a second


class Listener:
    """A running program that prints what it hears, line by line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._text = b""

    @classmethod
    def of(cls, *command: str) -> Listener:
        """Start the program."""
        return cls(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))

    @classmethod
    def inotifywait(cls, folder: Path) -> Listener:
        """Listen to the folder: names and changes, not opens and reads."""
        events = "create,delete,modify,attrib,moved_from,moved_to,close_write"
        command = ("inotifywait", "-m", "-e", events, "--format", "%e %f", str(folder))
        listener = cls.of(*command)
        assert listener._process.stderr is not None
        while b"established" not in (line := listener._process.stderr.readline()):
            assert line, "inotifywait did not start"
        return listener

    def events(self) -> list[str]:
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._process.stdout.fileno(), 1 << 16):
                self._text += part
        return self._text.decode().splitlines()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


def last_words(events: list[str]) -> dict[str, bool]:
    """Of each name that a listener has heard of, whether it was there by the last word."""
    last = {}
    for event in events:
        kinds, _, name = event.partition(" ")
        for kind in kinds.split(","):
            if kind in ("CREATE", "MOVED_TO", "DELETE", "MOVED_FROM"):
                last[name] = kind in ("CREATE", "MOVED_TO")
    return last


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[Listener]:
    listener = Listener.inotifywait(folder)
    try:
        yield listener
    finally:
        listener.close()


def until(answer: Callable[[], object], wanted: object, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while (got := answer()) != wanted:
        assert time.monotonic() < deadline, f"{got!r}, not {wanted!r}"
        time.sleep(0.01)
