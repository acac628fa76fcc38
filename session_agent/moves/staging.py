"""What the strategies share: a stage under a reserved name, and its removal."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from errno import EBUSY

from session_agent.fsutil.at import remove_tree, stat_at
from session_agent.moves import copy
from session_agent.moves.copy import RESERVED_PREFIX, Copied, SourceChangedError
from session_agent.moves.plan import Place, failed

log = logging.getLogger(__name__)

_ATTEMPTS = 3  # at staging a source that changes while it is copied


@dataclass(frozen=True, slots=True)
class Stage:
    """A durable copy of a source, under the reserved name `name` in the target's folder."""

    name: bytes
    copied: Copied
    losses: tuple[str, ...]


def reserved_name() -> bytes:
    """A new reserved name."""
    return RESERVED_PREFIX + secrets.token_hex(8).encode()


def stage_beside(source: Place, target: Place) -> Stage:
    """Stage `source` beside `target`, again if it changes meanwhile. EBUSY if it does not stop changing."""
    for _ in range(_ATTEMPTS):
        name = reserved_name()
        try:
            copied, losses = copy.stage(source, target, name)
        except SourceChangedError:
            discard(target, name)
            stat_at(source.folder, source.name)  # ENOENT if it is not even there any more
        except BaseException:
            discard(target, name)
            raise
        else:
            return Stage(name, copied, tuple(losses))
    raise failed(EBUSY, source.label)


def discard(target: Place, name: bytes) -> None:
    """Remove a stage that is not needed. It is garbage by its name, so failing at that is no error."""
    try:
        remove_tree(target.folder, name)
    except OSError:
        log.warning("%s: a copy that is not needed cannot be removed", target.label, exc_info=True)
