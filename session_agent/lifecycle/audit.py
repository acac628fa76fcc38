"""The audit trail: JSON lines in a file that is only ever appended to, and rotated by size.

Refused operations are written at a bounded rate: a program that asks a thousand times a second must not fill
the disk. What was left out is counted in the next line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from datetime import UTC, datetime

from session_agent.model import printable
from session_agent.redaction import redacted_document

log = logging.getLogger(__name__)

_SIZE_LIMIT = 10 * 1024 * 1024  # bytes, then the file is rotated
_KEPT = 5  # old files
_BURST = 20  # refusals that may come at once
_PER_SECOND = 2.0  # and how many after that


class Audit:
    """One session's trail. What cannot be written is told in the log, once, and holds nobody up."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._failed = False
        self._allowance = float(_BURST)
        self._last = time.monotonic()
        self._left_out = 0

    def write(self, event: str, **values: object) -> None:
        """One line."""
        if self._path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **redacted_document(values)}) + "\n"
        try:
            self._append(self._path, line.encode("ascii"))
        except OSError as error:
            if not self._failed:
                log.warning("audit: %s: %s", printable(self._path), error.strerror)
            self._failed = True

    def refused(self, operation: str, path: str, uid: int) -> None:
        """An operation that was refused, unless there are too many of them."""
        now = time.monotonic()
        self._allowance = min(_BURST, self._allowance + (now - self._last) * _PER_SECOND)
        self._last = now
        if self._allowance < 1:
            self._left_out += 1
            return
        self._allowance -= 1
        left_out, self._left_out = self._left_out, 0
        values: dict[str, object] = {"left_out": left_out} if left_out else {}
        self.write("refused", operation=operation, path=printable(path), uid=uid, **values)

    def _append(self, path: str, line: bytes) -> None:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        flags = (
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        )
        fd = os.open(path, flags, 0o600)
        try:
            if os.fstat(fd).st_size + len(line) > _SIZE_LIMIT:
                os.close(fd)
                fd = -1
                self._rotate(path)
                fd = os.open(path, flags, 0o600)
            os.write(fd, line)
        finally:
            if fd >= 0:
                os.close(fd)

    def _rotate(self, path: str) -> None:
        for number in range(_KEPT, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}.{number - 1}", f"{path}.{number}")
        os.rename(path, f"{path}.1")
