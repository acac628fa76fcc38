"""When the supervising process has gone: the one that serves the vault goes on, and is the agent then."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from session_agent.errors import AgentError
from session_agent.lifecycle import handover, state, vault
from session_agent.lifecycle.handover import Handover, Plug

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0


class Orphan:
    """Nobody loses the vault by it. But nobody replaces this process either."""

    def __init__(self, given: Handover) -> None:
        self._given = given
        self._alone = False

    async def watch(self, plug: Callable[[Plug], Awaitable[None]]) -> None:
        """Hear of branches from the supervising process. At its end become the agent itself."""
        line = self._given.line
        assert line is not None
        await trio.lowlevel.wait_readable(line)
        while (told := handover.told(line)) is not None:
            await plug(told)
            await trio.lowlevel.wait_readable(line)
        self._alone = True
        log.warning("the supervising process was killed; the vault is served on without one")
        user, folder = self._given.session.user, self._given.folder
        while True:
            # Another agent may be looking whether it is needed. It will find that it is not.
            with suppress(AgentError):
                if await trio.to_thread.run_sync(state.lock, folder, user):
                    return
            await trio.sleep(_AGAIN_SECONDS)

    def unmount(self) -> None:
        """What the supervising process would do now that the vault is served no more."""
        if self._alone:
            given = self._given
            with suppress(AgentError):
                vault.take_over(given.session.vault, given.session.user)
