"""Moves: rename(2) across branches as preflight, stage, commit, retire.

No byte ever has fewer than one durable copy under a name that is shown: the source is removed only after
its copy lies durably under the target's name. Before the commit any failure leaves both sides as they were.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from errno import EBUSY, EEXIST, EINVAL, EXDEV

from session_agent.fsutil.at import exists_at, fsync_folder, remove_tree, rename_at, stat_at
from session_agent.fsutil.credentials import AGENT, acting_as, assume
from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from session_agent.moves import copy
from session_agent.moves.copy import RESERVED_PREFIX, Copied, SourceChanged
from session_agent.moves.plan import Place, Request, failed, preflight
from session_agent.moves.retire import rename_new, retire

log = logging.getLogger(__name__)

_ATTEMPTS = 3  # at staging a source that changes while it is copied

OnCommit = Callable[["tuple[Copied, ...]"], None]
"""Called when the new names are in place and before the old ones go: open handles change over here.

With the source's copy, and after an exchange the target's. If it raises, the old names are kept.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a move ended.

    `copied` is empty where nothing was copied; after an exchange it is the source's copy, then the
    target's. `losses` are attributes that the target cannot hold. `kept`: the old name, or a part of what
    is below it, is still there because it changed meanwhile or could not be removed.
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
    try:
        with acting_as(request.caller):
            _rename(request.source, request.target, request.flags)
        return Outcome("rename")
    except OSError as error:
        if error.errno != EXDEV:
            raise
    outcome = (_exchange if request.flags & RENAME_EXCHANGE else _copy)(request, on_commit)
    if outcome.losses:
        log.warning("%s: not held by the target: %s", request.target.label, ", ".join(outcome.losses))
    if outcome.kept:
        log.warning("%s: kept at the old name too, since it changed", request.source.label)
    return outcome


def _copy(request: Request, on_commit: OnCommit) -> Outcome:
    source, target = request.source, request.target
    stage, copied, losses = _stage(source, target)
    try:
        _commit(target, stage, request.flags)
    except OSError:
        _discard(target, stage)
        raise
    kept = not _settle(lambda: _retire_after(target, source, copied, on_commit), source)
    return Outcome("copy", (copied,), tuple(losses), kept)


def _retire_after(target: Place, source: Place, copied: Copied, on_commit: OnCommit) -> bool:
    fsync_folder(target.folder)
    on_commit((copied,))
    return retire(source, copied, reserved_name())


def _settle(step: Callable[[], bool], source: Place) -> bool:
    """Run what follows the commit: a failure there no longer fails the move, the old name is kept."""
    try:
        return step()
    except (OSError, SourceChanged):
        log.warning("%s: the old name could not be removed", source.label, exc_info=True)
        return False


def reserved_name() -> bytes:
    """A new reserved name."""
    return RESERVED_PREFIX + secrets.token_hex(8).encode()


def _stage(source: Place, target: Place) -> tuple[bytes, Copied, list[str]]:
    """Stage `source` beside `target`, again if it changes meanwhile. EBUSY if it does not stop changing."""
    for _ in range(_ATTEMPTS):
        stage = reserved_name()
        try:
            return stage, *copy.stage(source, target, stage)
        except SourceChanged:
            _discard(target, stage)
            if not exists_at(source.folder, source.name):
                stat_at(source.folder, source.name)  # raises what rename would
        except BaseException:
            _discard(target, stage)
            raise
    raise failed(EBUSY, source.label)


def _discard(target: Place, stage: bytes) -> None:
    try:
        remove_tree(target.folder, stage)
    except OSError:
        log.warning("%s: a copy that is not needed could not be removed", target.label, exc_info=True)


def _rename(source: Place, target: Place, flags: int) -> None:
    rename_at(source.folder, source.name, target.folder, target.name, flags)


def _commit(target: Place, stage: bytes, flags: int) -> None:
    """Bring the stage to the target's name."""
    if flags & RENAME_NOREPLACE:
        rename_new(target.folder, stage, target.name)
    else:
        rename_at(target.folder, stage, target.folder, target.name)


def _exchange(request: Request, on_commit: OnCommit) -> Outcome:
    """RENAME_EXCHANGE: each side is staged beside the other, then both change places.

    Between the two changes, and until the old versions are removed, these lie under names that are shown:
    a cut-off leaves one copy too many, never one too few.
    """
    ends = (request.source, request.target)
    staged: list[tuple[bytes, Copied, list[str]]] = []
    shown: list[bytes] = []
    try:
        for here, there in (ends, ends[::-1]):
            staged.append(_stage(here, there))
        for place, (stage, _, _) in zip(ends[::-1], staged, strict=True):
            name = place.name[:200] + b".exchanged-" + stage[-16:]
            rename_new(place.folder, stage, name)
            shown.append(name)
        changed = 0
        try:
            for place, name in zip(ends[::-1], shown, strict=True):
                rename_at(place.folder, name, place.folder, place.name, RENAME_EXCHANGE)
                changed += 1
        except OSError:
            if changed:  # back again: it worked in this direction
                place = request.target
                rename_at(place.folder, shown[0], place.folder, place.name, RENAME_EXCHANGE)
            raise
    except OSError as error:
        for index, (stage, _, _) in enumerate(staged):
            name = shown[index] if index < len(shown) else stage
            _discard(ends[1 - index], name)
        if error.errno == EEXIST:
            raise failed(EBUSY, request.source.label) from error
        if error.errno == EINVAL:
            log.warning("%s: this file system knows no exchange", request.target.label)
        raise

    def finish() -> bool:
        for place in ends:
            fsync_folder(place.folder)
        on_commit((staged[0][1], staged[1][1]))
        removed = [
            retire(Place(place.folder, name, place.label), copied, reserved_name())
            for place, name, (_, copied, _) in zip(ends, shown[::-1], staged, strict=True)
        ]
        return all(removed)

    kept = not _settle(finish, request.source)
    losses = tuple(loss for _, _, lost in staged for loss in lost)
    return Outcome("copy", (staged[0][1], staged[1][1]), losses, kept)

