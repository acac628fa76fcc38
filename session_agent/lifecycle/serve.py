"""`serve`, one for a state directory: what comes before the mount."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from session_agent.errors import ControlError
from session_agent.fsutil.credentials import acting_as
from session_agent.lifecycle import companion, listening, logs, state, vault
from session_agent.lifecycle import session as sessions
from session_agent.lifecycle.handover import Handover
from session_agent.lifecycle.session import Place
from session_agent.lifecycle.supervisor import Supervisor
from session_agent.model import Session, printable
from session_agent.overlay.roots import open_roots
from session_agent.settings import Loaded

log = logging.getLogger(__name__)


def serve(loaded: Loaded, *, to_log: bool, ready: Callable[[], None]) -> None:
    """See to it that the vault is served until SIGTERM, SIGINT, `stop`, or until somebody unmounts it.

    `ready` is called once the vault answers. With `to_log`, standard error goes to the state
    directory's log alone, from early on. Raises an AgentError where the vault cannot be served.
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
    logs.to_state_directory(folder, place.user, loaded.settings.log, instead_of_stderr=to_log)
    if vault.take_over(place.vault, place.user):
        log.warning("took over the mount that a killed agent left at %s", printable(place.vault))
        log.warning("programs with files open in it must open them again")
    session = _prepared(loaded, place)
    with acting_as(place.user):  # a branch behind a folder that is closed to the user stays closed
        roots = open_roots(session)
    # Before there is a connection to the kernel, which the companion must not have.
    helper = companion.start(place, loaded.environment.cloud_mounts)
    try:
        control = listening.bind(folder, place.user)
        Supervisor(Handover(loaded, place, session, folder, roots, helper, control)).run(ready)
    finally:
        helper.end()
    log.info("the vault %s is unmounted", printable(session.vault))


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
