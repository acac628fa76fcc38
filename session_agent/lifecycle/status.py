"""The status document, of a running agent and of one that does not run.

    {state: "running"|"degraded"|"stopped", vault, pid, branches: [{name, path, mode, state}],
     moves: [], warnings: []}

Paths and names are text that any encoder accepts (see model.printable). What goes over the control
socket has `root_branch` as well.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from session_agent.errors import TimeLimitError
from session_agent.fsutil import bounded
from session_agent.lifecycle import control, vault
from session_agent.lifecycle.session import Place
from session_agent.model import MountState, Session, printable
from session_agent.mounts.names import below


def of_running(
    session: Session, states: Mapping[str, MountState], warnings: Sequence[str]
) -> dict[str, Any]:
    """What the agent that serves `session` says of itself.

    `states` is by branch name. A branch that is not in it could not be opened.
    """
    branches = [
        {
            "name": printable(branch.name),
            "path": printable(branch.path),
            "mode": str(branch.mode),
            "state": str(states.get(branch.name, MountState.DEAD)),
        }
        for branch in session.branches
    ]
    alive = all(branch["state"] == MountState.ALIVE for branch in branches)
    return {
        "state": "running" if alive else "degraded",
        "vault": printable(session.vault),
        "pid": os.getpid(),
        "branches": branches,
        "moves": [],
        "warnings": [printable(warning) for warning in warnings],
        "root_branch": printable(session.root_branch),
    }


def document(place: Place) -> dict[str, Any]:
    """Ask the agent of this session; say so if none runs, or if it does not answer."""
    running = control.consult(place)
    if running is not None and running.document is not None:
        # What the socket said is the session user's word; the process id is the kernel's.
        empty = _empty(place)
        told = {key: value for key, value in running.document.items() if key in empty}
        return {**empty, **told, "pid": running.pid}
    if running is not None:
        return {
            **_empty(place),
            "state": "degraded",
            "pid": running.pid,
            "warnings": [running.problem],
        }
    warnings = []
    if vault.is_mounted(place.vault):
        answers = vault.state(place.vault, place.user) is MountState.ALIVE
        warnings.append(
            f"{printable(place.vault)} is served by an agent with another state directory."
            if answers
            else "The agent was killed and left its mount behind."
            " `session-agent first-launch` takes it over; `session-agent stop` removes it."
        )
    return {**_empty(place), "warnings": warnings}


def mounts(session: Session) -> list[dict[str, str]]:
    """The mounts of `session`, in the shape of `mounts --json`."""
    return [
        {
            "name": printable(mount.name),
            "path": printable(mount.path),
            "source": printable(mount.source),
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

    No probe of the mounts can reach there. The agent knows of those that failed it; the others are
    listed through the overlay, all at once, for `time_limit` seconds at most.
    """
    document = running.document if running else None
    known: dict[str, MountState] = {}
    steps: dict[str, bounded.Step[int]] = {}
    for branch in (document or {}).get("branches", []):
        try:
            path, name, state = str(branch["path"]), branch["name"], MountState(branch["state"])
        except (KeyError, TypeError, ValueError):  # the session user may have made it up
            continue
        if below(path, place.vault) != name:
            continue
        known[path] = state
        if state is MountState.ALIVE:
            steps[path] = bounded.start(partial(_list, path), int, place.user)
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


def _empty(place: Place) -> dict[str, Any]:
    return {
        "state": "stopped",
        "vault": printable(place.vault),
        "pid": None,
        "branches": [],
        "moves": [],
        "warnings": [],
    }
