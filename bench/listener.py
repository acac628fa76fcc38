"""A program that waits for changes, in a process of its own: python -m bench.listener LOG FOLDER.

It watches the folder and those in it, names each watch on standard output, then writes what it reads to LOG
as it is, each time with the time and the length before it. So it hardly uses the processor itself.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from watchdog.observers.inotify_c import InotifyConstants, inotify_add_watch, inotify_init

from bench.failure import Failure
from session_agent.overlay.inotify import ATTRIB, NAMES, OVERFLOW, events_in

RECORD = struct.Struct("=qi")  # nanoseconds of the monotonic clock, bytes that follow
_READ = 1 << 16
_HEARD = NAMES | ATTRIB | InotifyConstants.IN_MODIFY | InotifyConstants.IN_ONLYDIR


@dataclass(frozen=True, slots=True)
class Heard:
    """An event, and when it was read: seconds of the monotonic clock."""

    at: float
    folder: str
    name: str
    mask: int


class Listening:
    """The other end: what a running listener has heard."""

    def __init__(self, log: Path, folders: dict[int, str]) -> None:
        self._file = open(log, "rb")  # noqa: SIM115 - closed by `close`
        self._folders = folders
        self._rest = b""

    def close(self) -> None:
        """The log is not read any more."""
        self._file.close()

    @property
    def size(self) -> int:
        """Grows with each event."""
        return os.fstat(self._file.fileno()).st_size

    def heard(self) -> list[Heard]:
        """All since the last time."""
        data = self._rest + self._file.read()
        found, used = decode(data, self._folders)
        self._rest = data[used:]
        return found


def decode(data: bytes, folders: dict[int, str]) -> tuple[list[Heard], int]:
    """The events of all whole records, and how many bytes those are. Failure if some were lost."""
    found: list[Heard] = []
    position = 0
    while position + RECORD.size <= len(data):
        nanoseconds, length = RECORD.unpack_from(data, position)
        end = position + RECORD.size + length
        if end > len(data):
            break
        for wd, mask, _, name in events_in(data[position + RECORD.size : end]):
            if mask & OVERFLOW:
                raise Failure("the listener has lost events")
            found.append(Heard(nanoseconds / 1e9, folders.get(wd, ""), os.fsdecode(name), mask))
        position = end
    return found, position


@contextmanager
def listening(log: Path, folder: Path) -> Iterator[Listening]:
    """While a listener runs on `folder`. Paths of folders are those below it."""
    command = [sys.executable, "-m", "bench.listener", str(log), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        folders: dict[int, str] = {}
        while (line := process.stdout.readline().rstrip("\n")) != "ready":
            if not line:
                raise Failure("the listener does not start")
            number, _, path = line.partition(" ")
            folders[int(number)] = os.path.relpath(path, folder)
        reading = Listening(log, folders)
        try:
            yield reading
        finally:
            reading.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    """Listen until killed. Git's own folder is none of those that a program would listen to."""
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    queue = inotify_init()
    for path, folders, _ in os.walk(sys.argv[2]):
        folders[:] = sorted(name for name in folders if name != ".git")
        wd = inotify_add_watch(queue, os.fsencode(path), _HEARD)
        if wd < 0:
            sys.exit("a folder cannot be watched")
        sys.stdout.write(f"{wd} {path}\n")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        data = os.read(queue, _READ)
        os.write(log, RECORD.pack(time.monotonic_ns(), len(data)) + data)


if __name__ == "__main__":
    main()
