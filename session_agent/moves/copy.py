"""Strategy copy, its first step: build a hidden copy of a file or a tree beside the target, durably.

Bytes with their holes, owner, mode, extended attributes and ACLs, and times, for every kind of file; hard
links inside a tree stay links. What the target's file system cannot hold of the attributes is noted as a
loss: the content is what counts. A kind of file that it cannot hold fails the move, before anything of the
source is touched.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EBUSY, EINVAL, EIO, ENOSYS, ENOTSUP, EPERM, EXDEV

from session_agent.fsutil.at import FOLDER, LISTING, open_at, stat_at
from session_agent.fsutil.syscalls import syncfs
from session_agent.moves.attributes import copy_attributes
from session_agent.moves.plan import Place, failed, identity

RESERVED_PREFIX = b".~session-agent-"
"""Names that begin so are garbage by construction: any later run may delete them (invariant 2)."""

_CHUNK = 8 << 20
_NEXT_WAY = frozenset({EXDEV, EINVAL, ENOSYS, ENOTSUP})


class SourceChangedError(Exception):
    """The source is not what it was when its copy began."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """By what a change of a source file is noticed."""

    identity: tuple[int, int]
    mode: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    ctime_ns: int
    links: int  # 1 for a folder

    @classmethod
    def of(cls, status: os.stat_result) -> Snapshot:
        """The snapshot of a file with that status."""
        folder = stat.S_ISDIR(status.st_mode)
        return cls(
            (status.st_dev, status.st_ino),
            status.st_mode,
            (status.st_uid, status.st_gid),
            0 if folder else status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            1 if folder else status.st_nlink,
        )

    @property
    def format(self) -> int:
        """The kind of file: the S_IFMT part of its mode."""
        return stat.S_IFMT(self.mode)

    def still_holds(
        self, status: os.stat_result, renamed: bool = False, below_renamed: bool = False
    ) -> bool:
        """Whether a file with that status is the same, unchanged but for being `renamed`.

        A rename changes the ctime; so does, with several links, removing another name. Below a renamed folder
        the number may be another one: rclone makes it from the path.
        """
        now = Snapshot.of(status)
        return (
            self.still_holds_but_for_times(status, below_renamed)
            and now.mtime_ns == self.mtime_ns
            and (renamed or self.links > 1 or now.links > 1 or now.ctime_ns == self.ctime_ns)
        )

    def still_holds_but_for_times(
        self, status: os.stat_result, below_renamed: bool = False
    ) -> bool:
        """Whether a file with that status has the same number, mode, owner and size."""
        now = Snapshot.of(status)
        return (below_renamed or now.identity == self.identity) and (
            (now.mode, now.owner, now.size) == (self.mode, self.owner, self.size)
        )


@dataclass(slots=True)
class Copied:
    """A source file as it was copied, where its copy is, and the same of a folder's entries."""

    source: Snapshot
    copy: tuple[int, int]
    entries: dict[bytes, Copied] = field(default_factory=dict)


@dataclass(slots=True)
class _Job:
    target: Place
    stage: bytes
    device: int  # the source's: a tree ends where another file system is mounted
    forbidden: tuple[int, int]  # the target's folder: it must not lie in the source
    single: bool  # one file: fsync it; a tree: one syncfs at the end
    losses: list[str] = field(default_factory=list)
    links: dict[tuple[int, int], tuple[bytes, ...]] = field(default_factory=dict)


def stage(source: Place, target: Place, stage_name: bytes) -> tuple[Copied, list[str]]:
    """Copy `source` to `stage_name` in the target's folder, and make the copy durable.

    Answers what was copied and what was lost on the way. SourceChangedError if the source changed meanwhile;
    OSError with the stage removed by the caller.
    """
    status = stat_at(source.folder, source.name)
    job = _Job(
        target,
        stage_name,
        status.st_dev,
        identity(os.fstat(target.folder)),
        single=not stat.S_ISDIR(status.st_mode),
    )
    copied = _copy(job, source.folder, source.name, target.folder, stage_name, ())
    if not job.single:
        listing = open_at(target.folder, stage_name, LISTING)
        try:
            syncfs(listing)
        finally:
            os.close(listing)
    verify(source.folder, source.name, copied)
    return copied, sorted(set(job.losses))


def verify(folder: int, name: bytes, copied: Copied, renamed: bool = False) -> None:
    """SourceChangedError unless the source and all below it is what it was when it was copied.

    `renamed`: it lies under another name by now.
    """
    try:
        status = stat_at(folder, name)
        unchanged = copied.source.still_holds(status, renamed)
        if copied.source.format != stat.S_IFDIR or not stat.S_ISDIR(status.st_mode):
            if not unchanged:
                raise SourceChangedError
            return
        below = open_at(folder, name, LISTING)
    except FileNotFoundError:
        raise SourceChangedError from None
    try:
        # rclone's folders change their times by themselves.
        if not unchanged and not (
            copied.source.still_holds_but_for_times(status)
            and set(_names(below)) == set(copied.entries)
        ):
            raise SourceChangedError
        for entry_name, entry in copied.entries.items():
            verify(below, entry_name, entry)
    finally:
        os.close(below)


def _names(folder: int) -> list[bytes]:
    """The names in a folder, but for the reserved ones."""
    with os.scandir(folder) as entries:
        names = [os.fsencode(entry.name) for entry in entries]
    return [name for name in names if not name.startswith(RESERVED_PREFIX)]


