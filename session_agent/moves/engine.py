"""Moves: rename(2) across branches as preflight, stage, commit, retire.

No byte ever has fewer than one durable copy under a name that is shown: the source is removed only after
its copy lies durably under the target's name. Before the commit any failure leaves both sides as they were.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from session_agent.fsutil.at import fsync_folder, rename_at
from session_agent.fsutil.credentials import AGENT, assume
from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from session_agent.moves import exchange, strategy
from session_agent.moves.failpoint import reach
from session_agent.moves.journal import Journal
from session_agent.moves.names import grave_name, new_id, stage_name
from session_agent.moves.plan import Plan, Request, check_room, preflight
from session_agent.moves.progress import CancelledError, Progress
from session_agent.moves.record import End, Identity, Record, State, boot_id
from session_agent.moves.retire import rename_new, retire
from session_agent.moves.snapshot import Copied
from session_agent.moves.staging import Stage
from session_agent.moves.workers import Workers

log = logging.getLogger(__name__)

OnCommit = Callable[[tuple[Copied, ...]], None]
"""Called when the new names are in place and before the old ones go: open handles change over here.

It is given what Outcome.copied will be. If it raises, the old names are kept.
"""

_NOWHERE = End("", "", "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a move ended.

    `strategy` is one of strategy's, or "none" (both ends are one file). `copied` is empty where nothing was
    copied; after an exchange it is the source's copy, then the target's. `losses` are attributes that the
    target cannot hold. `kept`: the old name, or a part of what is below it, is still there because it changed
    meanwhile or could not be removed.
    """

    strategy: str
    copied: tuple[Copied, ...] = ()
    losses: tuple[str, ...] = ()
    kept: bool = False


