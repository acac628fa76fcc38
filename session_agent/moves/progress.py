"""How far a move is, and the way to stop it: shared by the thread that copies and whoever watches it."""

from __future__ import annotations

import threading
import time

_WINDOW = 1.0  # seconds


class CancelledError(Exception):
    """Somebody has asked the move to end; nothing has been committed."""


class Progress:
    """Counts what is staged. The numbers are read by other threads while they grow."""

    def __init__(self) -> None:
        self.bytes = 0
        self.files = 0
        self.cancelled = False
        self._lock = threading.Lock()
        # When so many bytes were staged: noted at the first of them, then once in a window; the last two.
        self._marks: tuple[tuple[float, int], ...] = ()
        self._going_on = threading.Event()
        self._going_on.set()

    @property
    def paused(self) -> bool:
        """Whether the copying is held up for now."""
        return not self._going_on.is_set()

    @property
    def rate(self) -> float:
        """Bytes a second, over the last second or two."""
        marks = self._marks
        if not marks:
            return 0.0
        since, count = marks[0]
        return (self.bytes - count) / max(time.monotonic() - since, 0.001)

    def add(self, count: int = 0, files: int = 0) -> None:
        """So many bytes and files more are staged. CancelledError if the move is to end."""
        with self._lock:
            self.bytes += count
            self.files += files
            now = time.monotonic()
            if not self._marks or now - self._marks[-1][0] >= _WINDOW:
                self._marks = (*self._marks[-1:], (now, self.bytes))
        self.check()

    def check(self) -> None:
        """CancelledError if the move is to end; waits while paused."""
        if not self._going_on.is_set():
            self._going_on.wait()
        if self.cancelled:
            raise CancelledError

    def pause(self) -> None:
        """Let the copying wait at its next step."""
        self._going_on.clear()

    def go_on(self) -> None:
        """Let it go on."""
        self._going_on.set()

    def cancel(self) -> None:
        """Let the copying end at its next step."""
        self.cancelled = True
        self._going_on.set()