def _copy(
    job: _Job, folder: int, name: bytes, to_folder: int, to_name: bytes, path: tuple[bytes, ...]
) -> Copied:
    try:
        status = stat_at(folder, name)
    except FileNotFoundError:
        raise SourceChangedError from None
    if status.st_dev != job.device:
        raise failed(EBUSY, os.fsdecode(name))  # something is mounted in the tree
    if stat.S_ISDIR(status.st_mode):
        return _copy_folder(job, folder, name, to_folder, to_name, path)
    if status.st_nlink > 1 and not job.single:
        known = job.links.get(identity(status))
        if known is not None and _link(job, known, to_folder, to_name):
            return Copied(Snapshot.of(status), identity(stat_at(to_folder, to_name)))
        job.links[identity(status)] = path
    if stat.S_ISREG(status.st_mode):
        return _copy_file(job, folder, name, to_folder, to_name)
    return _copy_special(job, folder, name, to_folder, to_name, status)


def _copy_special(
    job: _Job,
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
            copy_attributes(job.losses, source_fd, copy_fd, status)
            return Copied(Snapshot.of(status), identity(os.fstat(copy_fd)))
        finally:
            os.close(copy_fd)
    finally:
        os.close(source_fd)


def _link(job: _Job, known: tuple[bytes, ...], to_folder: int, to_name: bytes) -> bool:
    """Link `to_name` to the copy made before; False where the target knows no links."""
    folder = open_at(job.target.folder, job.stage, FOLDER)
    try:
        for step in known[:-1]:
            below = open_at(folder, step, FOLDER)
            os.close(folder)
            folder = below
        os.link(known[-1], to_name, src_dir_fd=folder, dst_dir_fd=to_folder, follow_symlinks=False)
    except OSError:
        job.losses.append("hard link")
        return False
    finally:
        os.close(folder)
    return True


def _copy_folder(
    job: _Job, folder: int, name: bytes, to_folder: int, to_name: bytes, path: tuple[bytes, ...]
) -> Copied:
    below = open_at(folder, name, LISTING)
    try:
        status = os.fstat(below)
        if identity(status) == job.forbidden:
            raise failed(EINVAL, job.target.label)
        os.mkdir(to_name, 0o700, dir_fd=to_folder)
        copy_fd = open_at(to_folder, to_name, LISTING)
        try:
            copied = Copied(Snapshot.of(status), identity(os.fstat(copy_fd)))
            for entry_name in _names(below):
                copied.entries[entry_name] = _copy(
                    job, below, entry_name, copy_fd, entry_name, (*path, entry_name)
                )
            copy_attributes(job.losses, below, copy_fd, status)
        finally:
            os.close(copy_fd)
    finally:
        os.close(below)
    return copied


def _copy_file(job: _Job, folder: int, name: bytes, to_folder: int, to_name: bytes) -> Copied:
    # O_NONBLOCK: should a FIFO have taken the name, opening it must not wait for a writer.
    source_fd = open_at(folder, name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(source_fd)
        if not stat.S_ISREG(status.st_mode):
            raise SourceChangedError
        copy_fd = open_at(to_folder, to_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            copy_data(source_fd, copy_fd, status)
            copy_attributes(job.losses, source_fd, copy_fd, status)
            if job.single:
                os.fsync(copy_fd)
            copy = identity(os.fstat(copy_fd))
        finally:
            os.close(copy_fd)  # raises where a network file system reports a failed save here
        if stat_at(to_folder, to_name).st_size != status.st_size:
            raise failed(EIO, job.target.label)
        return Copied(Snapshot.of(status), copy)
    finally:
        os.close(source_fd)


def copy_data(source: int, target: int, status: os.stat_result) -> None:
    """Copy the bytes of `source`, of that status, to the empty file `target`, leaving out its holes.

    SourceChangedError if the file ends earlier than its status says.
    """
    size = status.st_size
    position = 0
    ways = list(_WAYS)
    while position < size:
        end = size
        if status.st_blocks * 512 < size:
            position, end = _next_data(source, position, size)
        while position < end:
            done = _copy_part(ways, source, target, position, min(end - position, _CHUNK))
            if done == 0:
                raise SourceChangedError
            position += done
    if os.fstat(target).st_size != size and status.st_blocks * 512 < size:
        os.ftruncate(target, size)


def _next_data(fd: int, position: int, size: int) -> tuple[int, int]:
    """Where the next run of data begins and ends."""
    try:
        start = os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        # ENXIO: only a hole is left. Anything else: this file system cannot tell.
        return (size, size) if error.errno == 6 else (position, size)
    return start, min(os.lseek(fd, start, os.SEEK_HOLE), size)


def _copy_part(
    ways: list[Callable[[int, int, int, int], int]],
    source: int,
    target: int,
    position: int,
    count: int,
) -> int:
    """Copy up to `count` bytes at `position` the fastest way that these two file systems allow."""
    while True:
        try:
            done = ways[0](source, target, position, count)
        except OSError as error:
            if error.errno not in _NEXT_WAY or len(ways) == 1:
                raise
            del ways[0]
            continue
        if done == 0 and len(ways) > 1:
            # Some file systems answer 0 where they cannot; the plain way knows the file's true end.
            del ways[:-1]
            continue
        return done


def _by_range(source: int, target: int, position: int, count: int) -> int:
    return os.copy_file_range(source, target, count, position, position)


def _by_sendfile(source: int, target: int, position: int, count: int) -> int:
    os.lseek(target, position, os.SEEK_SET)
    return os.sendfile(target, source, position, count)


def _by_hand(source: int, target: int, position: int, count: int) -> int:
    data = os.pread(source, min(count, 1 << 20), position)
    view = memoryview(data)
    written = 0
    while written < len(data):
        written += os.pwrite(target, view[written:], position + written)
    return written


_Way = Callable[[int, int, int, int], int]
_WAYS: tuple[_Way, ...] = (_by_range, _by_sendfile, _by_hand)
