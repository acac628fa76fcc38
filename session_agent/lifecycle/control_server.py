"""The running agent's side of the control socket. Requests are small, and none waits for long."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from session_agent.errors import ControlError
from session_agent.lifecycle import control
from session_agent.lifecycle.control import Answer, Request, StatusDocument, Verb
from session_agent.lifecycle.listening import CLIENTS
from session_agent.model import SessionUser

log = logging.getLogger(__name__)

_CLIENT_SECONDS = 5.0  # from connect to the answer's last byte

Handler = Callable[[str], Awaitable[StatusDocument]]
"""Is given the request's argument. Raises ControlError with what the client is told instead."""


class ControlServer:
    """Listens at the bound socket `server`. `handlers` is called in the trio thread, by verb.

    `reserved` are the verbs that only root, or who runs the agent, may use.
    """

    def __init__(
        self,
        server: socket.socket,
        user: SessionUser,
        handlers: dict[Verb, Handler],
        reserved: frozenset[Verb] = frozenset(),
    ) -> None:
        self._handlers = handlers
        self._reserved = reserved
        self._trusted = {0, os.geteuid(), user.uid}
        self._clients = 0
        self._socket = server
        self._socket.listen(CLIENTS)

    async def run(self) -> None:
        """Serve until cancelled."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One client. Whatever it does, it harms nobody but itself."""
        if self._clients >= CLIENTS and control.peer(stream.getsockopt)[1] != 0:
            await stream.aclose()
            return
        self._clients += 1
        try:
            with trio.move_on_after(_CLIENT_SECONDS), suppress(trio.BrokenResourceError):
                async with stream:
                    pid, uid = control.peer(stream.getsockopt)
                    answer = await self._answer(stream, pid, uid)
                    await stream.send_all(control.encode(answer))
        finally:
            self._clients -= 1

    async def _answer(self, stream: trio.SocketStream, pid: int, uid: int) -> Answer:
        line = b""
        while not line.endswith(b"\n") and len(line) <= control.REQUEST_LIMIT:
            chunk = await stream.receive_some(control.REQUEST_LIMIT)
            if not chunk:
                break
            line += chunk
        if uid not in self._trusted:
            log.warning("process %d of user %d was refused at the control socket", pid, uid)
            return Answer(error="Only root and the session user may ask.")
        line = line[: control.REQUEST_LIMIT]
        try:
            spoken = control.version_of(line)
            if spoken not in (control.VERSION, None):
                return Answer(
                    error=f"The agent speaks version {control.VERSION}, not {spoken}.",
                    hint=control.UPGRADED,
                )
            request = control.decode(line, Request)
        except ValueError:
            return Answer(error="The request is not understood.")
        if request.verb in self._reserved and uid not in (0, os.geteuid()):
            log.warning("process %d of user %d may not use %s", pid, uid, request.verb)
            return Answer(
                error=f"A permission policy holds here, so only root may use {request.verb}.",
                hint="Without the vault the mounts would be open to everybody.",
            )
        return await self._handle(request)

    async def _handle(self, request: Request) -> Answer:
        try:
            return Answer(document=await self._handlers[request.verb](request.argument))
        except ControlError as error:
            return Answer(error=error.message, hint=error.hint)
        except Exception:
            # A question that the agent cannot bear must not end the vault.
            log.exception("%s failed unexpectedly", request.verb)
            return Answer(error="The agent failed at it; its log says where.")
