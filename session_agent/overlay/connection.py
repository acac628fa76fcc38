"""The overlay's mount, made apart from the library that serves it.

What the kernel and a FUSE server talk over is an open /dev/fuse. Here it is opened and mounted; who serves
it, and when, is another matter: requests wait until somebody answers the first one. So the supervising
process can mount a successor's connection before there is a successor, and each is mounted over the one
before it, which a dead server does not hinder: no program ever sees what the vault covers.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import shutil
import socket
import subprocess

from session_agent.errors import MountError
from session_agent.fsutil import syscalls
from session_agent.fsutil.credentials import AGENT
from session_agent.model import printable
from session_agent.mounts import mountinfo
from session_agent.mounts.tree import OWN_FSTYPE
from session_agent.overlay.standin import StandIn

_SOURCE = "session-agent"
_FUSE_CONF = "/etc/fuse.conf"
_FUSERMOUNT_SECONDS = 5.0
_HINT = (
    "The container needs /dev/fuse and the capability SYS_ADMIN,"
    " or fusermount3 when the agent runs as a user."
)


def is_mounted(path: str) -> bool:
    """Whether the uppermost mount at `path` is an overlay, alive or not."""
    here = [entry for entry in mountinfo.read() if entry.path == path]
    return bool(here) and here[-1].fstype == OWN_FSTYPE


def connect(path: str, former: int = -1) -> int:
    """Mount at `path`, and answer the open /dev/fuse that is to be served.

    `former` is the connection that is mounted there, if its server is gone and it is to be covered. Raises
    MountError if the system refuses.
    """
    try:
        fd = _as_root(path) if AGENT.uid == 0 else _as_user(path, former)
    except OSError as error:
        raise MountError(
            f"The overlay cannot be mounted at {printable(path)} ({error.strerror}).", _HINT
        ) from error
    if not is_mounted(path):
        os.close(fd)
        raise MountError(
            f"The vault's path {printable(path)} leads elsewhere since just now.",
            "Let nobody but root and the session user change the folders above it.",
        )
    return fd


def _as_root(path: str) -> int:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    try:
        syscalls.mount(_SOURCE, path, OWN_FSTYPE, syscalls.MS_NOSUID | syscalls.MS_NODEV, data)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _as_user(path: str, former: int) -> int:
    """fusermount3 mounts, and passes the open /dev/fuse on (its manual's _FUSE_COMMFD)."""
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError("fusermount3 is not installed.", "Install the package fuse3.")
    options = f"fsname={_SOURCE},subtype={_SOURCE},default_permissions"
    if _user_allow_other():
        options += ",allow_other"
    elif (
        former >= 0
    ):  # it has root's rights, and so may not look into a mount that is the user's alone
        raise MountError(
            "The overlay of a process that has died cannot be covered without user_allow_other in"
            f" {_FUSE_CONF}.",
        )
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, its:
        process = subprocess.Popen(
            [program, "-o", options, "--", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[its.fileno()],
            env={"PATH": os.defpath, "_FUSE_COMMFD": str(its.fileno())},
        )
        its.close()
        # It looks at the folder first. Where that is a mount whose server is gone, somebody has to answer.
        with process, StandIn(former).answering() if former >= 0 else contextlib.nullcontext():
            fd = _received(ours)
            assert process.stderr is not None
            said = process.stderr.read().decode(errors="backslashreplace").strip()
        if process.returncode != 0 or fd < 0:
            if fd >= 0:
                os.close(fd)
            raise MountError(
                f"The overlay cannot be mounted at {printable(path)}"
                f" ({said or 'fusermount3 gave no reason'}).",
                _HINT,
            )
    return fd


def _received(connection: socket.socket) -> int:
    """The descriptor that fusermount3 sends; -1 if it ends without."""
    space = socket.CMSG_SPACE(array.array("i").itemsize)
    if not select.select([connection], [], [], _FUSERMOUNT_SECONDS)[0]:
        return -1
    _, messages, _, _ = connection.recvmsg(1, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return array.array("i", data)[0]
    return -1


def unmount(path: str, *, lazy: bool) -> None:
    """Unmount the uppermost mount at `path`. Raises OSError, or MountError where fusermount3 refuses."""
    if AGENT.uid == 0:
        flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
        syscalls.unmount(path, flags)
        return
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError("fusermount3 is not installed.", "Install the package fuse3.")
    command = [program, "-u", *(["-z"] if lazy else []), "--", path]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="backslashreplace").strip() or "no reason given"
        raise MountError(
            f"{printable(path)} cannot be unmounted: {reason}",
            "If root mounted it, root has to unmount it.",
        )


def _user_allow_other() -> bool:
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
