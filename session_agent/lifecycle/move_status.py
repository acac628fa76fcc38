"""A move as `session-agent moves` and `status --json` show it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

import msgspec

from session_agent.model import printable
from session_agent.moves.record import End, Record, State, decode

SHOWN_BYTES = 256 << 10  # about as much as the moves in one answer may take
_OTHER_FIELDS = 700  # bytes of JSON that a move takes besides its paths and losses


class MoveStatus(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """One move. All text is printable (see model.printable); docs/moves.md explains each field.

    `rate` is in bytes a second, `started` and `ended` in seconds since 1970; `ended` is 0 while it is not.
    Totals are 0 until they are known. `error` is an errno's name, and `reason` what it means.
    """

    id: str
    source: str
    target: str
    state: State
    strategy: str = ""
    background: bool = False
    bytes: int = 0
    total_bytes: int = 0
    files: int = 0
    total_files: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    paused: str = ""
    losses: tuple[str, ...] = ()
    kept: bool = False
    leftover: bool = False
    error: str = ""
    reason: str = ""
    started: float = 0.0
    ended: float = 0.0

    @property
    def under_way(self) -> bool:
        """Whether it goes on, or will."""
        return self.state not in (State.DONE, State.FAILED, State.CANCELLED)


def of_record(record: Record, vault: str) -> MoveStatus:
    """A move that nobody carries out at present, as its record tells of it."""
    done = record.state in (State.RETIRING, State.DONE)
    error = record.error if record.error in errno.errorcode else 0
    return MoveStatus(
        id=printable(record.id),
        source=shown_path(vault, record.source),
        target=shown_path(vault, record.target),
        state=record.state,
        strategy=printable(record.strategy),
        background=record.background,
        bytes=record.total_bytes if done else 0,
        total_bytes=record.total_bytes,
        files=record.total_files if done else 0,
        total_files=record.total_files,
        losses=tuple(map(printable, record.losses)),
        kept=record.kept,
        leftover=record.leftover,
        error=errno.errorcode.get(error, ""),
        reason=os.strerror(error) if error else "",
        started=record.created,
        ended=record.ended,
    )


def under_way(
    record: Record, vault: str, *, done: tuple[int, int], rate: float, paused: str
) -> MoveStatus:
    """A move that is being carried out. `done`: bytes and files that are staged; `rate`: bytes a second."""
    copied, files = done
    missing = record.total_bytes - copied
    known = record.state is State.STAGING and rate > 0 and missing >= 0 and not paused
    return msgspec.structs.replace(
        of_record(record, vault),
        bytes=copied,
        files=files,
        rate=round(rate, 1),
        seconds_left=round(missing / rate, 1) if known else None,
        paused=paused,
    )


def shown_path(vault: str, end: End) -> str:
    """The path of an end in the vault."""
    parts = [decode(end.branch), decode(end.folder), decode(end.name)]
    return printable(os.path.join(vault, os.fsdecode(b"/".join(part for part in parts if part))))


def as_many_as_fit(moves: Iterable[MoveStatus]) -> tuple[tuple[MoveStatus, ...], int]:
    """The first moves, as many as an answer can hold, and how many are left out."""
    fitting: list[MoveStatus] = []
    room = SHOWN_BYTES
    left_out = 0
    for move in moves:
        # A character takes six bytes of JSON at most.
        room -= _OTHER_FIELDS + 6 * sum(map(len, (move.source, move.target, *move.losses)))
        if room < 0 or left_out:
            left_out += 1
        else:
            fitting.append(move)
    return tuple(fitting), left_out
