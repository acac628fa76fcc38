"""The agent's memory of what it wrote into the user's files: one JSON file in the state directory.

Also the lock that keeps two agents from writing the same files at once. Neither is needed for a
first start: where the state directory cannot be written, the desktop is still set up, and the
problem reported; the agent then takes its own lines for the user's the next time, and leaves them
alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from session_agent.desktop.dry_run import is_dry, planned
from session_agent.desktop.merge import Remembered
from session_agent.errors import AgentError, TimeLimitError, UserFileError
from session_agent.fsutil import durable
from session_agent.model import printable

FILE_NAME = "desktop-memory.json"
LOCK_NAME = "desktop.lock"
LOCK_SECONDS = 3.0
_LOCK_STEP_SECONDS = 0.02


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    written: dict[str, Any] = {}
    pending: dict[str, Any] = {}
    left: list[str] = []
    parked: dict[str, Any] = {}


class _File(msgspec.Struct, frozen=True):
    files: dict[str, _Stored]
    seen: list[str] = []


@dataclass(frozen=True, slots=True)
class Content:
    """All that is remembered: by the path of the file it is about, and every branch ever `seen`."""

    files: Mapping[str, Remembered] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()


def decode(data: bytes) -> Content:
    """The memory in `data`. Raises ValueError if it is broken."""
    # Not msgspec's own decoder: a path that is not UTF-8 holds lone surrogates, which it refuses.
    try:
        stored = msgspec.convert(json.loads(data), _File)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    files = {
        path: Remembered(entry.written, entry.pending, frozenset(entry.left), entry.parked)
        for path, entry in stored.files.items()
    }
    return Content(files, frozenset(stored.seen))


def encode(content: Content) -> bytes:
    """The bytes that `decode` understands; the same for the same memory."""
    plain = {
        path: {
            "written": dict(entry.written),
            "pending": dict(entry.pending),
            "left": sorted(entry.left),
            "parked": dict(entry.parked),
        }
        for path, entry in content.files.items()
        if entry != Remembered()
    }
    document = {"files": plain, "seen": sorted(content.seen)}
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


class Notes:
    """The memory while its lock is held. `problem` says what went wrong with it, if anything."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: dict[str, Remembered] = {}
        self._seen: frozenset[str] = frozenset()
        self._stored: bytes | None = None
        self.problem = ""

    def load(self) -> None:
        """Read the file. A broken one is renamed aside, reported, and counts as empty."""
        try:
            self._stored = durable.read_regular(self._path)
            content = Content() if self._stored is None else decode(self._stored)
            self._files, self._seen = dict(content.files), content.seen
        except ValueError:
            aside = keep_aside(self._path, self._stored or b"")
            self._report(
                f"{printable(self._path)} is not understood and counts as empty; it is kept as "
                f"{printable(os.path.basename(aside))}."
            )
        except AgentError as error:
            self._report(str(error))
        except OSError as error:
            self._report(f"{printable(self._path)}: {error.strerror}.")

    def about(self, path: str) -> Remembered:
        """What was written to `path`."""
        return self._files.get(path, Remembered())

    def known_below(self, folder: str) -> list[str]:
        """The paths below `folder` that something is remembered of."""
        return [path for path in self._files if path.startswith(folder + "/")]

    def note(self, path: str, remembered: Remembered) -> bool:
        """Remember `remembered` of `path`; whether that is durable now.

        A failure is a `problem`, not an error.
        """
        self._files[path] = remembered
        return self._save()

    def see(self, names: Iterable[str]) -> frozenset[str]:
        """Remember the branches `names`, durably where that is possible; all that were ever seen."""
        self._seen |= frozenset(names)
        self._save()
        return self._seen

    def _save(self) -> bool:
        if is_dry():
            return True
        data = encode(Content(self._files, self._seen))
        if data == self._stored or (self._stored is None and data == encode(Content())):
            return True
        try:
            durable.replace(self._path, data, 0o600)
            self._stored = data
        except AgentError as error:
            self._report(str(error))
        except OSError as error:
            self._report(f"{printable(self._path)}: {error.strerror}.")
        return self._stored == data

    def _report(self, problem: str) -> None:
        if problem not in self.problem:
            self.problem = f"{self.problem} {problem}".strip()


class Memory:
    """The memory in the folder `state_dir`, which is created when needed (mode 0700)."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir

    @contextmanager
    def locked(self) -> Iterator[Notes]:
        """The notes, with every other agent of this state directory kept out meanwhile.

        Waits at most `LOCK_SECONDS`, then raises TimeLimitError. Where the lock file cannot be made
        at all, goes on without: the notes carry the problem.
        """
        notes = Notes(os.path.join(self.state_dir, FILE_NAME))
        fd = None
        try:
            # Files are replaced whole, so who only reads needs no lock.
            fd = None if is_dry() else self._open_lock()
        except OSError as error:
            notes.problem = f"{printable(self.state_dir)}: {error.strerror}."
        try:
            if fd is not None:
                _wait_for_lock(fd, self.state_dir)
            notes.load()
            yield notes
        finally:
            if fd is not None:
                os.close(fd)

    def _open_lock(self) -> int:
        os.makedirs(self.state_dir, mode=0o700, exist_ok=True)
        path = os.path.join(self.state_dir, LOCK_NAME)
        # O_NONBLOCK: a FIFO in the lock's place must not stop us.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(path, flags, 0o600)


def keep_aside(path: str, data: bytes) -> str:
    """Copy `data`, found in `path` and not understood, to `<path>.broken-<8 hex of its hash>`.

    The name depends on the content alone, so that the same broken file is kept once, however often
    it is met. Returns the copy's path; where it cannot be written, nothing is lost: the caller
    leaves the original alone, or replaces it only with what it cannot write either.
    """
    aside = f"{path}.broken-{hashlib.sha256(data).hexdigest()[:8]}"
    if planned(aside, f"a copy of {printable(path)} as {printable(aside)}"):
        return aside
    with suppress(OSError, UserFileError):
        if durable.read_regular(aside) != data:
            durable.replace(aside, data, 0o600)
    return aside


def _wait_for_lock(fd: int, state_dir: str) -> None:
    # flock in the kernel waits without a limit, so it is asked again and again instead.
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeLimitError(
                    f"Another agent holds {printable(state_dir)} for {LOCK_SECONDS:.0f} s now.",
                    "Wait for it to end, then start again.",
                ) from None
            time.sleep(_LOCK_STEP_SECONDS)
