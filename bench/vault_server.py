"""The overlay alone, in the foreground: python -m bench.vault_server VAULT ROOT NAME=PATH..."""

from __future__ import annotations

import logging
import signal
import sys

import trio

from session_agent.model import Mode, Mount, MountKind, MountState, Session, SessionUser
from session_agent.overlay.serve import Overlay, OverlayOptions


def main() -> None:
    """Serve until unmounted, or told to end by SIGTERM."""
    vault, root, *branches = sys.argv[1:]
    mounts = tuple(
        Mount(name, path, path, "none", MountKind.LOCAL, Mode.RW, MountState.ALIVE)
        for name, _, path in (branch.partition("=") for branch in branches)
    )
    user = SessionUser("root", 0, 0, (), root)
    session = Session(user, vault, root, f"{root}.state", mounts)
    logging.basicConfig(level=logging.WARNING)
    overlay = Overlay(session, OverlayOptions(cache_seconds=1.0))
    for warning in overlay.open_branches():
        sys.exit(warning)
    overlay.mount()
    try:
        trio.run(_serve, overlay)
    finally:
        overlay.close()


async def _serve(overlay: Overlay) -> None:
    async def stop_on_signal() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                overlay.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal)
        await overlay.run()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    main()
