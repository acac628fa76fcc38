"""`os` for the module that announces foreign changes: its calls can be held still just before they are made.

What programs and others do meanwhile comes between the agent's last look and its call, which otherwise are
microseconds apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

REMOVE, RENAME, MAKE = "announcing-remove", "announcing-rename", "announcing-make"

_POINTS = {
    "unlink": REMOVE,
    "rmdir": REMOVE,
    "rename": RENAME,
    "mknod": MAKE,
    "mkdir": MAKE,
    "symlink": MAKE,
}


class HeldCalls:
    """`hold` is called with the point's name before each of these calls."""

    def __init__(self, hold: Callable[[str], None]) -> None:
        self._hold = hold

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        point = _POINTS.get(name)
        if point is None:
            return call

        def held(*arguments: Any, **options: Any) -> Any:
            self._hold(point)
            return call(*arguments, **options)

        return held

    def open(self, path: bytes, flags: int, *arguments: Any, **options: Any) -> int:
        """A new file that is to be closed as well is made by opening it."""
        if flags & os.O_CREAT:
            self._hold(MAKE)
        return os.open(path, flags, *arguments, **options)
