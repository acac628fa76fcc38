"""The process that serves the vault: one for a state directory, until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import trio

from session_agent.errors import ControlError, MountError
from session_agent.fsutil.credentials import acting_as
from session_agent.lifecycle import session as sessions
from session_agent.lifecycle import state, status, vault
from session_agent.lifecycle.control import StatusDocument
from session_agent.lifecycle.control_server import ControlServer
from session_agent.lifecycle.privileges import explain
from session_agent.lifecycle.session import Place
from session_agent.model import Session, printable
from session_agent.overlay.serve import Overlay, OverlayOptions
from session_agent.settings import Loaded

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_USABLE_SECONDS = 5.0  # from the mount to the first answer of the vault


def serve(loaded: Loaded, *, to_log: bool, ready: Callable[[], None]) -> None:
    """Serve the vault until SIGTERM, SIGINT, `stop`, or until somebody unmounts it.

    `ready` is called once the vault answers. With `to_log`, standard error goes to the state
    directory's log from early on. Raises an AgentError where the vault cannot be served.
    """
    os.chdir("/")  # keep no mount busy
    os.umask(0o022)
    place = sessions.find_place(loaded)
    folder = state.create(place.state_dir, place.user)
    if not state.lock(folder, place.user):
        raise ControlError(
            f"Another agent (process {state.holder(folder)}) serves this session already.",
            "`session-agent status` shows it, `session-agent stop` ends it.",
        )
    if to_log:
        os.dup2(state.open_log(folder, place.user), sys.stderr.fileno())
    if vault.take_over(place.vault, place.user):
        log.warning("took over the mount that a killed agent left at %s", printable(place.vault))
        log.warning("programs with files open in it must open them again")
    session = _prepared(loaded, place)
    # From here on a signal must unmount; it waits until the event loop can be told.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    options = OverlayOptions(
        cache_seconds=loaded.settings.overlay.cache_seconds,
        remote_time_limit=loaded.settings.overlay.remote_seconds,
    )
    overlay = Overlay(session, options)
    try:
        # With the user's rights: a branch behind a folder that is closed to them stays closed.
        with acting_as(place.user):
            warnings = (*session.warnings, *overlay.open_branches())
        for warning in warnings:
            log.warning("%s", warning)
        try:
            overlay.mount()
        except MountError as error:
            raise explain(error) from error
        if not vault.is_mounted(place.vault):
            raise MountError(
                f"The vault's path {printable(place.vault)} leads elsewhere since just now.",
                "Let nobody but root and the session user change the folders above it.",
            )
        usable = trio.run(_main, overlay, session, warnings, folder, ready)
    finally:
        overlay.close()
    log.info("the vault %s is unmounted", printable(session.vault))
    if not usable:
        raise MountError(f"The vault {printable(session.vault)} was mounted but did not answer.")


def _prepared(loaded: Loaded, place: Place) -> Session:
    """The session, with the vault and the root branch in place."""
    vault.prepare(place.vault, place.user)
    session = sessions.build(loaded, place)
    vault.make_root_branch(session.root_branch, place.user)
    hidden = []
    if session.root_branch != session.vault:
        hidden = vault.hidden_entries(session.vault, place.user)
    if not hidden:
        return session
    shown = ", ".join(printable(name) for name in hidden[:3]) + (", …" if len(hidden) > 3 else "")
    warning = (
        f"The overlay hides what the vault's own folder holds: {shown}. To have it as the vault's"
        f" top level, set `root_branch: {printable(session.vault)}`."
    )
    return replace(session, warnings=(*session.warnings, warning))


async def _main(
    overlay: Overlay,
    session: Session,
    warnings: Sequence[str],
    folder: int,
    ready: Callable[[], None],
) -> bool:
    """Serve until told to stop. Returns whether the vault was usable at first."""
    usable = True

    async def announce() -> None:
        """Asked in a thread, for it is this one that gives the answer."""
        nonlocal usable
        with trio.move_on_after(_USABLE_SECONDS) as limit:
            await trio.to_thread.run_sync(os.stat, session.vault, abandon_on_cancel=True)
        if limit.cancelled_caught:
            usable = False
            overlay.stop()
            return
        log.info("the vault %s is ready", printable(session.vault))
        ready()

    def tell_status() -> StatusDocument:
        return status.of_running(session, overlay.branch_states(), warnings)

    def stop() -> StatusDocument:
        log.info("told to stop")
        overlay.stop()
        return tell_status()

    server = ControlServer(folder, session.user, {"status": tell_status, "stop": stop})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, overlay)
        nursery.start_soon(server.run)
        nursery.start_soon(announce)
        await overlay.run()
        nursery.cancel_scope.cancel()
    return usable


async def _stop_on_signal(overlay: Overlay) -> None:
    with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        async for number in signals:
            log.info("%s", signal.Signals(number).name)
            overlay.stop()
