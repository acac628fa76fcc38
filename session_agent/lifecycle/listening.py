"""The control socket: made by the supervising process, so that it outlives who answers at it."""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from contextlib import suppress

from session_agent.errors import ControlError
from session_agent.fsutil.credentials import acting_as
from session_agent.lifecycle import control, state
from session_agent.lifecycle.control import Answer, Request
from session_agent.model import SessionUser

CLIENTS = 16  # served at a time; more are turned away, unless they are root's
_CLIENT_SECONDS = 0.2  # that one may take to ask, where one is answered after the other


def bind(folder: int, user: SessionUser) -> socket.socket:
    """A socket in place of the one that an earlier agent left. It does not listen yet."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with acting_as(user):
            with suppress(FileNotFoundError):
                _remove(folder)
            # What bind(2) creates has the permissions that the umask leaves.
            before = os.umask(0o177)
            try:
                server.bind(control.address(folder))
            finally:
                os.umask(before)
        server.setblocking(False)
    except OSError as error:
        server.close()
        raise ControlError(
            f"The control socket cannot be made: {error.strerror}.",
            "Set `state_dir` to a folder on a local file system.",
        ) from None
    return server


def _remove(folder: int) -> None:
    if stat.S_ISDIR(os.stat(state.SOCKET, dir_fd=folder, follow_symlinks=False).st_mode):
        os.rmdir(state.SOCKET, dir_fd=folder)
    else:
        os.unlink(state.SOCKET, dir_fd=folder)


def answer_one(server: socket.socket, answer: Answer, trusted: set[int]) -> tuple[str, int]:
    """Give the next client this answer, while nobody serves. Which verb was asked for, and by which user.

    "" for a client that may not ask, is gone, or takes its time.
    """
    try:
        client, _ = server.accept()
    except OSError:
        return "", -1
    with client, suppress(OSError):
        uid = control.peer(client.getsockopt)[1]
        if uid not in trusted:
            return "", uid
        request = _request(client)
        client.settimeout(_CLIENT_SECONDS)
        client.sendall(control.encode(answer))
        return ("" if request is None else request.verb), uid
    return "", -1


def _request(client: socket.socket) -> Request | None:
    client.setblocking(False)
    deadline, line = time.monotonic() + _CLIENT_SECONDS, b""
    while not line.endswith(b"\n") and len(line) < control.REQUEST_LIMIT:
        if not select.select([client], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        chunk = client.recv(control.REQUEST_LIMIT)
        if not chunk:
            break
        line += chunk
    try:
        return control.decode(line, Request)
    except ValueError:
        return None
