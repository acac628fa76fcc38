"""`first-launch`: everything that makes a session's mounts one vault, within ten seconds.

This process itself touches nothing that can hang: the mounts, the home and the vault are reached
from child processes, each with a part of the time. A step that fails or is late is reported, and
the rest is done all the same.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from session_agent.errors import AgentError, ControlError, MountError
from session_agent.lifecycle import control, daemon, privileges, status, vault, writers
from session_agent.lifecycle import session as sessions
from session_agent.lifecycle.control import StatusDocument
from session_agent.lifecycle.permissions import Permissions, restricted
from session_agent.lifecycle.report import Report, StepReport, StepState
from session_agent.model import MountState, Session, printable
from session_agent.settings import Loaded

TOTAL_SECONDS = 9.0  # of ten: the interpreter's start and end are not counted
WRITE_SECONDS = 2.0  # for the files in the home, and again for those in the vault
_OTHER_SECONDS = 4.0  # that another first-launch has to get its agent going
_ARRIVAL_SECONDS = 3.0  # that an agent has to take in a mount that is new
_POLL_SECONDS = 0.1
_LAST_SECONDS = 1.0  # for what comes after the agent's start


class Deadline:
    """The time there is for everything."""

    def __init__(self, seconds: float) -> None:
        self._begun = time.monotonic()
        self._seconds = seconds

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    def remaining(self, *, keep: float = 0.0, at_most: float = TOTAL_SECONDS) -> float:
        """Seconds left, `keep` of them put aside; a little even when all are gone."""
        return max(0.1, min(at_most, self._seconds - self.passed - keep))


@dataclass(frozen=True, slots=True)
class Served:
    """What became of the vault: the step to report, and the agent that serves it, if one does."""

    step: StepReport
    running: control.Running | None = None


def first_launch(loaded: Loaded) -> Report:
    """Do everything. Raises SettingsError if the settings make no sense; nothing is done then."""
    return _FirstLaunch(loaded).run()


def obstacle(loaded: Loaded) -> MountError | None:
    """Why no vault can be served here, as far as can be told without trying."""
    if not loaded.settings.overlay.enabled:
        return MountError(
            "overlay.enabled is false: the mounts stay apart, and no rename crosses them.",
            f"Set it to true; the run config then needs {privileges.RUN_CONFIG}",
        )
    return privileges.obstacle()


class _FirstLaunch:
    """One run: what is known of the session, and the time that is left."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._deadline = Deadline(TOTAL_SECONDS)
        self._place = sessions.find_place(loaded)

    def run(self) -> Report:
        place = self._place
        running, fault = self._consult()
        if running is None and fault is None:
            fault = self._make_room()
        known = status.not_answering(place, running, self._loaded.settings.mounts.probe_seconds)
        session = restricted(Permissions(self._loaded), sessions.build(self._loaded, place, known))
        in_use = None
        running = self._after_arrivals(session, running)
        if running is not None and running.document and _differs(session, running.document):
            in_use = self._end(running)
            running = running if in_use else None
        if running is None and fault is None:
            fault = self._prepare(session)
        overlay = fault is None or running is not None
        steps = [mounts_step(session), *self._write(session, overlay=overlay)]
        if fault is not None:
            served = Served(not_served(fault), running)
        elif running is not None and running.document is not None:
            served = Served(_serving(running, running.document, in_use), running)
        else:
            served = self._start()
            if served.running is None:
                # Without the overlay programs see the vault's own folder.
                steps += self._write_vault(session, place.vault, overlay=False)
        if served.running is None:
            limit = self._deadline.remaining(at_most=WRITE_SECONDS)
            steps += writers.write_emblems(place, session, overlay=False, time_limit=limit)
        steps.insert(1, served.step)
        return Report(
            vault=printable(place.vault),
            steps=tuple(steps),
            warnings=_warnings(self._loaded, session, served.running),
            seconds=self._deadline.passed,
        )

    def _consult(self) -> tuple[control.Running | None, AgentError | None]:
        """The agent that runs already, and why there can be no vault, if that is known by now."""
        try:
            running = control.consult(self._place)
            if running is not None and running.theirs:
                daemon.stop(self._place, force=True)
                running = control.consult(self._place)
            if running is not None and running.starting:
                # Another first-launch has just started it.
                running = daemon.await_other(self._place, _OTHER_SECONDS)
        except (ControlError, MountError) as error:
            return None, error
        if running is None or running.document is not None:
            return running, None
        if running.pid == 0:
            hint = "Set SESSION_AGENT_STATE_DIR to a folder that only this container has."
        else:
            hint = "Run `session-agent stop --force`, then first-launch again."
        return running, ControlError(running.problem, hint)

    def _after_arrivals(
        self, session: Session, running: control.Running | None
    ) -> control.Running | None:
        """The agent, once it has taken in what is new; it does that by itself, but not at once."""
        end = time.monotonic() + self._deadline.remaining(at_most=_ARRIVAL_SECONDS)
        while running is not None and running.document and _lacks(session, running.document):
            if time.monotonic() > end:
                break
            time.sleep(_POLL_SECONDS)
            running = control.consult(self._place)
        return running

    def _make_room(self) -> AgentError | None:
        """Clear away what a killed agent left, and see to the vault's folder."""
        place = self._place
        try:
            if place.only_root:
                vault.remove_users(place.vault)
            vault.take_over(place.vault, place.user)
            vault.prepare(place.vault, place.user)
        except MountError as error:
            return error
        return None

    def _prepare(self, session: Session) -> AgentError | None:
        """Why no vault can be served, if that can be told beforehand."""
        fault = obstacle(self._loaded)
        if fault is not None:
            return fault
        try:
            vault.make_root_branch(session.root_branch, self._place.user)
        except MountError as error:
            return error
        return None

    def _end(self, running: control.Running) -> MountError | None:
        """End the agent, unless something in the vault is in use."""
        try:
            vault.unmount(self._place.vault, lazy=False)
        except MountError as error:
            return MountError(
                f"the mounts have changed since, but {error.message}",
                "Close what is open in the vault, then run: session-agent stop, first-launch.",
            )
        daemon.wait_for_end(running.pid, self._deadline.remaining(at_most=2.0))
        return None

    def _start(self) -> Served:
        place = self._place
        try:
            daemon.start(self._loaded, self._deadline.remaining(keep=_LAST_SECONDS))
        except AgentError as error:
            # Another first-launch may have been quicker.
            running = daemon.await_other(place, self._deadline.remaining(keep=0.5))
            if running is None:
                with suppress(MountError):
                    vault.take_over(place.vault, place.user)
                return Served(not_served(error))
            if running.document is None:
                return Served(not_served(error), running)
            return Served(_serving(running, running.document), running)
        running = control.consult(place)
        if running is None or running.document is None:
            return Served(not_served(MountError("The agent has ended again, see its log.")))
        return Served(_serving(running, running.document, changed=True), running)

    def _write(self, session: Session, *, overlay: bool) -> list[StepReport]:
        limit = self._deadline.remaining(keep=2 * _LAST_SECONDS, at_most=WRITE_SECONDS)
        home = writers.write_home(
            self._place,
            session,
            self._loaded.environment.cloud_mounts,
            overlay=overlay,
            time_limit=limit,
        )
        # Where the overlay shows the root branch, or will; the vault's own folder otherwise.
        folder = session.root_branch if overlay else session.vault
        inside = self._write_vault(session, folder, overlay=overlay)
        limit = self._deadline.remaining(keep=_LAST_SECONDS, at_most=WRITE_SECONDS)
        return [*home, *inside, *writers.write_icons(self._place, time_limit=limit)]

    def _write_vault(self, session: Session, folder: str, *, overlay: bool) -> list[StepReport]:
        limit = self._deadline.remaining(keep=_LAST_SECONDS, at_most=WRITE_SECONDS)
        return writers.write_vault(self._place, session, folder, overlay=overlay, time_limit=limit)


