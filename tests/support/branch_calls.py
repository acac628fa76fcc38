"""Calls into branches from an event loop of a test's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from session_agent.fsutil.credentials import AGENT
from session_agent.overlay.branches import OpenBranch, RemoteBranch


def run(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """In an event loop, for 20 s at most."""

    async def bounded() -> None:
        with trio.fail_after(20):
            await function()

    trio.run(bounded)


async def errno_of(branch: OpenBranch, function: Callable[..., Any], *arguments: object) -> int:
    try:
        await branch.call(AGENT, function, *arguments)
    except OSError as error:
        return error.errno or -1
    return 0


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what happens in a thread, or in the branch itself
        await trio.sleep(0.01)


async def revived(branch: RemoteBranch) -> None:
    """Call until it works again."""
    while await errno_of(branch, os.statvfs, branch.fd):  # noqa: ASYNC110 - as programs do
        await trio.sleep(0.05)
