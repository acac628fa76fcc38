"""All checks at once, each in a child process: none can hold up another, nor the whole for long."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import session_agent
from session_agent.doctor import desktop, fuse, kasm, limits, storage, vault
from session_agent.doctor.checks import Check, Context, Examine, State, fail, ok
from session_agent.errors import AgentError, SettingsError, TimeLimitError
from session_agent.fsutil import bounded
from session_agent.lifecycle import session as sessions
from session_agent.lifecycle.session import Place
from session_agent.model import printable
from session_agent.overlay import connection
from session_agent.redaction import redacted
from session_agent.settings import Loaded

_SECONDS = 7.0  # for all checks; what comes before may take two more

# In the order in which a reader needs them; and whether to look with the session user's rights.
_CHECKS: tuple[tuple[str, Examine, bool], ...] = (
    ("fuse", fuse.examine, False),
    ("agent", vault.examine, False),
    ("vault-folder", storage.vault_folder, False),
    ("state-directory", storage.state_directory, True),
    ("moves", storage.journals, False),
    ("home", storage.home, False),
    ("space", limits.space, True),
    ("clock", limits.clock, True),
    ("open-files", limits.open_files, False),
    ("inotify", limits.inotify, True),
    ("session-bus", desktop.session_bus, True),
    ("gvfs", desktop.gvfs, False),
    ("file-chooser", desktop.file_chooser, False),
    ("kasm-log", kasm.session_log, False),
    ("obsidian-plugin", desktop.obsidian_plugin, True),
)
_NOT_VITAL = frozenset({"clock", "inotify", "session-bus", "kasm-log", "obsidian-plugin"})


@dataclass(frozen=True, slots=True)
class Findings:
    """What doctor tells. `place` is None where nobody knows whose session this is."""

    checks: tuple[Check, ...]
    place: Place | None

    @property
    def state(self) -> State:
        """The worst of the checks'."""
        order = list(State)
        return max((check.state for check in self.checks), key=order.index, default=State.OK)

    def as_json(self) -> dict[str, Any]:
        """The shape of `doctor --json`."""
        return {
            "state": str(self.state),
            "version": session_agent.__version__,
            "checks": [
                {
                    "name": check.name,
                    "state": str(check.state),
                    "detail": check.detail,
                    "why": check.why,
                    "fix": check.fix,
                }
                for check in self.checks
            ],
        }


def examine(loaded: Loaded, problem: SettingsError | None = None) -> Findings:
    """Look at everything. `problem`: why the settings could not be read; `loaded` is then what is without."""
    first = _settings(loaded, problem)
    try:
        place = sessions.find_place(loaded)
    except (AgentError, OSError) as error:
        hint = error.hint if isinstance(error, AgentError) else ""
        text = error.message if isinstance(error, AgentError) else str(error)
        first += fail(
            "user", printable(text), "Without the session user nothing can be done.", hint
        )
        return Findings(tuple(map(_clean, first)), None)
    context = Context(loaded, place, connection.is_mounted(place.vault), os.geteuid() == 0)
    how = "for whom root acts" if context.root and place.user.uid else "who is the caller"
    first += ok("user", f"{printable(place.user.name)} ({place.user.uid}), {how}")
    steps = {
        name: bounded.start(partial(look, context), list[Check], place.user if as_user else None)
        for name, look, as_user in _CHECKS
    }
    outcomes = bounded.collect(steps, _SECONDS)
    for name, outcome in outcomes.items():
        first += [_failed(name, outcome)] if isinstance(outcome, Exception) else outcome
    return Findings(tuple(map(_clean, first)), place)


def _settings(loaded: Loaded, problem: SettingsError | None) -> list[Check]:
    if problem is not None:
        why = "The agent does not start with settings that it does not understand."
        return fail("settings", problem.message, why, problem.hint)
    return ok(
        "settings", f"from {printable(loaded.file)}" if loaded.file else "the defaults; no file"
    )


def _failed(name: str, error: Exception) -> Check:
    state = State.WARN if name in _NOT_VITAL else State.FAIL
    if isinstance(error, TimeLimitError):
        return Check(
            name,
            state,
            f"no answer within {_SECONDS:g} s",
            "What it looks at hangs: the home, a mount, or the agent.",
            "See `mounts` and `home`; on the host: cat /proc/PID/stack of what hangs.",
        )
    hint = error.hint if isinstance(error, AgentError) else ""
    text = error.message if isinstance(error, AgentError) else str(error)
    return Check(name, state, printable(text), "It could not be looked at.", hint)


def _clean(check: Check) -> Check:
    return replace(
        check,
        detail=redacted(check.detail),
        why=redacted(check.why),
        fix=redacted(check.fix),
    )
