"""`first-launch --dry-run`: what it would do, without mounting, making or writing anything."""

from __future__ import annotations

from session_agent.errors import AgentError, ControlError
from session_agent.lifecycle import control, status, writers
from session_agent.lifecycle import session as sessions
from session_agent.lifecycle.first_launch import (
    TOTAL_SECONDS,
    WRITE_SECONDS,
    Deadline,
    mounts_step,
    not_served,
    obstacle,
)
from session_agent.lifecycle.permissions import Permissions, restricted
from session_agent.lifecycle.report import Report, StepReport, StepState
from session_agent.model import printable
from session_agent.settings import Loaded


def rehearse(loaded: Loaded) -> Report:
    """The report of a first-launch now, with the differences it would make to files."""
    deadline = Deadline(TOTAL_SECONDS)
    place = sessions.find_place(loaded)
    fault: AgentError | None = None
    running = None
    try:
        running = control.consult(place)
    except ControlError as error:
        fault = error
    if running is None and fault is None:
        fault = obstacle(loaded)
    known = status.not_answering(place, running, loaded.settings.mounts.probe_seconds)
    session = restricted(Permissions(loaded), sessions.build(loaded, place, known))
    overlay = fault is None
    if fault is not None:
        vault = not_served(fault)
    elif running is not None:
        detail = f"{printable(place.vault)} is served already by process {running.pid}"
        vault = StepReport("vault", StepState.OK, False, detail)
    else:
        detail = f"{printable(place.vault)} would be served"
        vault = StepReport("vault", StepState.OK, True, detail)
    home = writers.write_home(
        place,
        session,
        loaded.environment.cloud_mounts,
        overlay=overlay,
        time_limit=deadline.remaining(at_most=WRITE_SECONDS),
        dry=True,
    )
    inside = writers.write_vault(
        place,
        session,
        session.root_branch if overlay else session.vault,
        overlay=overlay,
        time_limit=deadline.remaining(at_most=WRITE_SECONDS),
        dry=True,
    )
    limit = deadline.remaining(at_most=WRITE_SECONDS)
    icons = writers.write_icons(place, time_limit=limit, dry=True)
    emblems = writers.write_emblems(
        place, session, overlay=overlay, time_limit=deadline.remaining(), dry=True
    )
    return Report(
        vault=printable(place.vault),
        steps=(mounts_step(session), vault, *home, *inside, *icons, *emblems),
        warnings=tuple(map(printable, session.warnings)),
        seconds=deadline.passed,
        dry=True,
    )