def _lacks(session: Session, document: StatusDocument) -> bool:
    """Whether `session` has a branch that the agent that gave `document` does not serve."""
    served = {b.path for b in document.branches}
    return any(printable(branch.path) not in served for branch in session.branches)


def _differs(session: Session, document: StatusDocument) -> bool:
    """Whether the agent that gave `document` serves anything else than `session`."""
    served = {(b.name, b.path, b.mode): b.state for b in document.branches}
    wanted = {(printable(b.name), printable(b.path), b.mode): b.state for b in session.branches}
    return (
        served.keys() != wanted.keys()
        or document.vault != printable(session.vault)
        or document.root_branch != printable(session.root_branch)
        # One that was dead and is alive again may be another mount at the same path.
        or any(
            wanted[key] is MountState.ALIVE and served[key] is not MountState.ALIVE
            for key in wanted
        )
    )


def _warnings(loaded: Loaded, session: Session, running: control.Running | None) -> tuple[str, ...]:
    """What the session knows, and what the agent found when it started."""
    told: tuple[str, ...] = running.document.warnings if running and running.document else ()
    served = running is not None and running.document is not None
    if not served and loaded.settings.policy.file is not None:
        told = ("The permission policy is not kept: there is no vault, and the mounts lie open.",)
    return tuple(dict.fromkeys([*map(printable, session.warnings), *told]))


def mounts_step(session: Session) -> StepReport:
    """How many mounts there are, and which do not answer."""
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


def _serving(
    running: control.Running,
    document: StatusDocument,
    fault: MountError | None = None,
    *,
    changed: bool = False,
) -> StepReport:
    bad = [f"{b.name} is {b.state}" for b in document.branches if b.state is not MountState.ALIVE]
    hint = "What is in them gives errors until they answer again. The others are not affected."
    if fault is not None:
        bad, hint = [fault.message], fault.hint
    how = "is served" if changed else "is served already"
    detail = "; ".join([f"{document.vault} {how} by process {running.pid}", *bad])
    state = StepState.DEGRADED if bad else StepState.OK
    return StepReport("vault", state, changed, detail, hint if bad else "", document.vault)


def not_served(error: AgentError) -> StepReport:
    """The vault's step where there is no vault."""
    return StepReport("vault", StepState.DEGRADED, False, error.message, error.hint)
