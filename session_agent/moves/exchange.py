"""RENAME_EXCHANGE across branches: each side is staged beside the other, then both change places.

From the first change until the old versions are removed, these lie under names that are shown: a cut-off
leaves one copy too many (NAME.exchanged-…), never one too few.
"""

from __future__ import annotations

import logging
import os
from errno import EBUSY, EEXIST

from session_agent.fsutil.at import rename_at
from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from session_agent.model import printable
from session_agent.moves.names import stage_name
from session_agent.moves.plan import Place, failed
from session_agent.moves.retire import rename_new
from session_agent.moves.staging import discard

log = logging.getLogger(__name__)

_NAME_LIMIT = 200  # bytes of the old name in the shown one, which must not exceed 255


def beside(place: Place, move_id: str) -> Place:
    """Where, beside `place`, the other side's copy waits, and afterwards the old version."""
    name = place.name[:_NAME_LIMIT] + b".exchanged-" + move_id.encode()
    return Place(place.folder, name, place.label)


def change_places(source: Place, target: Place, move_id: str) -> None:
    """Bring the stages (0: the source's copy, at the target) to the two names, atomically one by one.

    OSError with both sides as they were, the stages gone; EINVAL where the file system knows no exchange.
    """
    waiting: list[Place] = []
    try:
        for number, place in enumerate((target, source)):
            other = beside(place, move_id)
            rename_new(place.folder, stage_name(move_id, number), other.name)
            waiting.append(other)
        swap(target, waiting[0])
        try:
            swap(source, waiting[1])
        except OSError:
            _change_back(target, waiting)
            raise
    except OSError as error:
        for place in waiting:
            discard(place, place.name)
        if error.errno == EEXIST:
            raise failed(EBUSY, source.label) from error
        raise


def _change_back(target: Place, waiting: list[Place]) -> None:
    """Undo the first change of places. If that fails, the old version is no longer among what to discard."""
    try:
        swap(target, waiting[0])
    except OSError:
        kept = waiting.pop(0)
        log.exception(
            "%s: the old version is kept as %s", target.label, printable(os.fsdecode(kept.name))
        )


def swap(place: Place, other: Place) -> None:
    """Exchange two names in one folder."""
    rename_at(place.folder, other.name, place.folder, place.name, RENAME_EXCHANGE)
