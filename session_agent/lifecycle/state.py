"""The state directory: the running agent's lock, control socket and log.

It lies in the session user's home and belongs to that user. Root opens everything in it with the
user's rights, and follows no symbolic link there.

The lock is a POSIX record lock: the kernel tells who holds it without the holder's help, so an
agent that hangs is known too, and no child inherits it. It is lost when its holder closes any
descriptor of that file, so the holder opens it once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from session_agent.errors import UserFileError
from session_agent.fsutil.credentials import acting_as
from session_agent.model import SessionUser, printable

LOCK = "agent.lock"
LOG = "agent.log"
OLD_LOG = "agent.log.1"
SOCKET = "control.sock"

_FLOCK = "@hhqqi4x"  # struct flock: l_type, l_whence, l_start, l_len, l_pid; fcntl(2)
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def create(path: str, user: SessionUser) -> int:
    """A descriptor of the state directory, made (mode 0700) if it is not there.

    Raises UserFileError where it cannot be used.
    """
    hint = "Make it writable for the session user, or set `state_dir` to another folder."
    try:
        with acting_as(user):
            os.makedirs(path, mode=0o700, exist_ok=True)
            folder = os.open(path, _FOLDER)
            try:
                if stat.S_IMODE(os.fstat(folder).st_mode) != 0o700:
                    os.chmod(f"/proc/self/fd/{folder}", 0o700)
            except BaseException:
                os.close(folder)
                raise
    except OSError as error:
        raise UserFileError(
            f"The state directory {printable(path)} cannot be used: {error.strerror}.", hint
        ) from None
    return folder


def find(path: str) -> int | None:
    """A descriptor of the state directory, with the caller's rights; None if there is none."""
    try:
        return os.open(path, _FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return None


def lock(folder: int, user: SessionUser) -> bool:
    """Become the one agent of this state directory until this process ends; False if another is."""
    fd = _open(folder, LOCK, os.O_RDWR, user)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise UserFileError(
            f"The state directory's file system cannot lock files: {error.strerror}.",
            "Set `state_dir` to a folder on another one.",
        ) from None
    return True  # the descriptor stays open for the life of the process


def holder(folder: int) -> int | None:
    """The process id of the agent that holds the lock; None if nobody does."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(LOCK, flags, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, question))
    finally:
        os.close(fd)
    return None if kind == fcntl.F_UNLCK else int(pid)


def open_logs(folder: int, user: SessionUser) -> tuple[int, int]:
    """Descriptors of the log, which appends, and of the older one. No path is needed to rotate them."""
    log = _open(folder, LOG, os.O_RDWR | os.O_APPEND, user)
    try:
        return log, _open(folder, OLD_LOG, os.O_RDWR, user)
    except UserFileError:
        os.close(log)
        raise


def tail(folder: int, name: str, size: int) -> bytes | None:
    """The last `size` bytes of a file there, with the caller's rights; None if there is no such file."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=folder)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return None
        return os.pread(fd, size, max(0, found.st_size - size))
    finally:
        os.close(fd)


def _open(folder: int, name: str, flags: int, user: SessionUser) -> int:
    # O_NONBLOCK: a FIFO planted there must not hold the agent up.
    flags |= os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with acting_as(user):
            fd = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        raise UserFileError(
            f"{name} in the state directory cannot be opened: {error.strerror}.",
            "Remove it, or set `state_dir` to a folder that the session user can write.",
        ) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UserFileError(f"{name} in the state directory is no regular file.", "Remove it.")
    return fd
