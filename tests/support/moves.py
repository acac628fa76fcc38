"""Moves that tests show, without carrying them out."""

from __future__ import annotations

from typing import Any

from session_agent.lifecycle.move_status import MoveStatus
from session_agent.moves.record import End, Identity, Record, State, encode

MIB = 1 << 20


def record(number: int, state: State = State.STAGING, **changes: Any) -> Record:
    """A move of work/note NUMBER to team/inbox."""
    name = encode(b"note %d" % number)
    known: dict[str, Any] = {
        "id": f"{number:012x}",
        "created": 1000.0,
        "source": End("projects", "", name),
        "target": End("team", "inbox", name),
        "source_was": Identity(number, 0o100000, 5, 6),
        "state": state,
        "background": True,
        **changes,
    }
    return Record(**known)


def status(number: int, state: State = State.STAGING, **changes: Any) -> MoveStatus:
    """The same as it is shown."""
    known: dict[str, Any] = {
        "id": f"{number:012x}",
        "source": f"/vault/projects/note {number}",
        "target": f"/vault/team/inbox/note {number}",
        "state": state,
        "strategy": "copy",
        "background": True,
        "started": 1000.0,
        **changes,
    }
    return MoveStatus(**known)
