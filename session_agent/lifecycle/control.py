"""Asking the running agent: one line of JSON each way over a unix socket in the state directory.

The socket has mode 0600 and belongs to the session user. Both sides check who the other is
(SO_PEERCRED): the agent answers root, itself and the session user; the client believes the same.
A socket's path may have 107 bytes only, so it is reached through the state directory's descriptor.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from session_agent.errors import ControlError, TimeLimitError
from session_agent.fsutil import bounded
from session_agent.fsutil.credentials import acting_as
from session_agent.lifecycle import state
from session_agent.lifecycle.move_status import MoveStatus
from session_agent.lifecycle.session import Place
from session_agent.model import Mode, MountState, printable

VERSION = 1
REQUEST_LIMIT = 4096  # bytes
ANSWER_LIMIT = 1 << 20  # bytes
ANSWER_SECONDS = 1.5
UPGRADED = "Restart the agent after an upgrade: session-agent stop --force, then first-launch."

Verb = Literal["status", "stop", "cancel", "acknowledge"]
Message = TypeVar("Message", "Request", "Answer")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client says. `argument` is the move that `cancel` and `acknowledge` are about."""

    version: int
    verb: Verb
    argument: str = ""


class BranchStatus(msgspec.Struct, frozen=True):
    """A branch of the running agent. All text is printable (see model.printable)."""

    name: str
    path: str
    mode: Mode
    state: MountState


class StatusDocument(msgspec.Struct, frozen=True):
    """What `status --json` prints, and `root_branch` and `moves_left_out` besides.

    Typed, because to root the answer of a socket in the user's home is no more than the user's word.
    """

    state: Literal["running", "degraded", "stopped"]
    vault: str
    pid: int | None = None
    branches: tuple[BranchStatus, ...] = ()
    moves: tuple[MoveStatus, ...] = ()
    warnings: tuple[str, ...] = ()
    foreign: dict[
        str, int
    ] = {}  # how many foreign changes were announced, and how (see ForeignCounts)
    root_branch: str = ""
    moves_left_out: int = 0

    def as_json(self) -> dict[str, Any]:
        """The shape that stays."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        del document["root_branch"], document["moves_left_out"]
        return document


class Answer(msgspec.Struct, frozen=True):
    """What the agent says: its status, whatever it was told to do; or an error with its hint."""

    version: int = VERSION
    document: StatusDocument | None = None
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """The agent that holds the state directory's lock.

    `document` is its status, None if it gave no answer; `problem` then says why. `pid` is 0 for an
    agent in another container: two sessions then share one state directory, in one home perhaps.
    `starting`: it does not listen yet, or no more. `theirs`: only root's is believed, and this one is not.
    """

    pid: int
    document: StatusDocument | None = None
    problem: str = ""
    starting: bool = False
    theirs: bool = False


class NotListeningError(ControlError):
    """There is no control socket, or nobody behind it."""


def consult(place: Place, verb: Verb = "status", argument: str = "") -> Running | None:
    """Who serves this session, and the answer to `verb`; None if nobody does.

    Files are reached with the session user's rights, in a child: the home may hang. But the agent is to see
    who asks, so root stays root. Raises ControlError if the state directory does not answer.
    """
    request = Request(VERSION, verb, argument)

    def look() -> list[Running]:
        with acting_as(place.user):
            return _consult(place, request)

    try:
        found = bounded.run(look, list[Running], time_limit=2 * ANSWER_SECONDS)
    except TimeLimitError:
        raise ControlError(
            f"The state directory {printable(place.state_dir)} does not answer.",
            "See what the home is mounted from, or set `state_dir` to a local folder.",
        ) from None
    except OSError as error:
        raise ControlError(
            f"The state directory {printable(place.state_dir)} cannot be read: {error.strerror}.",
            "Only root and the session user can ask the agent.",
        ) from None
    return found[0] if found else None


def _consult(place: Place, request: Request) -> list[Running]:
    folder = state.find(place.state_dir)
    if folder is None:
        return []
    pid = state.holder(folder)
    if pid is None:
        return []
    if pid <= 0:  # the kernel has no number for it in this PID namespace
        shown = printable(place.state_dir)
        return [
            Running(0, None, f"An agent in another container uses the state directory {shown}.")
        ]
    if place.only_root and not _is_roots(pid):
        problem = "A permission policy holds, and the agent that runs is not root's."
        return [Running(pid, None, problem, theirs=True)]
    trusted = {0} if place.only_root else {0, place.user.uid}
    try:
        return [Running(pid, ask(folder, request, trusted))]
    except NotListeningError as error:
        return [Running(pid, None, str(error), starting=True)]
    except ControlError as error:
        return [Running(pid, None, str(error))]


def _is_roots(pid: int) -> bool:
    """Whether root runs it, as the kernel says; the owner of /proc/PID is root's whenever a process likes.

    Not all there is to it (set-uid programs keep a lock), so that its socket has to be root's too.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return True  # it has just ended
    return re.search(r"^Uid:\s+0\s+0\s", status, re.MULTILINE) is not None


