"""The status document, of a running agent and of one that does not run; and the mounts as JSON."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from session_agent.errors import TimeLimitError
from session_agent.fsutil import bounded
from session_agent.lifecycle import control, vault
from session_agent.lifecycle.control import BranchStatus, StatusDocument
from session_agent.lifecycle.move_status import MoveStatus, as_many_as_fit
from session_agent.lifecycle.session import Place
from session_agent.model import MountState, Session, printable
from session_agent.mounts.names import below
from session_agent.overlay import connection
from session_agent.redaction import redacted


def of_running(
    session: Session,
    states: Mapping[str, MountState],
    moves: Sequence[MoveStatus],
    warnings: Sequence[str],
    foreign: Mapping[str, int] | None = None,
) -> StatusDocument:
    """What the agent that serves `session` says of itself.

    `states` is by branch name. A branch that is not in it could not be opened. Of the moves the first are
    told, as many as fit.
    """
    branches = tuple(
        BranchStatus(
            printable(branch.name),
            printable(branch.path),
            branch.mode,
            states.get(branch.name, MountState.DEAD),
        )
        for branch in session.branches
    )
    alive = all(branch.state is MountState.ALIVE for branch in branches)
    told, left_out = as_many_as_fit(moves)
    return StatusDocument(
        state="running" if alive else "degraded",
        vault=printable(session.vault),
        pid=os.getpid(),
        branches=branches,
        moves=told,
        warnings=tuple(map(printable, warnings)),
        foreign=dict(foreign or {}),
        root_branch=printable(session.root_branch),
        moves_left_out=left_out,
    )


def document(place: Place) -> StatusDocument:
    """Ask the agent of this session; say so if none runs, or if it does not answer."""
    running = control.consult(place)
    shown = printable(place.vault)
    if running is not None and running.document is not None:
        return msgspec.structs.replace(running.document, pid=running.pid)
    if running is not None:
        return StatusDocument("degraded", shown, running.pid, warnings=(running.problem,))
    if not connection.is_mounted(place.vault):
        return StatusDocument("stopped", shown)
    if vault.state(place.vault, place.user) is MountState.ALIVE:
        warning = f"{shown} is served by an agent with another state directory."
    else:
        warning = (
            "The agent was killed and left its mount behind."
            " `session-agent first-launch` takes it over; `session-agent stop` removes it."
        )
    return StatusDocument("stopped", shown, warnings=(warning,))


def mounts(session: Session) -> list[dict[str, str]]:
    """The mounts of `session`, in the shape of `mounts --json`."""
    return [
        {
            "name": printable(mount.name),
            "path": printable(mount.path),
            "source": redacted(printable(mount.source)),
            "fstype": mount.fstype,
            "kind": str(mount.kind),
            "mode": str(mount.mode),
            "state": str(mount.state),
            "cloud_type": mount.cloud_type,
        }
        for mount in session.mounts
    ]


def not_answering(
    place: Place, running: control.Running | None, time_limit: float
) -> dict[str, MountState]:
    """The branches beneath the overlay that do not answer, by path.

    No probe of the mounts can reach there, and what the kernel has cached of the overlay hides a death
    for a while. The agent knows of those that failed it; the others are listed through the overlay, all
    at once, for `time_limit` seconds at most.
    """
    document = running.document if running else None
    known = {
        branch.path: branch.state
        for branch in (document.branches if document else ())
        if below(branch.path, place.vault) == branch.name
    }
    steps = {
        path: bounded.start(partial(_list, path), int, place.user)
        for path, state in known.items()
        if state is MountState.ALIVE
    }
    for path, outcome in bounded.collect(steps, time_limit).items():
        known[path] = _state_of(outcome)
    return {path: state for path, state in known.items() if state is not MountState.ALIVE}


def _list(path: str) -> int:
    with os.scandir(path) as entries:
        next(entries, None)
    return 0


def _state_of(outcome: int | Exception) -> MountState:
    number = outcome.errno if isinstance(outcome, OSError) else None
    if isinstance(outcome, TimeLimitError) or number == errno.ETIMEDOUT:
        return MountState.HUNG
    gone = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ESTALE, errno.ENODEV)
    return MountState.DEAD if number in gone else MountState.ALIVE
