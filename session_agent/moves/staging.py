"""A stage that is true to its source: built, brought up to date while the source changes, or removed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from errno import EBUSY

from session_agent.fsutil.at import remove_tree, stat_at
from session_agent.moves import copy
from session_agent.moves.data import SourceChangedError
from session_agent.moves.plan import Place, failed
from session_agent.moves.progress import Progress
from session_agent.moves.snapshot import Copied
from session_agent.moves.verify import verify
from session_agent.moves.workers import Workers

log = logging.getLogger(__name__)

_ATTEMPTS = 2  # at catching up with a source that has changed while it was copied


@dataclass(slots=True)
class Stage:
    """The copy of `source` under the reserved name `name` beside `target`."""

    source: Place
    target: Place
    name: bytes
    workers: Workers
    copied: Copied | None = None
    cloned: bool = False
    losses: set[str] = field(default_factory=set)

    def build(self, progress: Progress, *, trusted: bool = False) -> None:
        """Copy, durably. What is there is brought up to date if it is `trusted`, or was built by this object.

        SourceChangedError if the source changed meanwhile; CancelledError; OSError.
        """
        if self.copied is None and not trusted:
            self.discard()
        self.copied, staging = copy.stage(
            self.source,
            self.target,
            self.name,
            progress,
            workers=self.workers,
            previous=self.copied,
            trusted=trusted,
        )
        self.cloned = self.cloned or staging.cloned
        self.losses |= staging.losses

    def refresh(self, progress: Progress, *, trusted: bool = False) -> None:
        """Copy once what has changed since. The source may change again meanwhile. ENOENT if it is gone."""
        try:
            self.build(progress, trusted=trusted)
        except SourceChangedError:
            stat_at(self.source.folder, self.source.name)

    def catch_up(self, progress: Progress) -> None:
        """Copy again while the source is not what was copied. EBUSY if it does not stop changing."""
        for _ in range(_ATTEMPTS):
            if self.is_true():
                return
            self.refresh(progress)
        if not self.is_true():
            raise failed(EBUSY, self.source.label)

    def is_true(self) -> bool:
        """Whether the source is what was copied last."""
        if self.copied is None:
            return False
        try:
            verify(self.source.folder, self.source.name, self.copied, self.workers)
        except SourceChangedError:
            return False
        return True

    @property
    def copied_now(self) -> Copied:
        """What was copied; there must be something."""
        assert self.copied is not None
        return self.copied

    @property
    def inode(self) -> int:
        """The copy's inode number."""
        return self.copied_now.copy[1]

    def discard(self) -> bool:
        """Remove it; whether it is gone."""
        self.copied = None
        return discard(self.target, self.name)


def discard(target: Place, name: bytes) -> bool:
    """Remove a stage that is not needed; whether it is gone. By its name it is garbage: no error."""
    try:
        remove_tree(target.folder, name)
    except OSError:
        log.warning(
            "%s: a copy that is not needed cannot be removed yet", target.label, exc_info=True
        )
        return False
    return True
