"""What a kill has left: each recorded move is undone, finished, or handed back to be done again.

What the record says is not believed: the session user can write it. Folders are opened one step after the
other without following links, and everything is done with that user's rights. Where the record and the file
systems do not fit together, nothing is removed but what bears a reserved name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from session_agent.fsutil.at import LISTING, fsync_folder, open_at, remove_tree, stat_at
from session_agent.fsutil.credentials import Caller, acting_as
from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from session_agent.moves import exchange
from session_agent.moves.engine import Job, Outcome
from session_agent.moves.journal import Journal
from session_agent.moves.names import grave_name, plain_names, stage_name
from session_agent.moves.plan import Place, Request, identity
from session_agent.moves.record import End, Identity, Record, State, decode
from session_agent.moves.retire import bring_back, remove_unchanged, retire
from session_agent.moves.snapshot import Copied, Snapshot
from session_agent.moves.strategy import Options
from session_agent.moves.workers import Workers

log = logging.getLogger(__name__)

_COMPARE = 1 << 20  # bytes at a time

OpenFolder = Callable[[End], int]
"""Opens the folder of an end, O_PATH, with no more than the session user's rights. OSError if it cannot."""


class Found(StrEnum):
    """What recovery made of a move."""

    UNDONE = "undone"  # not committed: the old name holds everything, the copy is gone
    FINISHED = "finished"  # committed: the new name holds everything, the old one is gone
    KEPT = "kept"  # committed, but the old name differs from the new one by now: both are kept
    AGAIN = "again"  # accepted in the background, not committed: it is to be done
    GONE = "gone"  # neither end is there any more
    TIDIED = "tidied"  # over before; the copy that could not be removed then is gone now
    WAITING = "waiting"  # a branch, or a right, that it takes is missing: the record stays


@dataclass(frozen=True, slots=True)
class Finding:
    """One move, and what was made of it. `why` says what is missing."""

    record: Record
    found: Found
    why: str = ""


def recover(
    journal: Journal, records: Iterable[Record], open_folder: OpenFolder, caller: Caller
) -> list[Finding]:
    """Look at those of `records` that are in flight or left a copy. Nobody may be carrying them out."""
    findings = []
    for record in records:
        if not record.live and not record.leftover:
            continue
        try:
            if record.live:
                with _places(record, open_folder) as (source, target), acting_as(caller):
                    found = _Recovery(record, source, target).run()
            else:
                _remove_leftover(record, open_folder, caller)
                found = Found.TIDIED
        except OSError as error:
            reason = error.strerror or str(error)
            findings.append(Finding(record, Found.WAITING, f"{record.source.shown}: {reason}"))
            continue
        findings.append(Finding(record, found))
        _note(journal, record, found)
        log.info("a move that was cut off is %s: %s", found, record.source.shown)
    return findings


def redo(
    journal: Journal,
    record: Record,
    open_folder: OpenFolder,
    caller: Caller,
    options: Options,
) -> Outcome:
    """Do an accepted move that is to be done again, from here to its end. OSError as rename(2) gives it.

    A failure is noted: both sides are as they were.
    """
    record = journal.get(record.id) or record
    with _places(record, open_folder) as (source, target):
        request = Request(source, target, record.flags, caller)
        job = Job(request, options, journal=journal, record=record)
        try:
            return _redo(job)
        finally:
            job.close()


def _redo(job: Job) -> Outcome:
    try:
        plan = job.preflight()
        done = "none" if plan.nothing_to_do else job.rename()
        if done is not None:
            job.end(State.DONE)
            return Outcome(done)
        job.copy()
    except OSError as error:
        job.abandon(State.FAILED, error.errno or 0)
        raise
    return job.finish(lambda _: None)


