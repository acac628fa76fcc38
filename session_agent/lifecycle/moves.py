"""The moves of a session as a client asks for them: from the running agent, else from the journal."""

from __future__ import annotations

import time
from dataclasses import dataclass

from session_agent.errors import ControlError, TimeLimitError
from session_agent.fsutil import bounded
from session_agent.fsutil.credentials import acting_as
from session_agent.lifecycle import control, move_status, state
from session_agent.lifecycle.move_status import MoveStatus
from session_agent.lifecycle.session import Place
from session_agent.model import printable
from session_agent.moves import journal
from session_agent.moves.journal import Journal
from session_agent.moves.record import State

_JOURNAL_SECONDS = 3.0
_CANCEL_SECONDS = 10.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Recorded:
    moves: list[MoveStatus]
    left_out: int
    problems: list[str]


@dataclass(frozen=True, slots=True)
class Listing:
    """What `moves --json` prints: whether the agent itself told it, the moves, and what is wrong."""

    live: bool
    moves: tuple[MoveStatus, ...]
    warnings: tuple[str, ...]


def listing(place: Place) -> Listing:
    """All moves that are not over, failures that nobody has acknowledged, and the last that ended.

    Without an agent there is nobody to know of the last. Raises ControlError, or UserFileError if the
    journal cannot be read.
    """
    running = control.consult(place)
    if running is not None and running.document is not None:
        document = running.document
        return Listing(True, document.moves, tuple(_more(document.moves_left_out)))
    recorded = _recorded(place)
    problems = [*_more(recorded.left_out), *recorded.problems]
    if running is not None:
        problems.append(running.problem)
    elif any(move.under_way for move in recorded.moves):
        problems.append("No agent runs. `session-agent first-launch` goes on with these moves.")
    return Listing(False, tuple(recorded.moves), tuple(problems))


def _more(left_out: int) -> list[str]:
    return [f"There are {left_out} more moves than are shown here."] if left_out else []


def _recorded(place: Place) -> _Recorded:
    def look() -> _Recorded:
        folder = state.find(place.state_dir)
        if folder is None:
            return _Recorded([], 0, [])
        records, problems = journal.read(folder)
        known = [one for one in records if not one.acknowledged]
        moves = [move_status.of_record(record, place.vault) for record in known]
        told, left_out = move_status.as_many_as_fit(moves)
        return _Recorded(list(told), left_out, problems)

    try:
        return bounded.run(look, _Recorded, time_limit=_JOURNAL_SECONDS, user=place.user)
    except (OSError, TimeLimitError) as error:
        raise _unusable(place, error) from None


def cancel(place: Place, move_id: str) -> MoveStatus:
    """Let the move end, and wait for that; what became of it.

    Raises ControlError if no agent runs, or if there is no such move under way.
    """
    running = control.consult(place, "cancel", move_id)
    if running is None:
        raise ControlError(
            "No agent runs, so no move is under way.",
            "`session-agent first-launch` starts it; then the move can be cancelled.",
        )
    deadline = time.monotonic() + _CANCEL_SECONDS
    while running is not None and running.document is not None:
        for move in running.document.moves:
            if move.id == move_id and not move.under_way:
                return move
        if time.monotonic() >= deadline:
            raise ControlError(
                f"Move {printable(move_id)} is to end, but has not yet.",
                "`session-agent moves` shows when it has.",
            )
        time.sleep(_POLL_SECONDS)
        running = control.consult(place)
    raise ControlError(running.problem if running is not None else "The agent has ended.")


def acknowledge(place: Place, move_id: str) -> None:
    """A failed move need not be shown any more. Raises ControlError if there is none of that id."""
    running = control.consult(place, "acknowledge", move_id)
    if running is None:
        _acknowledge_alone(place, move_id)
    elif running.document is None:
        raise ControlError(running.problem)


def no_failure(move_id: str) -> ControlError:
    """The error for an id that is no failed move's."""
    return ControlError(
        f"There is no failed move {printable(move_id)}.", "`session-agent moves` lists them."
    )


def _acknowledge_alone(place: Place, move_id: str) -> None:
    """While no agent runs, and none can start: the lock is held for as long as the child lives."""

    def note() -> bool:
        with acting_as(place.user):
            folder = state.find(place.state_dir)
        if folder is None:
            return False
        if not state.lock(folder, place.user):
            raise ControlError("An agent is just starting.", "Try again in a moment.")
        moves = Journal(folder, place.user)
        record = moves.get(move_id)
        return record is not None and record.state is State.FAILED and moves.acknowledge(move_id)

    try:
        if bounded.run(note, bool, time_limit=_JOURNAL_SECONDS):
            return
    except (OSError, TimeLimitError) as error:
        raise _unusable(place, error) from None
    raise no_failure(move_id)


def _unusable(place: Place, error: OSError | TimeLimitError) -> ControlError:
    reason = error.strerror if isinstance(error, OSError) else "it does not answer"
    return ControlError(
        f"The journal of moves in {printable(place.state_dir)} cannot be used: {reason}.",
        "See what the home is mounted from, or set `state_dir` to a local folder.",
    )
