"""`first-launch`: everything that makes a session's mounts one vault, within ten seconds.

This process itself touches nothing that can hang: the mounts, the home and the vault are reached from
child processes, each with a part of the time. A step that fails or is late is reported, and the rest
is done all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from session_agent.desktop import bookmarks, obsidian, rooms
from session_agent.desktop.changes import Change
from session_agent.desktop.memory import Memory
from session_agent.errors import AgentError, ControlError, MountError
from session_agent.fsutil import bounded
from session_agent.lifecycle import control, daemon, privileges, status, vault
from session_agent.lifecycle import session as sessions
from session_agent.lifecycle.report import Report, StepReport, StepState
from session_agent.lifecycle.session import Place
from session_agent.model import Branch, MountState, Session, printable
from session_agent.mounts.names import below
from session_agent.settings import Loaded

TOTAL_SECONDS = 9.0  # of ten: the interpreter's start and end are not counted
_WRITE_SECONDS = 3.0  # for the files in the home, and again for those in the vault
_RESERVE_SECONDS = 2 * 1.0  # that the writers get in any case

Writer = Callable[[], list[Change]]


class Deadline:
    """The time there is for everything."""

    def __init__(self, seconds: float) -> None:
        self.begun = time.monotonic()
        self._end = self.begun + seconds

    def remaining(self, *, keep: float = 0.0, at_most: float = TOTAL_SECONDS) -> float:
        """Seconds left, `keep` of them put aside; a little even when all are gone."""
        return max(0.1, min(at_most, self._end - time.monotonic() - keep))


@dataclass(frozen=True, slots=True)
class Served:
    """How the vault is served: the step to report, and the agent's status document if it runs."""

    step: StepReport
    running: control.Running | None = None

    @property
    def document(self) -> dict[str, Any] | None:
        """The status document."""
        return self.running.document if self.running else None


def first_launch(loaded: Loaded) -> Report:
    """Do everything. Raises SettingsError before anything is touched if the settings are wrong."""
    deadline = Deadline(TOTAL_SECONDS)
    place = sessions.find_place(loaded)
    served = _serve(loaded, place, deadline)
    session = sessions.build(loaded, place, status.not_answering(place, served.running))
    if served.document is not None and not served.step.changed:
        served = _follow_changes(loaded, place, session, served, deadline)
    steps = [_mounts_step(session), served.step, *_write(loaded, place, session, served, deadline)]
    warnings = [*session.warnings]
    if served.document is not None:
        told = served.document.get("warnings")
        warnings += [str(w) for w in told if w not in warnings] if isinstance(told, list) else []
    return Report(
        vault=printable(place.vault),
        steps=tuple(steps),
        warnings=tuple(map(printable, warnings)),
        seconds=time.monotonic() - deadline.begun,
    )


# The vault


def _serve(loaded: Loaded, place: Place, deadline: Deadline) -> Served:
    """See to it that an agent serves the vault."""
    try:
        running = control.consult(place)
        if running is None:
            return _start(loaded, place, deadline)
        if running.document is None and running.pid > 0:
            # Perhaps another first-launch has just started it.
            limit = deadline.remaining(keep=_RESERVE_SECONDS, at_most=3.0)
            running = daemon.await_other(place, limit)
    except (MountError, ControlError) as error:
        return Served(_not_served(error))
    if running is None:
        return Served(_not_served(MountError("The agent that was starting has ended.")))
    if running.document is None:
        hint = "Run `session-agent stop --force`, then first-launch again."
        if running.pid == 0:
            hint = "Set SESSION_AGENT_STATE_DIR to a folder of this container's own."
        return Served(_not_served(ControlError(running.problem, hint)), running)
    return Served(_served(running, "is served already", changed=False), running)


def _start(loaded: Loaded, place: Place, deadline: Deadline) -> Served:
    if not vault.is_mounted(place.vault):
        vault.prepare(place.vault, place.user)
    obstacle = privileges.obstacle()
    if not loaded.settings.overlay.enabled:
        obstacle = MountError(
            "overlay.enabled is false, so the branches stay apart and no rename crosses them.",
            f"Set it to true; it needs in the workspace's run config: {privileges.RUN_CONFIG}",
        )
    if obstacle is not None:
        if vault.is_mounted(place.vault):
            vault.take_over(place.vault, place.user)
        return Served(_not_served(obstacle))
    try:
        daemon.start(loaded, deadline.remaining(keep=_RESERVE_SECONDS + 1.0))
    except AgentError as error:
        # Better a plain folder than a mount that nobody serves.
        if vault.is_mounted(place.vault) and control.consult(place) is None:
            vault.take_over(place.vault, place.user)
        return Served(_not_served(error))
    running = control.consult(place)
    if running is None or running.document is None:
        return Served(_not_served(MountError("The agent has ended again, see its log.")), running)
    return Served(_served(running, "is served", changed=True), running)


