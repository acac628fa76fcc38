"""Whether a source is still what was copied."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from session_agent.fsutil.at import LISTING, open_at, stat_at
from session_agent.moves.data import SourceChangedError
from session_agent.moves.names import plain_names
from session_agent.moves.snapshot import Copied

if TYPE_CHECKING:
    from session_agent.moves.workers import Workers


def verify(
    folder: int, name: bytes, copied: Copied, workers: Workers | None = None, renamed: bool = False
) -> None:
    """SourceChangedError unless the source and all below it is what it was when it was copied.

    `renamed`: it lies under another name by now. With `workers`, they are given parts of it to do.
    """
    try:
        status = stat_at(folder, name)
        unchanged = copied.source.still_holds(status, renamed)
        if copied.source.format != stat.S_IFDIR or not stat.S_ISDIR(status.st_mode):
            if not unchanged:
                raise SourceChangedError
            return
        below = open_at(folder, name, LISTING)
    except FileNotFoundError:
        raise SourceChangedError from None
    try:
        # rclone's folders change their times by themselves.
        if not unchanged and not (
            copied.source.still_holds_but_for_times(status)
            and set(plain_names(below)) == set(copied.entries)
        ):
            raise SourceChangedError
        if workers is not None:
            workers.verify(below, copied.entries.items())
        elif not are_as_copied(below, copied.entries.items()):
            raise SourceChangedError
    finally:
        os.close(below)


def are_as_copied(folder: int, entries: Iterable[tuple[bytes, Copied]]) -> bool:
    """Whether these entries of a folder, and all below them, are what they were when they were copied."""
    try:
        for name, copied in entries:
            verify(folder, name, copied)
    except SourceChangedError:
        return False
    return True
