"""The overlay alone, in the foreground: python -m bench.vault_server [options] VAULT ROOT NAME=PATH..."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys

import trio

from session_agent.model import Mode, Mount, MountKind, MountState, Session, SessionUser
from session_agent.moves import copier_process, strategy
from session_agent.moves.journal import Journal
from session_agent.overlay import heralding, polling
from session_agent.overlay.accepted import MoveOptions
from session_agent.overlay.serve import Overlay, OverlayOptions


def main() -> None:
    """Serve until unmounted, or told to end by SIGTERM. SIGUSR1 asks for a line with ForeignCounts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", help="where to keep a journal; without, no move is accepted")
    parser.add_argument("--by-handle", action="store_true", help="move in one step if possible")
    parser.add_argument("vault")
    parser.add_argument("root")
    parser.add_argument("branches", nargs="*")
    options = parser.parse_args()
    mounts = tuple(
        Mount(name, path, path, "none", MountKind.LOCAL, Mode.RW, MountState.ALIVE)
        for name, _, path in (branch.partition("=") for branch in options.branches)
    )
    user = SessionUser("root", 0, 0, (), options.root)
    session = Session(user, options.vault, options.root, f"{options.root}.state", mounts)
    logging.basicConfig(level=logging.WARNING)
    moves = MoveOptions(
        ways=strategy.Options(
            options.by_handle, copiers=copier_process.start(), others_wait=polling.is_busy
        )
    )
    herald = heralding.start()
    journal = None
    if options.state:
        journal = Journal(os.open(options.state, os.O_PATH | os.O_DIRECTORY), user)
    served = OverlayOptions(cache_seconds=1.0, moves=moves, herald=herald)
    overlay = Overlay(session, served, journal=journal)
    for warning in overlay.open_branches():
        sys.exit(warning)
    overlay.mount()
    try:
        trio.run(_serve, overlay)
    finally:
        overlay.close()
        herald.end()


async def _serve(overlay: Overlay) -> None:
    async def heed_signals() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as signals:
            async for number in signals:
                if number == signal.SIGUSR1:
                    sys.stdout.write(json.dumps(overlay.foreign_counts()) + "\n")
                    sys.stdout.flush()
                else:
                    overlay.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heed_signals)
        await overlay.run()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    main()
