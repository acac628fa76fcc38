"""What the supervising process has ready for the process that serves the vault, and how they talk."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from session_agent.lifecycle.companion import Companion
from session_agent.lifecycle.session import Place
from session_agent.model import Mount, Session
from session_agent.overlay.roots import Roots
from session_agent.settings import Loaded

Ready: TypeAlias = Callable[[], None]

_MESSAGE_LIMIT = 1 << 16  # bytes


class Report(msgspec.Struct, frozen=True):
    """The vault is ready, or why it is not."""

    ready: bool
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Handover:
    """A worker gets all of it by being forked; what outlives the worker serves the next one.

    `folder` is the state directory, `connection` the mounted /dev/fuse, `control` the bound control socket.
    On `line` the worker reports; its end is the supervising process's.
    """

    loaded: Loaded
    place: Place
    session: Session
    folder: int
    roots: Roots
    helper: Companion
    control: socket.socket
    connection: int = -1
    line: socket.socket | None = None
    warnings: tuple[str, ...] = ()

    def report(self, what: Report) -> None:
        """The worker's side of `received`."""
        assert self.line is not None
        with suppress(OSError):  # there is nobody any more
            self.line.send(json.dumps(msgspec.to_builtins(what)).encode("ascii"))


@dataclass(frozen=True, slots=True)
class Plug:
    """A branch that has come, or was mounted anew, with its root; or, where it is dead, one that has gone."""

    mount: Mount
    fd: int


def tell(line: socket.socket, plug: Plug) -> None:
    """The supervising process's side."""
    text = json.dumps(msgspec.to_builtins(plug.mount)).encode("ascii")
    with suppress(OSError):  # a successor gets it all the same
        socket.send_fds(line, [text], [plug.fd])


def told(line: socket.socket) -> Plug | None:
    """The worker's side; None at the end of the supervising process."""
    data, descriptors, _, _ = socket.recv_fds(line, _MESSAGE_LIMIT, 1, socket.MSG_CMSG_CLOEXEC)
    if not data or not descriptors:
        return None
    return Plug(msgspec.convert(json.loads(data), Mount), descriptors[0])


def received(line: socket.socket) -> list[Report]:
    """What the worker has reported by now; `line` does not block."""
    reports = []
    with suppress(BlockingIOError):
        while data := line.recv(_MESSAGE_LIMIT):
            reports.append(msgspec.convert(json.loads(data), Report))
    return reports