def _follow_changes(
    loaded: Loaded, place: Place, session: Session, served: Served, deadline: Deadline
) -> Served:
    """Start the agent anew if it serves other branches than there are now, and if nobody minds."""
    running, document = served.running, served.document
    if running is None or document is None or not _differs(session, document):
        return served
    try:
        vault.unmount(place.vault, lazy=False)
        daemon.wait_for_end(running.pid, deadline.remaining(keep=5.0, at_most=2.0))
        return _start(loaded, place, deadline)
    except MountError as error:
        reason = MountError(
            f"The mounts have changed since the vault was started, and it is in use: {error.message}",
            "Close what has files open in the vault, then run: session-agent stop, first-launch.",
        )
        return Served(_not_served(reason), running)


def _differs(session: Session, document: Mapping[str, Any]) -> bool:
    """Whether the agent that gave `document` serves anything else than `session`."""
    told = document.get("branches")
    served = {
        (branch.get("name"), branch.get("path"), branch.get("mode")): branch.get("state")
        for branch in (told if isinstance(told, list) else [])
        if isinstance(branch, dict)
    }
    wanted = {
        (printable(branch.name), printable(branch.path), str(branch.mode)): branch.state
        for branch in session.branches
    }
    return (
        served.keys() != wanted.keys()
        or document.get("root_branch") != printable(session.root_branch)
        # One that was dead and is alive again may be another mount at the same path.
        or any(wanted[key] is MountState.ALIVE and served[key] != "alive" for key in wanted)
    )


def _served(running: control.Running, how: str, *, changed: bool) -> StepReport:
    document = running.document or {}
    bad = [
        f"{branch.get('name')} is {branch.get('state')}"
        for branch in document.get("branches", [])
        if branch.get("state") != "alive"
    ]
    path = str(document.get("vault", ""))
    detail = f"{path} {how} by process {running.pid}"
    if not bad:
        return StepReport("vault", StepState.OK, changed, detail, path=path)
    return StepReport(
        "vault",
        StepState.DEGRADED,
        changed,
        f"{detail}; {', '.join(bad)}",
        "What is in them gives errors until they answer again; the others are not affected.",
        path,
    )


def _not_served(error: AgentError) -> StepReport:
    return StepReport("vault", StepState.DEGRADED, False, error.message, error.hint)


# Mounts and files


def _mounts_step(session: Session) -> StepReport:
    bad = [
        f"{printable(mount.path)} is {mount.state}"
        for mount in session.mounts
        if mount.state is not MountState.ALIVE
    ]
    count = len(session.mounts)
    detail = "1 mount" if count == 1 else f"{count} mounts"
    if not bad:
        return StepReport("mounts", StepState.OK, False, detail)
    hint = "See what they are mounted from: a cloud drive's client, or a server, may be down."
    return StepReport("mounts", StepState.DEGRADED, False, f"{detail}; {', '.join(bad)}", hint)


def _write(
    loaded: Loaded, place: Place, session: Session, served: Served, deadline: Deadline
) -> list[StepReport]:
    """Write the files of the desktop, as the session user."""
    memory = Memory(place.state_dir)
    inside, places = session.branches, session.branches
    if served.document is None:
        inside = tuple(b for b in session.branches if below(b.path, place.vault) == b.name)
        # Without the overlay a branch is where it is mounted; an absolute name is just that.
        places = tuple(b if b in inside else replace(b, name=b.path) for b in session.branches)
    cloud_mounts = loaded.environment.cloud_mounts
    folders = rooms.rooms(place.vault, inside, place.username)
    home: dict[str, Writer] = {
        "bookmarks": lambda: [
            bookmarks.apply(
                place.config_home, place.vault, places, memory, cloud_mounts=cloud_mounts
            )
        ],
        "Obsidian vault list": lambda: obsidian.register(
            place.user.home, place.config_home, place.vault, memory
        ),
        "sync rooms": lambda: [rooms.apply(place.rooms_file, folders, memory)],
    }
    steps = _run(home, place, deadline.remaining(keep=1.0, at_most=_WRITE_SECONDS))
    if served.running is not None and served.document is None:
        reason = "left alone, since the vault does not answer"
        return [*steps, StepReport("Obsidian settings", StepState.DEGRADED, False, reason)]
    inner: dict[str, Writer] = {
        "Obsidian settings": lambda: obsidian.apply(place.vault, _sorted(inside), memory)
    }
    return [*steps, *_run(inner, place, deadline.remaining(at_most=_WRITE_SECONDS))]


def _sorted(branches: tuple[Branch, ...]) -> list[Branch]:
    return sorted(branches, key=lambda branch: branch.name)


def _run(writers: Mapping[str, Writer], place: Place, time_limit: float) -> list[StepReport]:
    """Run all at once, each in a process of the session user."""
    steps = {
        name: bounded.start(writer, list[Change], place.user) for name, writer in writers.items()
    }
    reports = []
    for name, outcome in bounded.collect(steps, time_limit).items():
        if isinstance(outcome, AgentError):
            reports.append(
                StepReport(name, StepState.DEGRADED, False, outcome.message, outcome.hint)
            )
        elif isinstance(outcome, Exception):
            reports.append(StepReport(name, StepState.DEGRADED, False, str(outcome)))
        else:
            reports.extend(_written(change) for change in outcome)
    return reports


def _written(change: Change) -> StepReport:
    state = StepState.DEGRADED if change.problem else StepState.OK
    detail = change.problem or change.detail
    return StepReport(change.what, state, change.changed, detail, path=printable(change.path))
