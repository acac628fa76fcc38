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
import time
from dataclasses import dataclass, field
from errno import EBUSY, EINVAL, EIO, ELOOP, ENOENT, ENOSYS, ENOTDIR, ENOTSUP, EPERM
from functools import partial

from session_agent.fsutil.at import FOLDER, LISTING, open_at, remove_tree, stat_at
from session_agent.fsutil.syscalls import syncfs
from session_agent.moves.attributes import copy_attributes, inherits_acls
from session_agent.moves.data import SourceChangedError, clone, copy_data
from session_agent.moves.names import plain_entries
from session_agent.moves.plan import Place, failed, identity
from session_agent.moves.progress import Progress
from session_agent.moves.snapshot import NEVER, Copied, Snapshot
from session_agent.moves.workers import Result, Workers, wait_for

_CHANGED = frozenset(
    {ENOENT, ENOTDIR, ELOOP}
)  # of a file that went, or became another kind of file


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
    if known is not None and _link(staging, known, to_folder, to_name):
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
    return _copy_special(staging, folder, name, to_folder, to_name, status)


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


def _copy_special(
    staging: Staging,
    folder: int,
    name: bytes,
    to_folder: int,
    to_name: bytes,
    status: os.stat_result,
) -> Copied:
    """A symbolic link, FIFO, socket or device. ENOTSUP where the target cannot hold it."""
    link = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(status.st_mode) else b""
    try:
        if stat.S_ISLNK(status.st_mode):
            os.symlink(link, to_name, dir_fd=to_folder)
        else:
            os.mknod(to_name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=to_folder)
    except OSError as error:
        if error.errno in (EIO, ENOSYS, EPERM):  # what rclone and others say for "not here"
            raise failed(ENOTSUP, os.fsdecode(name)) from error
        raise
    source_fd = open_at(folder, name, os.O_PATH)
    try:
        copy_fd = open_at(to_folder, to_name, os.O_PATH)
        try:
            if stat.S_IFMT(os.fstat(copy_fd).st_mode) != stat.S_IFMT(status.st_mode):
                raise failed(ENOTSUP, os.fsdecode(name))  # rclone makes an empty file of a FIFO
            made = copy_attributes(staging.losses, source_fd, copy_fd, status)
            copy = identity(made)
        finally:
            os.close(copy_fd)
    finally:
        os.close(source_fd)
    staging.progress.add(files=1)
    return Copied(Snapshot.of(status), copy)


def _link(staging: Staging, known: tuple[bytes, ...], to_folder: int, to_name: bytes) -> bool:
    """Link `to_name` to the copy made before; False where the target knows no links."""
    folder = open_at(staging.target.folder, staging.stage, FOLDER)
    try:
        for step in known[:-1]:
            below = open_at(folder, step, FOLDER)
            os.close(folder)
            folder = below
        os.link(known[-1], to_name, src_dir_fd=folder, dst_dir_fd=to_folder, follow_symlinks=False)
    except OSError:
        staging.losses.add("hard link")
        return False
    finally:
        os.close(folder)
    return True


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
            _copy_entries(staging, below, copy_fd, names, path, previous, copied)
            copy_attributes(staging.losses, below, copy_fd, status)
        finally:
            os.close(copy_fd)
    finally:
        os.close(below)
    staging.progress.add(files=1)
    return copied


def _copy_entries(
    staging: Staging,
    below: int,
    copy_fd: int,
    names: dict[bytes, bool],
    path: tuple[bytes, ...],
    previous: Copied | None,
    copied: Copied,
) -> None:
    """The entries of a folder; folders among them by other threads, where there are some to spare."""
    known = {} if previous is None else previous.entries

    def entry(name: bytes) -> Copied:
        try:
            return _copy(staging, below, name, copy_fd, name, (*path, name), known.get(name))
        except (SourceChangedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _CHANGED:
                raise
            # The rest need not be copied again for it: it is what has changed next time.
            remove_tree(copy_fd, name)
            return Copied(NEVER, (0, 0))

    results: dict[bytes, Result[Copied]] = {}
    files, started = 0, time.monotonic()
    try:
        for name, is_folder in names.items():
            if is_folder:
                results[name] = staging.workers.run(partial(entry, name))
            else:
                copied.entries[name] = entry(name)
                files += 1
        if not results:
            staging.workers.took(files, time.monotonic() - started)
    finally:
        wait_for(results.values())  # before the descriptors that they use are closed
    copied.entries.update((name, result.get()) for name, result in results.items())


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
