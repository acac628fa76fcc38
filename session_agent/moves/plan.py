"""What a move is asked to do, and the checks before anything is touched.

A rename across branches must fail as a rename within one would: with the same errno, and with nothing
changed. The kernel checks what it knows of the vault's own nodes; here the file systems themselves are
asked, under the caller's rights.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from errno import (
    EACCES,
    EEXIST,
    EINVAL,
    EISDIR,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
    EROFS,
)

from session_agent.fsutil.at import LISTING, by_descriptor, open_at, stat_at
from session_agent.fsutil.credentials import Caller, acting_as
from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a folder. `folder` is a descriptor (O_PATH will do), `label` a path for messages."""

    folder: int
    name: bytes
    label: str


@dataclass(frozen=True, slots=True)
class Request:
    """A rename from `source` to `target`, for `caller`; `flags` are renameat2's."""

    source: Place
    target: Place
    flags: int
    caller: Caller


@dataclass(frozen=True, slots=True)
class Plan:
    """What the preflight found: the status of both ends. `nothing_to_do`: both are one file already."""

    source: os.stat_result
    target: os.stat_result | None
    nothing_to_do: bool


def failed(number: int, *names: str) -> OSError:
    """The OSError of that errno."""
    return OSError(number, os.strerror(number), *names)


def identity(status: os.stat_result) -> tuple[int, int]:
    """What tells one file from all others of this host, while it exists."""
    return status.st_dev, status.st_ino


def preflight(request: Request) -> Plan:
    """Check everything that can be checked while nothing is touched; OSError as rename(2) would give it."""
    source = stat_at(request.source.folder, request.source.name)
    try:
        target = stat_at(request.target.folder, request.target.name)
    except FileNotFoundError:
        target = None
    if target is not None and request.flags & RENAME_NOREPLACE:
        raise failed(EEXIST, request.target.label)
    if target is None and request.flags & RENAME_EXCHANGE:
        raise failed(ENOENT, request.target.label)
    for place in (request.source, request.target):
        if os.fstatvfs(place.folder).f_flag & os.ST_RDONLY:
            raise failed(EROFS, place.label)
    _check_rights(request, source, target)
    if target is not None and identity(source) == identity(target):
        return Plan(source, target, nothing_to_do=True)
    if target is not None and not request.flags & RENAME_EXCHANGE:
        _check_replaceable(request.target, source, target)
    if stat.S_ISDIR(source.st_mode) and identity(source) == identity(
        os.fstat(request.target.folder)
    ):
        raise failed(EINVAL, request.target.label)
    return Plan(source, target, nothing_to_do=False)


def _check_rights(request: Request, source: os.stat_result, target: os.stat_result | None) -> None:
    for place, status in ((request.source, source), (request.target, target)):
        with acting_as(request.caller):
            allowed = os.access(by_descriptor(place.folder), os.W_OK | os.X_OK, effective_ids=True)
        if not allowed:
            raise failed(EACCES, place.label)
        folder = os.fstat(place.folder)
        if (
            status is not None
            and folder.st_mode & stat.S_ISVTX
            and request.caller.uid not in (0, status.st_uid, folder.st_uid)
        ):
            raise failed(EPERM, place.label)
    _check_new_parent(request, request.source, source)
    if target is not None and request.flags & RENAME_EXCHANGE:
        _check_new_parent(request, request.target, target)


def _check_new_parent(request: Request, place: Place, status: os.stat_result) -> None:
    """A folder's entry ".." changes when it comes into another one: that is writing into the folder."""
    folders = [identity(os.fstat(one.folder)) for one in (request.source, request.target)]
    if not stat.S_ISDIR(status.st_mode) or folders[0] == folders[1]:
        return
    with acting_as(request.caller):
        allowed = os.access(
            place.name, os.W_OK, dir_fd=place.folder, effective_ids=True, follow_symlinks=False
        )
    if not allowed:
        raise failed(EACCES, place.label)


def _check_replaceable(place: Place, source: os.stat_result, target: os.stat_result) -> None:
    if stat.S_ISDIR(target.st_mode):
        if not stat.S_ISDIR(source.st_mode):
            raise failed(EISDIR, place.label)
        below = os.open(
            place.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place.folder
        )
        try:
            if os.listdir(below):
                raise failed(ENOTEMPTY, place.label)
        finally:
            os.close(below)
    elif stat.S_ISDIR(source.st_mode):
        raise failed(ENOTDIR, place.label)


def check_room(place: Place, disk_bytes: int) -> None:
    """ENOSPC if so much cannot fit. A file system that reports no size is taken at its word."""
    room = os.fstatvfs(place.folder)
    if room.f_blocks and disk_bytes > room.f_bavail * (room.f_frsize or room.f_bsize):
        raise failed(ENOSPC, place.label)


@dataclass(slots=True)
class Size:
    """How much there is to copy. `disk_bytes` leaves out holes, and counts hard links once."""

    bytes: int = 0
    disk_bytes: int = 0
    files: int = 0
    exceeded: bool = False


def measure(place: Place, bytes_limit: int = 1 << 62, files_limit: int = 1 << 62) -> Size:
    """The size of what `place` names, and all below it; counting stops where a limit is exceeded."""
    size = Size()
    links: set[tuple[int, int]] = set()

    def count(status: os.stat_result) -> None:
        size.files += 1
        if stat.S_ISREG(status.st_mode):
            if status.st_nlink > 1:
                if identity(status) in links:
                    return
                links.add(identity(status))
            size.bytes += status.st_size
            size.disk_bytes += status.st_blocks * 512
        size.exceeded = size.bytes > bytes_limit or size.files > files_limit

    def look_below(folder: int, name: bytes) -> None:
        below = open_at(folder, name, LISTING)
        try:
            with os.scandir(below) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # it has just gone
                        status = entry.stat(follow_symlinks=False)
                        count(status)
                        if stat.S_ISDIR(status.st_mode) and not size.exceeded:
                            look_below(below, os.fsencode(entry.name))
                    if size.exceeded:
                        return
        finally:
            os.close(below)

    with contextlib.suppress(FileNotFoundError):
        status = stat_at(place.folder, place.name)
        count(status)
        if stat.S_ISDIR(status.st_mode) and not size.exceeded:
            look_below(place.folder, place.name)
    return size