def open_below(top: int, steps: list[bytes]) -> int:
    """The folder that `steps` lead to from `top`, O_PATH. No link is followed."""
    folder = os.open(b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
    for step in steps:
        if step in (b"", b".", b".."):
            os.close(folder)
            raise FileNotFoundError(2, os.strerror(2))
        try:
            below = open_at(folder, step, os.O_PATH | os.O_DIRECTORY)
        finally:
            os.close(folder)
        folder = below
    return folder


def _remove_leftover(record: Record, open_folder: OpenFolder, caller: Caller) -> None:
    ends = [record.target]
    if record.flags & RENAME_EXCHANGE:
        ends.append(record.source)
    for number, end in enumerate(ends):
        try:
            folder = open_folder(end)
        except FileNotFoundError:
            # With its folder the copy is gone, too; that cannot be told while the branch is missing.
            os.close(open_folder(msgspec.structs.replace(end, folder="")))
            continue
        try:
            with acting_as(caller):
                remove_tree(folder, stage_name(record.id, number))
        finally:
            os.close(folder)


def _note(journal: Journal, record: Record, found: Found) -> None:
    if found is Found.TIDIED:
        # A failure may have been acknowledged meanwhile.
        now = journal.get(record.id) or record
        journal.write(msgspec.structs.replace(now, leftover=False))
    elif found is Found.AGAIN:
        journal.write(msgspec.structs.replace(record, state=State.ACCEPTED, stages=()))
    elif found in (Found.FINISHED, Found.KEPT):
        journal.write(msgspec.structs.replace(record, state=State.DONE, kept=found is Found.KEPT))
    else:
        journal.write(msgspec.structs.replace(record, state=State.CANCELLED))


@contextlib.contextmanager
def _places(record: Record, open_folder: OpenFolder) -> Iterator[tuple[Place, Place]]:
    with ExitStack() as stack:
        places = []
        for end in (record.source, record.target):
            name = decode(end.name)
            if not name or b"/" in name or name in (b".", b".."):
                raise FileNotFoundError(2, os.strerror(2))
            folder = open_folder(end)
            stack.callback(os.close, folder)
            places.append(Place(folder, name, end.shown))
        yield places[0], places[1]


def _status(place: Place, name: bytes | None = None) -> os.stat_result | None:
    try:
        return stat_at(place.folder, place.name if name is None else name)
    except FileNotFoundError:
        return None


class _Recovery:
    """One record, with its folders open."""

    def __init__(self, record: Record, source: Place, target: Place) -> None:
        self._record = record
        self._source = source
        self._target = target
        self._workers = Workers()

    def run(self) -> Found:
        """What is to be done, done."""
        if self._record.flags & RENAME_EXCHANGE:
            return self._exchange()
        committed = self._committed()
        if committed is None:
            return self._keep_both()
        if not committed:
            self._drop_stage(self._target, 0)
            source = _status(self._source)
            if source is None:
                return Found.GONE
            again = self._record.background and self._is_source(source)
            return Found.AGAIN if again else Found.UNDONE
        fsync_folder(self._target.folder)
        finished = self._retire_grave(self._source, self._target, 0)
        source = _status(self._source)
        if source is not None and self._is_source(source):
            finished = self._retire(self._source, self._target, 0) and finished
        return Found.FINISHED if finished else Found.KEPT

    def _committed(self) -> bool | None:
        """Whether the copy has got the target's name, by its inode number; None if nobody can tell.

        Then it had the name, or lost it before it got it, and somebody else's file has the name now.
        """
        record = self._record
        if record.state not in (State.COMMITTING, State.RETIRING) or not record.stages:
            return False
        target = _status(self._target)
        if target is not None and self._is(target, record.stages[0]):
            return True
        stage = _status(self._target, stage_name(record.id))
        if stage is not None and self._is(stage, record.stages[0]):
            return False
        now = None if target is None else Identity.of(target)
        return False if record.state is State.COMMITTING and now == record.target_was else None

    def _keep_both(self) -> Found:
        if _status(self._source, grave_name(self._record.id)) is not None:
            bring_back(self._source, grave_name(self._record.id))
        self._drop_stage(self._target, 0)
        return Found.KEPT

    def _is(self, status: os.stat_result, inode: int) -> bool:
        kind = self._record.source_was.kind
        return Identity.of(status).inode == inode and stat.S_IFMT(status.st_mode) == kind

    def _is_source(self, status: os.stat_result) -> bool:
        """Whether it is what was to be moved. rclone gives new numbers: there size and time have to do."""
        was, now = self._record.source_was, Identity.of(status)
        same = now.inode == was.inode or (now.size, now.mtime_ns) == (was.size, was.mtime_ns)
        return same and now.kind == was.kind

    def _drop_stage(self, place: Place, number: int) -> None:
        """Remove the copy that is not needed; an accepted move may go on with what is whole of it."""
        record = self._record
        if record.background and record.state is State.STAGING:
            return
        remove_tree(place.folder, stage_name(record.id, number))

    def _retire(self, old: Place, new: Place, number: int) -> bool:
        """Remove what is left at the old name, if the new one holds all of it."""
        copied = self._as_copied(old, new, number)
        if copied is None:
            copied = _match(old.folder, old.name, new.folder, new.name)
        if copied is None:
            return False
        return retire(old, copied, grave_name(self._record.id, number), self._workers, renamed=True)

    def _as_copied(self, old: Place, new: Place, number: int) -> Copied | None:
        """A file that is what it was when it was copied: what has been written since, the copy has got."""
        old_status, new_status = _status(old), _status(new)
        if old_status is None or new_status is None or number >= len(self._record.copied):
            return None
        was, now = self._record.copied[number], Snapshot.of(old_status)
        # No device: it may have another number by now.
        same = (was.identity[1], was.mode, was.owner, was.size, was.mtime_ns) == (
            now.identity[1],
            now.mode,
            now.owner,
            now.size,
            now.mtime_ns,
        )
        if not same or was.format == stat.S_IFDIR:
            return None
        return Copied(now, identity(new_status))

    def _retire_grave(self, old: Place, new: Place, number: int) -> bool:
        """Go on removing a tree; what the new name does not hold comes back."""
        grave = grave_name(self._record.id, number)
        if _status(old, grave) is None:
            return True
        copied = _match(old.folder, grave, new.folder, new.name, partly=True)
        if copied is not None and remove_unchanged(old.folder, grave, copied, self._workers):
            fsync_folder(old.folder)
            return True
        bring_back(old, grave)
        return False

    # An exchange: see exchange.change_places for what may lie where.

    def _exchange(self) -> Found:
        record = self._record
        stages = record.stages
        places = (self._target, self._source)  # where each copy goes
        waiting = [exchange.beside(place, record.id) for place in places]
        in_place = [
            len(stages) == 2
            and (status := _status(place)) is not None
            and status.st_ino == stages[number]
            for number, place in enumerate(places)
        ]
        if all(in_place):
            for place in places:
                fsync_folder(place.folder)
            finished = [
                self._retire_old(waiting[number], places[1 - number], number) for number in (0, 1)
            ]
            return Found.FINISHED if all(finished) else Found.KEPT
        if in_place[0]:
            exchange.swap(places[0], waiting[0])
        for number, place in enumerate(places):
            status = _status(waiting[number])
            if status is not None and len(stages) == 2 and status.st_ino == stages[number]:
                remove_tree(place.folder, waiting[number].name)
            remove_tree(place.folder, stage_name(record.id, number))
            fsync_folder(place.folder)
        return Found.UNDONE

    def _retire_old(self, old: Place, new: Place, number: int) -> bool:
        """The old version at `old` has its copy at `new`, in the other folder."""
        finished = self._retire_grave(old, new, 1 - number)
        if _status(old) is not None:
            finished = self._retire(old, new, 1 - number) and finished
        return finished


def _match(
    folder: int, name: bytes, new_folder: int, new_name: bytes, *, partly: bool = False
) -> Copied | None:
    """The old file or tree as one that was copied to the new place, if all of it is there just the same.

    `partly`: entries of folders that differ, or are not there, are left out instead.
    """
    try:
        old, new = stat_at(folder, name), stat_at(new_folder, new_name)
    except FileNotFoundError:
        return None
    if stat.S_IFMT(old.st_mode) != stat.S_IFMT(new.st_mode):
        return None
    copied = Copied(Snapshot.of(old), identity(new))
    if stat.S_ISDIR(old.st_mode):
        return (
            copied if _match_entries(copied, folder, name, new_folder, new_name, partly) else None
        )
    if stat.S_ISLNK(old.st_mode):
        same = os.readlink(name, dir_fd=folder) == os.readlink(new_name, dir_fd=new_folder)
    elif stat.S_ISREG(old.st_mode):
        same = old.st_size == new.st_size and (
            old.st_mtime_ns == new.st_mtime_ns or _same_bytes(folder, name, new_folder, new_name)
        )
    else:
        same = old.st_rdev == new.st_rdev
    return copied if same else None


def _match_entries(
    copied: Copied, folder: int, name: bytes, new_folder: int, new_name: bytes, partly: bool
) -> bool:
    with ExitStack() as stack:
        below = open_at(folder, name, LISTING)
        stack.callback(os.close, below)
        new_below = open_at(new_folder, new_name, LISTING)
        stack.callback(os.close, new_below)
        for entry in plain_names(below):
            matched = _match(below, entry, new_below, entry, partly=partly)
            if matched is not None:
                copied.entries[entry] = matched
            elif not partly:
                return False
    return True


def _same_bytes(folder: int, name: bytes, new_folder: int, new_name: bytes) -> bool:
    flags = os.O_RDONLY | os.O_NONBLOCK
    with (
        open(open_at(folder, name, flags), "rb", buffering=0) as old,
        open(open_at(new_folder, new_name, flags), "rb", buffering=0) as new,
    ):
        while True:
            ours, theirs = old.read(_COMPARE), new.read(_COMPARE)
            if ours != theirs:
                return False
            if not ours:
                return True
