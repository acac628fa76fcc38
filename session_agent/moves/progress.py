"""How far a move is, and the way to stop it: shared by the thread that copies and whoever watches it."""

from __future__ import annotations

import threading


class CancelledError(Exception):
    """Somebody has asked the move to end; nothing has been committed."""


class Progress:
    """Counts what is staged. The numbers are read by other threads while they grow."""

    def __init__(self) -> None:
        self.bytes = 0
        self.files = 0
        self.cancelled = False
        self._lock = threading.Lock()
        self._going_on = threading.Event()
        self._going_on.set()

    @property
    def paused(self) -> bool:
        """Whether the copying is held up for now."""
        return not self._going_on.is_set()

    def add(self, count: int = 0, files: int = 0) -> None:
        """So many bytes and files more are staged. CancelledError if the move is to end."""
        with self._lock:
            self.bytes += count
            self.files += files
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
