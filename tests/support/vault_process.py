"""The served process behind tests.support.vault: VAULT ROOT STATE OPTIONS NAME=PATH..."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from session_agent import model
from session_agent.moves import copier_process, failpoint, strategy, workers
from session_agent.moves.journal import Journal
from session_agent.overlay import changes, heralding, polling, recovering
from session_agent.overlay.accepted import MoveOptions
from session_agent.overlay.limits import Limits
from session_agent.overlay.serve import Overlay, OverlayOptions
from session_agent.policy.limit import Limit
from tests.support.held_calls import HeldCalls

USER = model.SessionUser("root", 0, 0, (), "/root")


def main() -> None:
    path, root, state, text, *branches = sys.argv[1:]
    options = json.loads(text)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    session = model.Session(USER, path, root, state, tuple(map(_mount, branches)))
    workers.MANY_FILES = 10  # so that small trees are worked on by copier processes as well
    ways = strategy.Options(
        options["in_one_step"], copiers=copier_process.start(), others_wait=polling.is_busy
    )
    moves = MoveOptions(ways=ways, grace_seconds=1.0)
    journal = None
    if options["inline_bytes"] is not None:
        moves = replace(moves, inline_bytes=options["inline_bytes"])
        journal = _journal(state)
        failpoint.hook = partial(_hold, state)
    heralding.os = HeldCalls(partial(_hold, state))  # type: ignore[assignment, attr-defined]
    herald = heralding.start()
    recovering.AGAIN_SECONDS = 0.1  # not a minute
    served = OverlayOptions(
        foreign_events=options["foreign_events"],
        herald=herald,
        remote_polls_per_minute=options["remote_polls"],
        cache_seconds=options["cache_seconds"],
        moves=moves,
    )
    limits = None
    if options["limits"] is not None:
        limits = Limits(
            _limits(options["limits"]), lambda *what: logging.info("refused %s %s %d", *what)
        )
    overlay = Overlay(session, served, journal=journal, limits=limits)
    try:
        problems = overlay.open_branches()
        assert not problems, problems
        assert overlay._vault is not None  # a limit that real sessions never reach, to be tested
        overlay._vault.tree._folder_limit = options["folder_limit"]
        if options["pending"] is not None:
            changes.Pending.LIMIT = options["pending"]
        if options["watches"] is not None:
            overlay._vault.foreign._allowance.left = options["watches"]
        overlay.recover()
        overlay.mount()
        trio.run(_until_told, overlay, state)
    finally:
        overlay.close()
        herald.end()
        if journal is not None:
            journal.close()


def _mount(branch: str) -> model.Mount:
    """A branch whose name begins with "remote" is treated as rclone's."""
    name, _, folder = branch.partition("=")
    read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    mode = model.Mode.RO if read_only else model.Mode.RW
    kind = model.MountKind.RCLONE if name.startswith("remote") else model.MountKind.LOCAL
    return model.Mount(name, folder, "test", "test", kind, mode, model.MountState.ALIVE)


def _journal(state: str) -> Journal:
    folder = os.open(state, os.O_PATH | os.O_DIRECTORY)
    try:
        return Journal(folder, USER)
    finally:
        os.close(folder)


def _hold(state: str, point: str) -> None:
    while os.path.exists(f"{state}/hold-{point}"):
        Path(state, f"reached-{point}").touch()
        time.sleep(0.005)


def _limits(text: dict[str, Any]) -> dict[str, Limit]:
    return {name: _limit(limit) for name, limit in text.items()}


def _limit(text: Any) -> Limit:
    """Of "rw", or ["rw", {name: the same again}]; null only leads to others."""
    grant, below = text if isinstance(text, list) else (text, {})
    return Limit(
        None if grant is None else model.Grant(grant),
        {os.fsencode(name): _limit(limit) for name, limit in below.items()},
    )


async def _until_told(overlay: Overlay, state: str) -> None:
    """SIGUSR1: the limits in the state folder's file hold from now on."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overlay.run)
            os.write(1, b"mounted\n")
            async for number in signals:
                if number == signal.SIGUSR1:
                    file = trio.Path(state, "limits")
                    await overlay.restrict(_limits(json.loads(await file.read_text())))
                    await file.unlink()
                    continue
                await overlay.stop_moves()
                overlay.stop()
                break


if __name__ == "__main__":
    main()
