"""What the desktop is told of moves: which are worth it, and in which words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from session_agent.lifecycle.move_status import MoveStatus
from session_agent.moves.record import State

TOLD_SECONDS = 5.0  # of a move that took longer it is told when it is done
_NAMED = 5  # in one notification

ICON_FAILED = "dialog-error"  # https://specifications.freedesktop.org/icon-naming-spec
ICON_KEPT = "dialog-warning"
ICON_DONE = "dialog-information"


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification's text and icon."""

    summary: str
    body: str
    icon: str


def worth_telling(move: MoveStatus) -> bool:
    """Whether the user should hear of the end of this move: it failed, left both versions, or took long."""
    if move.state is State.FAILED:
        return True
    if move.state is not State.DONE:
        return False
    return move.kept or move.ended - move.started >= TOLD_SECONDS


def notices(moves: Sequence[MoveStatus]) -> list[Notice]:
    """One notification for the failures among `moves`, and one for the others, however many they are."""
    failed = [move for move in moves if move.state is State.FAILED]
    done = [move for move in moves if move.state is not State.FAILED]
    told = []
    if done:
        told.append(_done(done))
    if failed:
        told.append(_failed(failed))
    return told


def _failed(moves: Sequence[MoveStatus]) -> Notice:
    if len(moves) == 1:
        move = moves[0]
        summary = f"{_name(move.source)} could not be moved"
        return Notice(summary, f"{_reason(move)}. It is still at {move.source}.", ICON_FAILED)
    body = _list(f"{_name(move.source)}: {_reason(move)}" for move in moves)
    body += "\nAll of it is still at its old place."
    return Notice(f"{len(moves)} moves have failed", body, ICON_FAILED)


def _done(moves: Sequence[MoveStatus]) -> Notice:
    icon = ICON_KEPT if any(move.kept for move in moves) else ICON_DONE
    if len(moves) > 1:
        names = _list(_name(move.target) for move in moves)
        return Notice(f"{len(moves)} moves are done", names, icon)
    move = moves[0]
    body = f"It is at {move.target}."
    if move.kept:
        body += f" What had changed meanwhile is kept at {move.source}."
    if move.losses:
        body += f" Not kept there: {', '.join(move.losses)}."
    return Notice(f"{_name(move.target)} has been moved", body, icon)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _reason(move: MoveStatus) -> str:
    return move.reason or "Unknown error"


def _list(lines: Iterable[str]) -> str:
    listed = list(lines)
    more = [f"and {len(listed) - _NAMED} more"] if len(listed) > _NAMED else []
    return "\n".join([*listed[:_NAMED], *more])
