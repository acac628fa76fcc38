"""Showing what the writers would do, without doing it.

Within `dry_run` everything that the writers of this package write goes through `planned`, which notes
the difference instead. What can be told beforehand (a link to somebody else's file, a folder that
cannot be written) is refused as in earnest.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from session_agent.fsutil import durable
from session_agent.model import printable

_DIFF_LIMIT = 256 * 1024  # characters of one file's difference


@dataclass(frozen=True, slots=True)
class Difference:
    """What would change at `path`, as a unified diff or a line that says what would be made."""

    path: str
    text: str


_notes: ContextVar[list[Difference] | None] = ContextVar("dry_run", default=None)


@contextmanager
def dry_run() -> Iterator[list[Difference]]:
    """Write nothing within the block; the list gets what would have been written."""
    found: list[Difference] = []
    token = _notes.set(found)
    try:
        yield found
    finally:
        _notes.reset(token)


def is_dry() -> bool:
    """Whether nothing is to be written now."""
    return _notes.get() is not None


def planned(path: str, text: str) -> bool:
    """In a dry run, note `text` as what would be done at `path`; whether it is one."""
    notes = _notes.get()
    if notes is not None:
        notes.append(Difference(path, text))
    return notes is not None


def planned_write(path: str, data: bytes) -> bool:
    """In a dry run, note that the file `path` would get the content `data`; whether it is one.

    Raises as `durable.replace` and the making of its folder would, as far as that can be told.
    """
    if not is_dry():
        return False
    durable.refuse_irreplaceable(path)
    _refuse_unwritable(path)
    current = durable.read_regular(path, limit=1 << 30)
    return planned(path, unified(path, current, data))


def unified(path: str, before: bytes | None, after: bytes) -> str:
    """The unified diff of a file's content; what is not UTF-8 in it becomes escapes."""
    name = printable(path)
    lines = difflib.unified_diff(
        _lines(before or b""),
        _lines(after),
        "/dev/null" if before is None else name,
        name,
        lineterm="",
    )
    text = "\n".join(lines)
    if len(text) > _DIFF_LIMIT:
        return f"{text[:_DIFF_LIMIT]}\n… and more, of {len(text)} characters in all"
    return text


def _lines(data: bytes) -> list[str]:
    lines = data.decode("utf-8", "backslashreplace").split("\n")
    if lines[-1] == "":
        return lines[:-1]
    return [*lines[:-1], lines[-1] + "\n\\ No newline at end of file"]


def _refuse_unwritable(path: str) -> None:
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
