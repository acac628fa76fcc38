"""Moves: rename(2) across branches as preflight, stage, commit, retire.

No byte ever has fewer than one durable copy under a name that is shown: the source is removed only after
its copy lies durably under the target's name. Before the commit any failure leaves both sides as they were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from errno import EXDEV

from session_agent.fsutil.at import fsync_folder, rename_at
from session_agent.fsutil.credentials import AGENT, acting_as, assume
from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from session_agent.moves import exchange
from session_agent.moves.copy import Copied
from session_agent.moves.plan import Place, Request, preflight
from session_agent.moves.retire import rename_new, retire
from session_agent.moves.staging import Stage, discard, reserved_name, stage_beside

log = logging.getLogger(__name__)

OnCommit = Callable[[tuple[Copied, ...]], None]
"""Called when the new names are in place and before the old ones go: open handles change over here.

It is given what Outcome.copied will be. If it raises, the old names are kept.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a move ended.

    `strategy` is "copy", "rename" (one mount after all) or "none" (both ends are one file). `copied` is
    empty where nothing was copied; after an exchange it is the source's copy, then the target's. `losses`
    are attributes that the target cannot hold. `kept`: the old name, or a part of what is below it, is
    still there because it changed meanwhile or could not be removed.
    """

    strategy: str
    copied: tuple[Copied, ...] = ()
    losses: tuple[str, ...] = ()
    kept: bool = False


def move(request: Request, on_commit: OnCommit) -> Outcome:
    """Carry out a rename whose ends may lie on different mounts. OSError as rename(2) would give it."""
    assume(AGENT)
    plan = preflight(request)
    if plan.nothing_to_do:
        return Outcome("none")
    source, target = request.source, request.target
    try:
        with acting_as(request.caller):
            rename_at(source.folder, source.name, target.folder, target.name, request.flags)
        return Outcome("rename")
    except OSError as error:
        if error.errno != EXDEV:
            raise
    if request.flags & RENAME_EXCHANGE:
        stages, finish = exchange.commit(source, target)
    else:
        stages, finish = _commit(source, target, request.flags)
    copied = tuple(stage.copied for stage in stages)
    kept = not _finished(request, copied, on_commit, finish)
    outcome = Outcome(
        "copy",
        copied,
        tuple(loss for stage in stages for loss in stage.losses),
        kept,
    )
    if outcome.losses:
        log.info("%s: the target does not hold: %s", target.label, ", ".join(outcome.losses))
    if kept:
        log.warning("%s: the old version is kept beside the new one", source.label)
    return outcome


def _commit(
    source: Place, target: Place, flags: int
) -> tuple[tuple[Stage, ...], Callable[[], bool]]:
    """Stage the source and bring the stage to the target's name. Answers how to retire the source."""
    stage = stage_beside(source, target)
    try:
        if flags & RENAME_NOREPLACE:
            rename_new(target.folder, stage.name, target.name)
        else:
            rename_at(target.folder, stage.name, target.folder, target.name)
    except OSError:
        discard(target, stage.name)
        raise

    def finish() -> bool:
        return retire(source, stage.copied, reserved_name())

    return (stage,), finish


def _finished(
    request: Request,
    copied: tuple[Copied, ...],
    on_commit: OnCommit,
    finish: Callable[[], bool],
) -> bool:
    """What follows the commit. A failure no longer fails the move: the old name is kept then."""
    try:
        for place in (request.target, request.source):
            fsync_folder(place.folder)
        on_commit(copied)
        return finish()
    except OSError:
        log.warning("%s: the old name cannot be removed", request.source.label, exc_info=True)
        return False