def ask(folder: int, request: Request, trusted: set[int]) -> StatusDocument:
    """What the agent of the state directory `folder` answers. Raises ControlError."""
    deadline = time.monotonic() + ANSWER_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            _connect(connection, address(folder), deadline)
            if peer(connection.getsockopt)[1] not in {*trusted, os.geteuid()}:
                raise ControlError("The control socket is somebody else's.", "Remove it.")
            connection.sendall(encode(request))
            line = _receive(connection, deadline)
        except TimeoutError:
            raise ControlError(
                f"The agent gives no answer within {ANSWER_SECONDS:g} s.",
                "`session-agent stop --force` ends it.",
            ) from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotListeningError("The agent does not listen; it may be just starting.") from None
        except OSError as error:
            raise ControlError(f"The agent cannot be asked: {error.strerror}.") from None
    return _document(line)


def _connect(connection: socket.socket, to: str, deadline: float) -> None:
    """A unix socket with a time limit does not wait while the server's queue is full: do it here."""
    connection.settimeout(ANSWER_SECONDS)
    while True:
        try:
            return connection.connect(to)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            time.sleep(0.01)


def _receive(connection: socket.socket, deadline: float) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) <= ANSWER_LIMIT:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(65536)
        if not chunk:
            break
        line += chunk
    return line


def _document(line: bytes) -> StatusDocument:
    try:
        spoken = version_of(line)
        if spoken not in (VERSION, None):
            raise ControlError(
                f"The agent speaks version {spoken} of the control socket's language, not {VERSION}.",
                UPGRADED,
            )
        answer = decode(line, Answer)
    except ValueError:
        answer = Answer()
    if answer.error:
        raise ControlError(answer.error, answer.hint)
    if answer.document is None:
        raise ControlError("The agent's answer is not understood.")
    return answer.document


def address(folder: int) -> str:
    """The control socket's address by way of the open state directory."""
    return f"/proc/self/fd/{folder}/{state.SOCKET}"


def peer(getsockopt: Callable[[int, int, int], bytes]) -> tuple[int, int]:
    """Process id and uid of a socket's other side, as the kernel knows them (SO_PEERCRED, unix(7))."""
    credentials = getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def encode(message: Request | Answer) -> bytes:
    """One line. Through `json`, which passes on file names that are not UTF-8."""
    return json.dumps(msgspec.to_builtins(message)).encode("ascii") + b"\n"


def version_of(line: bytes) -> int | None:
    """The version that a message says it is in, whatever else it holds; None if it says none.

    To be looked at first: the rest of another version's message need not be understood. Raises ValueError
    for what is no message.
    """
    message = _parse(line)
    version = message.get("version") if isinstance(message, dict) else None
    return version if type(version) is int else None


def decode(line: bytes, kind: type[Message]) -> Message:
    """The message in one line. Raises ValueError for anything else."""
    return msgspec.convert(_parse(line), kind)


def _parse(line: bytes) -> Any:
    """JSON, in which text is what a file name can be: no lone surrogates but those of `os.fsdecode`."""
    try:
        message = json.loads(line)
        os.fsencode(json.dumps(message, ensure_ascii=False))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return message
