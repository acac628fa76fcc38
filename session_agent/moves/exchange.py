"""RENAME_EXCHANGE across branches: each side is staged beside the other, then both change places.

From the first change until the old versions are removed, these lie under names that are shown: a cut-off
leaves one copy too many (NAME.exchanged-…), never one too few.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from errno import EBUSY, EEXIST

from session_agent.fsutil.at import rename_at
from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from session_agent.model import printable
from session_agent.moves.plan import Place, failed
from session_agent.moves.retire import rename_new, retire
from session_agent.moves.staging import Stage, discard, reserved_name, stage_beside

log = logging.getLogger(__name__)

_NAME_LIMIT = 200  # bytes of the old name in the shown one, which must not exceed 255


def commit(source: Place, target: Place) -> tuple[tuple[Stage, ...], Callable[[], bool]]:
    """Change both places. Answers the stages (the source's, the target's) and how to remove the old versions.

    OSError with both sides as they were; EINVAL from a file system that knows no exchange.
    """
    stages: list[Stage] = []
    beside: list[Place] = []  # where each stage lies: the source's at the target
    try:
        for here, there in ((source, target), (target, source)):
            stage = stage_beside(here, there)
            stages.append(stage)
            beside.append(Place(there.folder, stage.name, there.label))
        for index, place in enumerate((target, source)):
            name = place.name[:_NAME_LIMIT] + b".exchanged-" + stages[index].name[-16:]
            rename_new(place.folder, stages[index].name, name)
            beside[index] = Place(place.folder, name, place.label)
        _change_places(target, beside[0])
        try:
            _change_places(source, beside[1])
        except OSError:
            _change_back(target, beside)
            raise
    except OSError as error:
        for place in beside:
            discard(place, place.name)
        if error.errno == EEXIST:
            raise failed(EBUSY, source.label) from error
        raise

    def finish() -> bool:
        removed = [
            retire(old, stage.copied, reserved_name(), renamed=True)
            for old, stage in zip(reversed(beside), stages, strict=True)
        ]
        return all(removed)

    return tuple(stages), finish


def _change_back(target: Place, beside: list[Place]) -> None:
    """Undo the first change of places. If that fails, the old version is no longer among what to discard."""
    try:
        _change_places(target, beside[0])
    except OSError:
        kept = beside.pop(0)
        log.exception(
            "%s: the old version is kept as %s", target.label, printable(os.fsdecode(kept.name))
        )


def _change_places(place: Place, beside: Place) -> None:
    rename_at(place.folder, beside.name, place.folder, place.name, RENAME_EXCHANGE)
