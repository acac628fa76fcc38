"""Staging: build a hidden copy of a file or a tree beside the target, durably.

Bytes with their holes, owner, mode, extended attributes and ACLs, and times, for every kind of file; hard
links inside a tree stay links. What the target's file system cannot hold of the attributes is noted as a
loss: the content is what counts. A kind of file that it cannot hold fails the move, before anything of the
source is touched.

A stage can be brought up to date: what is as it was copied is kept, the rest is copied anew.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from dataclasses import dataclass, field
from errno import EBUSY, EINVAL, EIO, ELOOP, ENOENT, ENOTDIR

from session_agent.fsutil.at import LISTING, open_at, remove_tree, stat_at
from session_agent.fsutil.syscalls import syncfs
from session_agent.moves.attributes import copy_attributes, inherits_acls
from session_agent.moves.copiers import CopiedEntries, Terms
from session_agent.moves.data import SourceChangedError, clone, copy_data
from session_agent.moves.names import plain_entries
from session_agent.moves.plain import copy_plain
from session_agent.moves.plan import Place, failed, identity
from session_agent.moves.progress import CancelledError, Progress
from session_agent.moves.snapshot import NEVER, Copied, Snapshot
from session_agent.moves.special import copy_special, link
from session_agent.moves.workers import Workers, batches

_CHANGED = frozenset(
    {ENOENT, ENOTDIR, ELOOP}
)  # of a file that went, or became another kind of file

_SHARED_FOLDERS = 2  # for each process: fewer are not shared out, but what is in them


@dataclass(slots=True)
class Staging:
    """One stage under way: what all its files share.

    `trusted`: what lies in the stage already was put there since the machine was started, by a run that was
    cut off. A copy gets its times last, so one that has the source's is complete, and the sync at the end
    makes it durable.
    """

    target: Place
    stage: bytes
    device: int  # the source's: a tree ends where another file system is mounted
    forbidden: tuple[int, int]  # the target's folder: it must not lie in the source
    single: bool  # one file: fsync it; a tree: one syncfs at the end
    progress: Progress
    trusted: bool
    workers: Workers
    inherited: bool  # whether files made in the target's folder get ACLs from it
    distrusted: bool  # whether a file's size counts only after it was closed: network file systems
    cloning: bool = True  # until the file systems have refused
    alone: bool = False  # it is a part of a tree of which no other part is known here
    cloned: bool = False
    losses: set[str] = field(default_factory=set)
    links: dict[tuple[int, int], tuple[bytes, ...]] = field(default_factory=dict)
    linking: threading.Lock = field(
        default_factory=threading.Lock
    )  # one file of several links at a time


def stage(
    source: Place,
    target: Place,
    stage_name: bytes,
    progress: Progress,
    *,
    workers: Workers,
    previous: Copied | None = None,
    trusted: bool = False,
) -> tuple[Copied, Staging]:
    """Copy `source` to `stage_name` in the target's folder, and make the copy durable.

    `previous` is what this answered for the same stage before: then only what has changed since is copied.
    What changes meanwhile may be copied or not: the answer tells, by `verify`. SourceChangedError if that is
    the source itself; CancelledError; OSError. The stage is the caller's to remove.
    """
    status = stat_at(source.folder, source.name)
    staging = Staging(
        target,
        stage_name,
        status.st_dev,
        identity(os.fstat(target.folder)),
        single=not stat.S_ISDIR(status.st_mode),
        progress=progress,
        trusted=trusted,
        workers=workers,
        inherited=inherits_acls(target.folder),
        distrusted=os.major(os.fstat(target.folder).st_dev) == 0,
    )
    copied = _copy(staging, source.folder, source.name, target.folder, stage_name, (), previous)
    if not staging.single:
        listing = open_at(target.folder, stage_name, LISTING)
        try:
            syncfs(listing)
        finally:
            os.close(listing)
    return copied, staging


def _copy(
    staging: Staging,
    folder: int,
    name: bytes,
    to_folder: int,
    to_name: bytes,
    path: tuple[bytes, ...],
    previous: Copied | None,
) -> Copied:
    try:
        status = stat_at(folder, name)
    except FileNotFoundError:
        raise SourceChangedError from None
    if status.st_dev != staging.device:
        raise failed(EBUSY, os.fsdecode(name))  # something is mounted in the tree
    if stat.S_ISDIR(status.st_mode):
        return _copy_folder(staging, folder, name, to_folder, to_name, path, previous)
    if previous is not None or staging.trusted:
        kept = _kept(staging, status, to_folder, to_name, previous)
        if kept is not None:
            staging.links.setdefault(identity(status), path)
            staging.progress.add(status.st_size, 1)
            return kept
        remove_tree(to_folder, to_name)
    if status.st_nlink > 1 and not staging.single:
        if staging.alone:
            raise _LeftError
        with staging.linking:
            return _copy_linked(staging, folder, name, to_folder, to_name, path, status)
    return _copy_anew(staging, folder, name, to_folder, to_name, status)


def _copy_linked(
    staging: Staging,
    folder: int,
    name: bytes,
    to_folder: int,
    to_name: bytes,
    path: tuple[bytes, ...],
    status: os.stat_result,
) -> Copied:
    """A file with several links: the first one met is copied, the others are linked to that copy."""
    known = staging.links.get(identity(status))
    if known is not None and link(staging, known, to_folder, to_name):
        staging.progress.add(files=1)
        return Copied(Snapshot.of(status), identity(stat_at(to_folder, to_name)))
    staging.links[identity(status)] = path
    return _copy_anew(staging, folder, name, to_folder, to_name, status)


def _copy_anew(
    staging: Staging,
    folder: int,
    name: bytes,
    to_folder: int,
    to_name: bytes,
    status: os.stat_result,
) -> Copied:
    if stat.S_ISREG(status.st_mode):
        return _copy_file(staging, folder, name, to_folder, to_name)
    return copy_special(staging, folder, name, to_folder, to_name, status)


def _kept(
    staging: Staging,
    status: os.stat_result,
    to_folder: int,
    to_name: bytes,
    previous: Copied | None,
) -> Copied | None:
    """What the stage holds of that file already, if it is still right."""
    if previous is not None:
        return previous if previous.source.still_holds(status) else None
    try:
        staged = stat_at(to_folder, to_name)
    except FileNotFoundError:
        return None
    complete = (
        staged.st_mode == status.st_mode
        and staged.st_size == status.st_size
        and staged.st_mtime_ns == status.st_mtime_ns
        and stat.S_ISREG(status.st_mode)
        and not staging.single
    )
    return Copied(Snapshot.of(status), identity(staged)) if complete else None


def _copy_folder(
    staging: Staging,
    folder: int,
    name: bytes,
    to_folder: int,
    to_name: bytes,
    path: tuple[bytes, ...],
    previous: Copied | None,
) -> Copied:
    below = open_at(folder, name, LISTING)
    try:
        status = os.fstat(below)
        if identity(status) == staging.forbidden:
            raise failed(EINVAL, staging.target.label)
        copy_fd = _staged_folder(staging, to_folder, to_name, previous, status)
        try:
            copied = Copied(Snapshot.of(status), identity(os.fstat(copy_fd)))
            names = plain_entries(below)
            if previous is not None or staging.trusted:
                for gone in {os.fsencode(one) for one in os.listdir(copy_fd)}.difference(names):
                    remove_tree(copy_fd, gone)
            known = {} if previous is None else previous.entries
            anew = previous is None and not staging.trusted and not staging.inherited
            _Entries(staging, below, copy_fd, path, known, anew, copied.entries).copy(names)
            copy_attributes(staging.losses, below, copy_fd, status)
        finally:
            os.close(copy_fd)
    finally:
        os.close(below)
    staging.progress.add(files=1)
    return copied


@dataclass(frozen=True, slots=True)
class _Entries:
    """The entries of one folder, being copied to another one.

    `known` is what was copied of them before. `anew`: nothing was, and copies inherit nothing.
    """

    staging: Staging
    below: int
    copy_fd: int
    path: tuple[bytes, ...]
    known: dict[bytes, Copied]
    anew: bool
    copied: dict[bytes, Copied]

    def copy(self, names: dict[bytes, int]) -> None:
        """All of them; parts of them by others, where there are some to spare."""
        workers = self.staging.workers
        shared: list[list[bytes]] = []
        if self.anew and workers.processes:
            folders = [name for name, kind in names.items() if kind == stat.S_IFDIR]
            shared += batches([name for name, kind in names.items() if kind == stat.S_IFREG])
            if len(folders) >= _SHARED_FOLDERS * workers.processes:
                shared += [[name] for name in folders]
        done = {name for some in shared for name in some}
        with workers.together() as calls:
            for some in shared:
                calls.add(self._share, some)
            for name, kind in names.items():
                if name in done:
                    continue
                if kind == stat.S_IFDIR:
                    calls.add(self.one, name, kind)
                else:
                    self.one(name, kind)

    def _share(self, names: list[bytes]) -> None:
        """Have a copier do it; what that leaves is done here."""
        staging = self.staging
        terms = Terms(staging.device, staging.forbidden, staging.cloning, staging.distrusted)
        answer = staging.workers.copy(self.below, self.copy_fd, names, terms, staging.progress)
        if answer is not None:
            staging.cloning = staging.cloning and answer.cloning
            staging.cloned = staging.cloned or answer.cloned
            staging.losses.update(answer.losses)
        entries = [None] * len(names) if answer is None else answer.entries
        for name, made in zip(names, entries, strict=True):
            if made is not None:
                self.copied[name] = made
            else:
                remove_tree(self.copy_fd, name)  # should a copier have been killed
                self.one(name, 0)

    def one(self, name: bytes, kind: int) -> None:
        """One of them, of that kind as plain_entries has it."""
        staging = self.staging
        if self.anew and kind == stat.S_IFREG:
            plain = copy_plain(staging, self.below, name, self.copy_fd)
            if plain is not None:
                self.copied[name] = plain
                staging.progress.add(plain.source.size, 1)
                return
        path, known = (*self.path, name), self.known.get(name)
        try:
            made = _copy(staging, self.below, name, self.copy_fd, name, path, known)
        except (SourceChangedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _CHANGED:
                raise
            # The rest need not be copied again for it: it is what has changed next time.
            remove_tree(self.copy_fd, name)
            made = Copied(NEVER, (0, 0))
        self.copied[name] = made


class _LeftError(Exception):
    """A part of a tree cannot be copied by somebody who does not know the other parts."""


def copy_alone(
    below: int, copy_fd: int, names: list[bytes], terms: Terms, progress: Progress
) -> CopiedEntries:
    """For a copier: copy these entries of a folder, each as a whole or not at all.

    What is not copied, for whatever reason, is left to whoever asked; so are files of several links.
    """
    staging = Staging(
        Place(copy_fd, b"", ""),
        b"",
        terms.device,
        terms.forbidden,
        single=False,
        progress=progress,
        trusted=False,
        workers=Workers(),
        inherited=False,
        distrusted=terms.distrusted,
        cloning=terms.cloning,
        alone=True,
    )
    copied: dict[bytes, Copied] = {}
    entries = _Entries(staging, below, copy_fd, (), {}, anew=True, copied=copied)
    with contextlib.suppress(CancelledError):
        for name in names:
            try:
                entries.one(name, stat.S_IFREG)
            except (_LeftError, OSError):
                with contextlib.suppress(OSError):
                    remove_tree(copy_fd, name)
    made = [copied.get(name) for name in names]
    return CopiedEntries(made, sorted(staging.losses), staging.cloned, staging.cloning)


def _staged_folder(
    staging: Staging,
    to_folder: int,
    to_name: bytes,
    previous: Copied | None,
    status: os.stat_result,
) -> int:
    """A descriptor of the staged folder, which is made unless it is there already."""
    if previous is not None or staging.trusted:
        try:
            copy_fd = open_at(to_folder, to_name, LISTING)
        except (FileNotFoundError, NotADirectoryError):
            remove_tree(to_folder, to_name)
        else:
            os.fchmod(copy_fd, 0o700)
            return copy_fd
    os.mkdir(to_name, 0o700, dir_fd=to_folder)
    copy_fd = open_at(to_folder, to_name, LISTING)
    # At once, not with the other attributes: after a kill its owner is who has to be able to remove it.
    with contextlib.suppress(OSError):
        os.fchown(copy_fd, status.st_uid, status.st_gid)
    return copy_fd


def _copy_file(
    staging: Staging, folder: int, name: bytes, to_folder: int, to_name: bytes
) -> Copied:
    # O_NONBLOCK: should a FIFO have taken the name, opening it must not wait for a writer.
    source_fd = open_at(folder, name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(source_fd)
        if not stat.S_ISREG(status.st_mode):
            raise SourceChangedError
        copy_fd = open_at(to_folder, to_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if staging.cloning and status.st_size and clone(source_fd, copy_fd):
                staging.cloned = True
                staging.progress.add(status.st_size)
            else:
                staging.cloning = staging.cloning and not status.st_size
                copy_data(source_fd, copy_fd, status, staging.progress)
            made = copy_attributes(
                staging.losses, source_fd, copy_fd, status, inherited=staging.inherited
            )
            if staging.single:
                os.fsync(copy_fd)
        finally:
            os.close(copy_fd)  # raises where a network file system reports a failed save here
        if staging.distrusted:
            made = stat_at(to_folder, to_name)
        if made.st_size != status.st_size:
            raise failed(EIO, staging.target.label)
    finally:
        os.close(source_fd)
    staging.progress.add(files=1)
    return Copied(Snapshot.of(status), identity(made))