class Job:
    """One move, as steps for a worker thread: preflight, rename or else stage, commit, finish; or abandon.

    `ends` name source and target for the journal; without one nothing is recorded. `record` is what is known
    of the move, and is replaced at each step. A move that goes on after a restart is given its `record`.
    `close` ends what it has started.
    """

    def __init__(
        self,
        request: Request,
        options: strategy.Options,
        *,
        journal: Journal | None = None,
        ends: tuple[End, End] = (_NOWHERE, _NOWHERE),
        record: Record | None = None,
    ) -> None:
        self.request = request
        self.progress = Progress()
        self._options = options
        self._journal = journal
        self._ends = ends
        self.record: Record | None = record
        self._resumed = record is not None
        self._lock = threading.Lock()
        self._ended = False
        self._kept = False  # the old names have to be kept
        self._id = new_id() if record is None else record.id
        source, target = request.source, request.target
        self._workers = Workers(options.copiers, options.others_wait)
        self._stages = [Stage(source, target, stage_name(self._id), self._workers)]
        if request.flags & RENAME_EXCHANGE:
            self._stages.append(Stage(target, source, stage_name(self._id, 1), self._workers))

    # The steps, in their order

    def preflight(self) -> Plan:
        """Check everything that can be checked while nothing is touched; OSError as rename(2) gives it."""
        assume(AGENT)
        plan = preflight(self.request)
        if self.record is None:
            self.record = Record(
                id=self._id,
                created=time.time(),
                source=self._ends[0],
                target=self._ends[1],
                source_was=Identity.of(plan.source),
                target_was=None if plan.target is None else Identity.of(plan.target),
                flags=self.request.flags,
                boot=boot_id(),
            )
        return plan

    def rename(self) -> str | None:
        """Do it in one step, if there is a way; answers which. OSError as rename(2) gives it."""
        done = strategy.rename(self.request, self._options)
        if done is not None:
            self._note(strategy=done)
        return done

    def accept(self) -> None:
        """Promise to do it: the move survives a kill from here on. OSError if that cannot be written down."""
        self._write(state=State.ACCEPTED, background=True)
        reach("accepted")

    def stage(self) -> None:
        """Build the copies, durably, until they are true. CancelledError; OSError as rename(2) gives it."""
        self.stage_once()
        self.catch_up()

    def stage_once(self) -> None:
        """Build the copies, durably; the sources may change meanwhile. CancelledError; OSError."""
        assume(AGENT)
        reach("staging")
        assert self.record is not None
        trusted = self._resumed and self.record.boot == boot_id() != ""
        self._write(state=State.STAGING, boot=boot_id())
        for stage in self._stages:
            size = self._workers.measure(stage.source)
            check_room(stage.target, size.disk_bytes)
            self._note(
                total_bytes=self.record.total_bytes + size.bytes,
                total_files=self.record.total_files + size.files,
            )
        for stage in self._stages:
            stage.refresh(self.progress, trusted=trusted)
        cloned = all(stage.cloned for stage in self._stages)
        self._note(strategy=strategy.CLONE if cloned else strategy.COPY)
        reach("staged")

    def catch_up(self) -> None:
        """Copy what has changed in the sources since. OSError: EBUSY if that does not end."""
        assume(AGENT)
        for stage in self._stages:
            stage.catch_up(self.progress)

    def refresh(self) -> None:
        """Copy once what has changed since; whether the copies are true then is another question."""
        assume(AGENT)
        for stage in self._stages:
            stage.refresh(self.progress)

    def is_true(self) -> bool:
        """Whether the sources are what was copied last."""
        assume(AGENT)
        return all(stage.is_true() for stage in self._stages)

    def commit(self) -> None:
        """Bring the copies to their names, durably. OSError with both sides as they were."""
        assume(AGENT)
        source, target, flags = self.request.source, self.request.target, self.request.flags
        self._write(
            state=State.COMMITTING,
            stages=tuple(stage.inode for stage in self._stages),
            copied=tuple(stage.copied_now.source for stage in self._stages),
            losses=tuple(sorted(set().union(*(stage.losses for stage in self._stages)))),
        )
        reach("committing")
        staged = self._stages[0].name
        if flags & RENAME_EXCHANGE:
            exchange.change_places(source, target, self._id)
        elif flags & RENAME_NOREPLACE:
            rename_new(target.folder, staged, target.name)
        else:
            rename_at(target.folder, staged, target.folder, target.name)
        reach("committed")

    def finish(self, on_commit: OnCommit) -> Outcome:
        """Change over, and remove the old names."""
        self.change_over(on_commit)
        return self.retire()

    def change_over(self, on_commit: OnCommit) -> None:
        """Make the commit durable, and let handles change over.

        A failure no longer fails the move: the old names will be kept.
        """
        assume(AGENT)
        try:
            for place in (self.request.target, self.request.source):
                fsync_folder(place.folder)
            on_commit(self.copied)
        except OSError:
            self._told_of_old_name()
            self._kept = True
            return
        reach("changed-over")

    def retire(self) -> Outcome:
        """Remove the old names durably, unless they have to be kept. A failure keeps them, too."""
        assume(AGENT)
        kept = self._kept
        try:
            kept = kept or not self._retire()
        except OSError:
            self._told_of_old_name()
            kept = True
        assert self.record is not None
        if self.record.losses:
            losses = ", ".join(self.record.losses)
            log.info("%s: the target does not hold: %s", self.request.target.label, losses)
        if kept:
            log.warning("%s: the old version is kept beside the new one", self.request.source.label)
        self.end(State.DONE, kept=kept)
        reach("done")
        return Outcome(self.record.strategy, self.copied, self.record.losses, kept)

    def _told_of_old_name(self) -> None:
        log.warning("%s: the old name cannot be removed", self.request.source.label, exc_info=True)

    def abandon(self, state: State = State.CANCELLED, error: int = 0) -> None:
        """Remove the stages: both sides are as they were. Not to be called after the commit."""
        self.discard()
        self.end(state, error=error)

    def discard(self) -> None:
        """Remove the stages. The record tells if that was not possible: then recovery tries again."""
        assume(AGENT)
        left = [stage for stage in self._stages if not stage.discard()]
        with self._lock:
            self._note(leftover=bool(left))
            if self._ended:
                self._write_end(durable=False)

    @property
    def may_have_staged(self) -> bool:
        """Whether there may be a copy: it was begun, if only by an earlier agent."""
        return self._resumed or (
            self.record is not None and self.record.state is not State.ACCEPTED
        )

    @property
    def waiting(self) -> list[bytes]:
        """The names that an exchange shows beside source and target while it lasts."""
        if not self.request.flags & RENAME_EXCHANGE:
            return []
        places = (self.request.source, self.request.target)
        return [exchange.beside(place, self._id).name for place in places]

    def relocate(self, source: End, target: End) -> None:
        """The ends lie elsewhere by now, because a folder above them was renamed."""
        self._write(source=source, target=target)

    def close(self) -> None:
        """The move has ended, or is left to the next start: no step may be under way."""
        self._workers.close()

    def run(self, on_commit: OnCommit) -> Outcome:
        """All steps at once. OSError as rename(2) gives it, with both sides as they were."""
        if self.preflight().nothing_to_do:
            return Outcome("none")
        done = self.rename()
        if done is not None:
            return Outcome(done)
        self.copy()
        return self.finish(on_commit)

    def copy(self) -> None:
        """Stage and commit. CancelledError; OSError with both sides as they were."""
        try:
            self.stage()
            self.progress.check()
            self.commit()
        except BaseException as error:
            self.abandon(error=(isinstance(error, OSError) and error.errno) or 0)
            raise

    @property
    def copied(self) -> tuple[Copied, ...]:
        """What was copied where; after an exchange the source's copy, then the target's."""
        return tuple(stage.copied_now for stage in self._stages)

    def end(self, state: State, **changes: Any) -> None:
        """Note how it ended; only the first end counts.

        A record that is lost makes recovery look once more, and find nothing to do.
        """
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._note(state=state, ended=time.time(), **changes)
            self._write_end(durable=state is not State.DONE)

    def _write_end(self, *, durable: bool) -> None:
        if self._journal is None or self.record is None:
            return
        try:
            self._journal.write(self.record, durable=durable)
        except OSError:
            log.warning("the end of a move cannot be written down", exc_info=True)

    def _retire(self) -> bool:
        self._write(state=State.RETIRING)
        reach("retiring")
        source, target = self.request.source, self.request.target
        if self.request.flags & RENAME_EXCHANGE:
            olds = [exchange.beside(place, self._id) for place in (source, target)]
        else:
            olds = [source]
        removed = [
            retire(
                old,
                stage.copied_now,
                grave_name(self._id, number),
                self._workers,
                renamed=len(olds) > 1,
            )
            for number, (old, stage) in enumerate(zip(olds, self._stages, strict=True))
        ]
        reach("retired")
        return all(removed)

    def _note(self, **changes: Any) -> None:
        if self.record is not None:
            self.record = msgspec.structs.replace(self.record, **changes)

    def _write(self, **changes: Any) -> None:
        """Note, and have it on disk when this returns. CancelledError if the move has ended meanwhile."""
        with self._lock:
            if self._ended:
                raise CancelledError
            self._note(**changes)
            if self._journal is not None and self.record is not None:
                self._journal.write(self.record)


def move(
    request: Request,
    on_commit: OnCommit,
    options: strategy.Options = strategy.Options(),  # noqa: B008 - frozen
) -> Outcome:
    """Carry out a rename between any two mounts, unrecorded. OSError as rename(2) gives it."""
    job = Job(request, options)
    try:
        return job.run(on_commit)
    finally:
        job.close()
