"""The engine of moves, called with paths, on two folders that are on different file systems for sure."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.moves import engine
from session_agent.moves.copy import RESERVED_PREFIX
from session_agent.moves.engine import Outcome
from session_agent.moves.plan import Place, Request
from tests.support.disks import Seen, picture


@dataclass(frozen=True)
class Disks:
    """Two folders that no rename leads between."""

    source: Path
    target: Path

    @property
    def reserved(self) -> list[str]:
        """All that lies under reserved names."""
        prefix = os.fsdecode(RESERVED_PREFIX)
        return [
            str(Path(folder, name))
            for top in (self.source, self.target)
            for folder, folders, files in os.walk(top)
            for name in (*folders, *files)
            if name.startswith(prefix)
        ]

    def pictures(self) -> tuple[dict[str, Seen], dict[str, Seen]]:
        """Both sides but for the folders themselves, whose times change."""
        shown = (picture(self.source), picture(self.target))
        for one in shown:
            del one[""]
        return shown


def nothing() -> None:
    """An on_commit that does not care."""


def move(
    source: Path,
    target: Path,
    flags: int = 0,
    *,
    caller: Caller = AGENT,
    on_commit: Callable[[], None] = nothing,
) -> Outcome:
    """Rename `source` to `target`."""
    with ExitStack() as stack:
        places = []
        for path in (source, target):
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, folder)
            places.append(Place(folder, os.fsencode(path.name), str(path)))
        return engine.move(Request(places[0], places[1], flags, caller), lambda _: on_commit())
