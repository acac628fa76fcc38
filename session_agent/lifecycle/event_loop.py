"""Serving the vault and the control socket in one event loop, until told to stop."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from session_agent.errors import MountError
from session_agent.lifecycle import journals, status
from session_agent.lifecycle.arrivals import with_mounts
from session_agent.lifecycle.audit import Audit
from session_agent.lifecycle.companion import Companion
from session_agent.lifecycle.control import StatusDocument, Verb
from session_agent.lifecycle.control_server import ControlServer, Handler
from session_agent.lifecycle.enforcement import Enforcement
from session_agent.lifecycle.handover import Handover, Plug, Report
from session_agent.lifecycle.live_moves import LiveMoves
from session_agent.lifecycle.orphan import Orphan
from session_agent.lifecycle.permissions import Permissions
from session_agent.model import MountState, Session, printable
from session_agent.moves import strategy
from session_agent.moves.copiers import Copiers
from session_agent.overlay import polling
from session_agent.overlay.accepted import MoveOptions
from session_agent.overlay.heralding import Started
from session_agent.overlay.limits import Limits
from session_agent.overlay.serve import Overlay, OverlayOptions
from session_agent.settings import Loaded
from session_agent.settings_types import Settings

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_USABLE_SECONDS = 5.0  # from the mount to the first answer of the vault


def serve_vault(given: Handover, copiers: Copiers, herald: Started | None) -> None:
    """Serve the vault, which is mounted, until SIGTERM, SIGINT, `stop`, or until somebody unmounts it.

    Raises MountError where the vault cannot be served.
    """
    # From here on a signal must unmount; it waits until the event loop can be told.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    loaded, session, user = given.loaded, given.session, given.session.user
    journal, problems = journals.open_journal(given.folder, user)
    enforcement = _enforcement(loaded, session)
    limits = None if enforcement is None else Limits(enforcement.roots, enforcement.refused)
    options = replace(_options(loaded.settings, given.helper, copiers), herald=herald)
    overlay = Overlay(session, options, journal=journal, limits=limits)
    orphan = Orphan(given)
    try:
        problems += overlay.open_branches(given.roots)
        problems += journals.told(overlay.recover())
        warnings = (*session.warnings, *given.warnings, *problems)
        for warning in warnings:
            log.warning("%s", warning)
        overlay.mount(given.connection)
        moves = LiveMoves(overlay, journal, session.vault)
        moves.tell_ends(given.helper.tell_move)
        served = _Served(overlay, moves, session, warnings, enforcement)
        usable = trio.run(_main, served, given, orphan)
    finally:
        overlay.close()
        if journal is not None:
            journal.close()
        orphan.unmount()
    if not usable:
        raise MountError(f"The vault {printable(session.vault)} was mounted but did not answer.")


@dataclass(slots=True)
class _Served:
    """What is served, and what is known of it."""

    overlay: Overlay
    moves: LiveMoves
    whole: Session
    found: Sequence[str]
    enforcement: Enforcement | None

    @property
    def session(self) -> Session:
        """The session as its user gets to see it now."""
        return self.whole if self.enforcement is None else self.enforcement.session

    @property
    def warnings(self) -> Sequence[str]:
        """What was found at the start, and what is wrong with the policy now."""
        return (*self.found, *(() if self.enforcement is None else self.enforcement.problems))

    async def plug(self, plug: Plug) -> None:
        """A branch has come, come back, or gone. The policy speaks of it before it is shown."""
        name = plug.mount.name
        others = [mount for mount in self.whole.mounts if mount.name != name]
        self.whole = with_mounts(self.whole, [*others, plug.mount])
        if self.enforcement is not None:
            await self.enforcement.plug(self.whole, self.overlay.restrict)
        if plug.mount.state is MountState.DEAD:
            os.close(plug.fd)
            self.overlay.unplug(name)
            log.warning("%s is not mounted any more", printable(plug.mount.path))
            return
        branch = next(one for one in self.whole.branches if one.name == name)
        self.overlay.plug(branch, plug.fd)
        log.info("%s is mounted: it is in the vault now", printable(plug.mount.path))

    def document(self) -> StatusDocument:
        """The status."""
        return status.of_running(
            self.session,
            self.overlay.branch_states(),
            self.moves.statuses(),
            self.warnings,
            self.overlay.foreign_counts(),
        )


def _enforcement(loaded: Loaded, session: Session) -> Enforcement | None:
    permissions = Permissions(loaded)
    if not permissions.configured:
        return None
    return Enforcement(permissions, session, Audit(loaded.settings.policy.audit_file))


def _options(settings: Settings, helper: Companion, copiers: Copiers) -> OverlayOptions:
    return OverlayOptions(
        announcer=helper.pid,
        foreign_events=settings.overlay.foreign_events,
        remote_polls_per_minute=settings.overlay.remote_polls_per_minute,
        cache_seconds=settings.overlay.cache_seconds,
        remote_time_limit=settings.overlay.remote_seconds,
        moves=MoveOptions(
            inline_bytes=settings.moves.inline_bytes,
            inline_files=settings.moves.inline_files,
            grace_seconds=settings.moves.grace_seconds,
            ways=strategy.Options(
                settings.moves.handle_rename, journals.mount_points, copiers, polling.is_busy
            ),
        ),
    )


async def _main(served: _Served, given: Handover, orphan: Orphan) -> bool:
    """Serve until told to stop. Returns whether the vault was usable at first."""
    usable = True
    overlay, session, helper = served.overlay, served.whole, given.helper

    async def announce() -> None:
        """Asked in a thread, for it is this one that gives the answer."""
        nonlocal usable
        with trio.move_on_after(_USABLE_SECONDS) as limit:
            await overlay.answered()
        if limit.cancelled_caught:
            usable = False
            overlay.stop()
            return
        log.info("the vault %s is ready", printable(session.vault))
        given.report(Report(ready=True))

    def tell_companion() -> None:
        states = overlay.branch_states()
        branches = served.session.branches
        helper.tell([replace(b, state=states.get(b.name, MountState.DEAD)) for b in branches])

    async with trio.open_nursery() as nursery:

        def stop() -> None:
            log.info("told to stop")
            nursery.start_soon(_end, overlay)

        handlers = _handlers(served.document, stop, served.moves)
        # Whoever ends the vault uncovers what it lies over.
        reserved: frozenset[Verb] = frozenset({"stop"} if served.enforcement is not None else ())
        server = ControlServer(given.control, session.user, handlers, reserved)
        nursery.start_soon(_stop_on_signal, overlay)
        nursery.start_soon(server.run)
        nursery.start_soon(orphan.watch, served.plug)
        nursery.start_soon(announce)
        nursery.start_soon(overlay.watch_branches, tell_companion)
        if served.enforcement is not None:
            nursery.start_soon(served.enforcement.run, overlay.restrict, tell_companion)
        await overlay.run()
        nursery.cancel_scope.cancel()
    return usable


def _handlers(
    document: Callable[[], StatusDocument], end: Callable[[], None], moves: LiveMoves
) -> dict[Verb, Handler]:
    """What the control socket's verbs do. Each is answered with the status as it is then."""

    async def tell_status(_: str) -> StatusDocument:
        return document()

    async def stop(_: str) -> StatusDocument:
        end()
        return document()

    async def cancel(move_id: str) -> StatusDocument:
        await moves.cancel(move_id)
        return document()

    async def acknowledge(move_id: str) -> StatusDocument:
        await moves.acknowledge(move_id)
        return document()

    return {"status": tell_status, "stop": stop, "cancel": cancel, "acknowledge": acknowledge}


async def _stop_on_signal(overlay: Overlay) -> None:
    with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        async for number in signals:
            log.info("%s", signal.Signals(number).name)
            await _end(overlay)


async def _end(overlay: Overlay) -> None:
    await overlay.stop_moves()
    overlay.stop()
