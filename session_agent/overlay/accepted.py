"""A move that was accepted, and how moves are to be done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from session_agent.moves import strategy
from session_agent.moves.engine import Job
from session_agent.moves.record import Record
from session_agent.overlay.following import MoveEnd
from session_agent.overlay.nodes import Node


@dataclass(frozen=True, slots=True)
class MoveOptions:
    """How moves are done. What exceeds `inline_bytes` or `inline_files` is done in the background.

    `grace_seconds`: how long a stop waits for what is under way.
    """

    inline_bytes: int = 8 << 20
    inline_files: int = 200
    grace_seconds: float = 5.0
    ways: strategy.Options = field(default_factory=strategy.Options)


@dataclass(frozen=True, slots=True)
class MoveView:
    """A move as status shows it. Counts are of what is staged, `rate` is in bytes a second."""

    record: Record
    bytes: int
    files: int
    rate: float
    paused: str


class Moving:
    """A move that was accepted. The folders are kept known while it is under way."""

    def __init__(self, job: Job, source: MoveEnd, target: MoveEnd, replaces: bool) -> None:
        self.job = job
        self.source = source
        self.target = target
        # Something lies at the new name still, and is hidden until the move is committed.
        self.replaces = replaces
        self.committing = False
        self.paused = ""  # why, "" if it is not
        self.arrived = trio.Event()  # it lies at the new name, durably; or the move has failed
        self.done = trio.Event()

    @property
    def record(self) -> Record:
        """What is known of it."""
        assert self.job.record is not None
        return self.job.record

    @property
    def is_shown(self) -> bool:
        """Whether the new name shows what lies at the old one."""
        shifted = self.target.folder.shifted
        return shifted is not None and shifted.arrivals.get(self.target.name) is self

    @property
    def view(self) -> MoveView:
        """The move as it is now."""
        progress = self.job.progress
        return MoveView(self.record, progress.bytes, progress.files, progress.rate, self.paused)

    def told(self) -> bytes:
        """The value of the extended attribute that the moving file has."""
        view = self.view
        return json.dumps(
            {
                "id": view.record.id,
                "state": view.record.state,
                "from": view.record.source.shown,
                "to": view.record.target.shown,
                "bytes": view.bytes,
                "total_bytes": view.record.total_bytes,
                "files": view.files,
                "total_files": view.record.total_files,
                "paused": view.paused,
            }
        ).encode()

    @property
    def nodes(self) -> Iterator[Node]:
        """The nodes that the kernel may not forget meanwhile."""
        yield self.source.folder
        yield self.target.folder
        if self.source.node is not None:
            yield self.source.node
