"""The overlay with a journal: python -m bench.moves_server VAULT ROOT STATE HANDLE NAME=PATH...

HANDLE is 1 if moves by file handle are allowed, else 0.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

import trio

from session_agent.model import Mode, Mount, MountKind, MountState, Session, SessionUser
from session_agent.moves import strategy
from session_agent.moves.journal import Journal
from session_agent.overlay.accepted import MoveOptions
from session_agent.overlay.serve import Overlay, OverlayOptions


def main() -> None:
    """Serve until told to end by SIGTERM."""
    vault, root, state, handle, *branches = sys.argv[1:]
    mounts = tuple(
        Mount(name, path, path, "none", MountKind.LOCAL, Mode.RW, MountState.ALIVE)
        for name, _, path in (branch.partition("=") for branch in branches)
    )
    user = SessionUser("root", 0, 0, (), root)
    session = Session(user, vault, root, state, mounts)
    logging.basicConfig(level=logging.WARNING)
    folder = os.open(state, os.O_PATH | os.O_DIRECTORY)
    journal = Journal(folder, user)
    options = MoveOptions(ways=strategy.Options(handle_rename=handle == "1"))
    overlay = Overlay(session, OverlayOptions(moves=options), journal=journal)
    for warning in overlay.open_branches():
        sys.exit(warning)
    overlay.mount()
    try:
        trio.run(_serve, overlay)
    finally:
        overlay.close()


async def _serve(overlay: Overlay) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(overlay.run)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                overlay.stop()
                return


if __name__ == "__main__":
    main()
