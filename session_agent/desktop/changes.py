"""What a writer of this package did to one file, and the little that all writers share."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from session_agent.desktop.dry_run import planned, planned_write
from session_agent.errors import AgentError, UserFileError
from session_agent.fsutil import durable
from session_agent.model import printable

T = TypeVar("T")

READ_LIMIT = 16 * 1024 * 1024  # bytes; for bookmarks of a lifetime, or a plugin
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Change:
    """`what` ("bookmarks", "Obsidian settings", …) at `path` was changed, or found as it should be.

    `detail` says in a few words what was done. `problem` is empty, or says what could not be done
    and why: the writer has gone on with the rest, and the session is degraded.
    """

    what: str
    path: str
    changed: bool
    detail: str = ""
    problem: str = ""


def attempt(what: str, path: str, step: Callable[[], Change]) -> Change:
    """The outcome of `step`; an expected failure becomes the change's `problem`.

    So one file that cannot be written keeps no other from being written.
    """
    try:
        return step()
    except AgentError as error:
        return Change(what, path, False, problem=str(error))
    except OSError as error:
        place = os.fsdecode(error.filename) if error.filename is not None else path
        return Change(what, path, False, problem=f"{printable(place)}: {error.strerror}.")


class FileChangedError(UserFileError):
    """Another program has written the file since it was read."""


def unless_changed(step: Callable[[], T]) -> T:
    """What `step` returns; begun anew, a few times, where it meets FileChangedError."""
    for _ in range(_TRIES - 1):
        with suppress(FileChangedError):
            return step()
    return step()


def write(path: str, data: bytes, old: bytes | None) -> None:
    """Replace `path` durably, creating its folder if need be. `old` is the content that was read.

    Raises as `durable.replace` does, and FileChangedError if the content is another by now: the
    programs that these files belong to may be running.
    """

    def check() -> None:
        if durable.read_regular(path, READ_LIMIT) != old:
            raise FileChangedError(
                f"{printable(path)} is being written by another program.",
                "Start again when it is done.",
            )

    if planned_write(path, data):
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    durable.replace(path, data, check=check)


def remove(path: str) -> None:
    """Delete the file `path`, if it is there."""
    if planned(path, f"{printable(path)} removed"):
        return
    with suppress(FileNotFoundError):
        os.unlink(path)


def make_folders(path: str) -> None:
    """Make the folder `path`, and those above it, where they are not there."""
    if not os.path.isdir(path) and planned(path, f"new folder {printable(path)}"):
        return
    os.makedirs(path, exist_ok=True)


def joined(*problems: str) -> str:
    """Several problems as one text; the empty ones count for nothing."""
    return " ".join(problem for problem in problems if problem)
