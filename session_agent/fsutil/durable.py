"""Reading and replacing small files of the user: whole or not at all, never somebody else's.

A replaced file is written beside the old one, made durable, and renamed over it, so that a kill or
a power failure at any point leaves either the old content or the new. A file that must not be
replaced by renaming is refused, not worked around:

- anything that is not a regular file (a folder, FIFO, socket or device),
- a file that the caller may not write to: its write protection is taken for somebody's wish,
- a symbolic link, unless it leads to a regular file that the caller owns. People keep their
  settings in a repository and link to them, so then the file it leads to is replaced, in its own
  folder, and the link stays.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from session_agent.errors import UserFileError
from session_agent.model import printable

READ_LIMIT = 4 * 1024 * 1024  # bytes; no desktop program's settings come near it

# Garbage once its writer is gone, and swept below. Not one of the moves' reserved names, which the
# vault refuses: these files are also written through it.
_TEMPORARY = ".session-agent-new-"
_STALE_SECONDS = 3600.0


def read_regular(path: str, limit: int = READ_LIMIT) -> bytes | None:
    """The content of the regular file `path`, or None if there is none, or a dangling link.

    Never waits for a FIFO or a device: it is refused. A symbolic link is followed, with the
    caller's rights. Raises UserFileError for what is not a regular file or holds more than `limit`
    bytes, and OSError for the rest.
    """
    try:
        _refuse_irregular(path, os.stat(path))
        # Without O_NONBLOCK a FIFO that took the file's place since would stop us for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        _refuse_irregular(path, os.fstat(fd))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserFileError(
            f"{printable(path)} is larger than {limit} bytes.",
            "A settings file is never that large; move it away if it is not needed.",
        )
    return data


def replace(
    path: str, data: bytes, mode: int = 0o644, *, check: Callable[[], None] | None = None
) -> None:
    """Make `data` the content of `path`, durably, in one step.

    An existing file keeps its permission bits, and its owner and group where the caller may set
    them; a new one gets `mode` less the umask. `check` is called just before the old content goes, and
    what it raises keeps it. The folder must exist. Another hard link to the file
    keeps the old content. Raises UserFileError where the module's rules refuse, else OSError with
    `path` as its filename; until the rename, whatever fails leaves the old file as it was and no
    temporary file.
    """
    target, old = _target(path)
    folder = os.path.dirname(target) or "."
    try:
        _sweep(folder)
        with _temporary(folder, mode) as (fd, name):
            if old is not None:
                with suppress(PermissionError):
                    os.fchown(fd, old.st_uid, old.st_gid)
                os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
            if check is not None:
                check()
            os.rename(name, target)
        _sync_folder(folder)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), path) from error


def refuse_irreplaceable(path: str) -> None:
    """Raise what `replace` would raise for what is at `path` now, and change nothing."""
    _target(path)


def _target(path: str) -> tuple[str, os.stat_result | None]:
    """The file to rename over, and what is there now. Raises UserFileError if it must not be."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return path, None
    target = path
    if stat.S_ISLNK(found.st_mode):
        try:
            target = os.path.realpath(path, strict=True)
            found = os.lstat(target)
        except OSError as error:
            raise UserFileError(
                f"{printable(path)} is a symbolic link that leads nowhere ({error.strerror}).",
                "Remove the link, or create the file that it names.",
            ) from error
        if found.st_uid != os.geteuid():
            raise UserFileError(
                f"{printable(path)} is a symbolic link to {printable(target)}, "
                "which belongs to another user.",
                "Replace the link by a file of your own.",
            )
    _refuse_irregular(path, found)
    if not os.access(target, os.W_OK, effective_ids=True):
        raise UserFileError(
            f"{printable(target)} is write-protected.",
            "It is left alone; make it writable for the session user to have it kept up to date.",
        )
    return target, found


def _refuse_irregular(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "special file"
        raise UserFileError(
            f"{printable(path)} is a {kind} where a file is expected.", "Move it out of the way."
        )


@contextmanager
def _temporary(folder: str, mode: int) -> Iterator[tuple[int, str]]:
    """An open new file in `folder`, gone afterwards unless it was renamed."""
    name = os.path.join(folder, _TEMPORARY + secrets.token_hex(8))
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        yield fd, name
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    finally:
        os.close(fd)


def _sweep(folder: str) -> None:
    """Delete what a killed run left here: our temporary files that nobody can still be writing."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(_TEMPORARY):
                continue
            with suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                    os.unlink(entry.path)


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems have no fsync for folders; nothing better can be done
        # there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
