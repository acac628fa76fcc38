"""What first-launch has done, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from session_agent.errors import EXIT_DEGRADED, EXIT_FAILED, EXIT_OK


class StepState(StrEnum):
    """How a step ended."""

    OK = "ok"
    DEGRADED = "degraded"  # something is missing
    FAILED = "failed"

    @property
    def exit_code(self) -> int:
        """What a command ends with whose worst step this is."""
        return {"ok": EXIT_OK, "degraded": EXIT_DEGRADED, "failed": EXIT_FAILED}[self]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step: what it was about, what became of it, and what to do if it is not ok.

    `difference` is what a dry run tells of the files, see desktop/dry_run.py.
    """

    name: str
    state: StepState
    changed: bool
    detail: str
    hint: str = ""
    path: str = ""
    difference: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything first-launch tells. `seconds` is how long it took. `dry`: nothing was done."""

    vault: str
    steps: tuple[StepReport, ...]
    warnings: tuple[str, ...]
    seconds: float
    dry: bool = False

    @property
    def state(self) -> StepState:
        """The worst of the steps'."""
        order = list(StepState)
        return max((step.state for step in self.steps), key=order.index, default=StepState.OK)

    @property
    def changed(self) -> bool:
        """Whether anything is different from before."""
        return any(step.changed for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """The shape of `first-launch --json`; a dry run's has `dry_run` and differences besides."""
        document: dict[str, Any] = {
            "state": str(self.state),
            "changed": self.changed,
            "vault": self.vault,
            "seconds": round(self.seconds, 3),
            "steps": [
                {
                    "name": step.name,
                    "state": str(step.state),
                    "changed": step.changed,
                    "detail": step.detail,
                    "hint": step.hint,
                    "path": step.path,
                }
                for step in self.steps
            ],
            "warnings": list(self.warnings),
        }
        if self.dry:
            document["dry_run"] = True
            for shown, step in zip(document["steps"], self.steps, strict=True):
                shown["difference"] = step.difference
        return document
