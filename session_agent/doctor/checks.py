"""What a check is: a look at one precondition, and its outcome with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from session_agent.errors import EXIT_DEGRADED, EXIT_FAILED, EXIT_OK
from session_agent.lifecycle.session import Place
from session_agent.settings import Loaded


class State(StrEnum):
    """How a precondition stands."""

    OK = "ok"
    WARN = "warn"  # something is missing, or will be
    FAIL = "fail"  # there is no vault, or something is lost

    @property
    def exit_code(self) -> int:
        """What `doctor` ends with whose worst check this is."""
        return {"ok": EXIT_OK, "warn": EXIT_DEGRADED, "fail": EXIT_FAILED}[self]


@dataclass(frozen=True, slots=True)
class Check:
    """One precondition: what is found, why it matters, and the exact fix; the last two only if not ok."""

    name: str
    state: State
    detail: str
    why: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What the checks are given. `served`: the vault is mounted, whoever did it and whether it answers.

    `root`: whether the caller, and so the agent that this caller would start, is root.
    """

    loaded: Loaded
    place: Place
    served: bool
    root: bool


Examine = Callable[[Context], list[Check]]
"""Looks at one thing. It is called in a child process with a time limit; what it raises is a failed check."""


def ok(name: str, detail: str) -> list[Check]:
    """Nothing to be done."""
    return [Check(name, State.OK, detail)]


def warn(name: str, detail: str, why: str, fix: str) -> list[Check]:
    """Something is missing."""
    return [Check(name, State.WARN, detail, why, fix)]


def fail(name: str, detail: str, why: str, fix: str) -> list[Check]:
    """Something does not work."""
    return [Check(name, State.FAIL, detail, why, fix)]
