"""The process that serves the vault: forked before the large libraries are loaded, one after another."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable
from typing import NoReturn

from session_agent.errors import AgentError
from session_agent.lifecycle import logs
from session_agent.lifecycle.handover import Handover, Report
from session_agent.moves import copier_process
from session_agent.overlay import heralding

log = logging.getLogger(__name__)


def start(given: Handover, *, close: Iterable[socket.socket]) -> int:
    """Fork it; its process id. `close` are the sockets that are only its parent's business."""
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _work(given, close, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _work(
    given: Handover, close: Iterable[socket.socket], signals: set[int | signal.Signals]
) -> NoReturn:
    code = 1
    try:
        gc.freeze()  # what its parent has made is not for this process to finalize
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        for one in close:
            one.close()
        copying = copier_process.start()  # they end with this process, so each has its own
        herald = heralding.start() if given.loaded.settings.overlay.foreign_events else None
        try:
            logs.to_kasm(given.loaded)
            # Only now, so that the others are small: these are large libraries.
            from session_agent.lifecycle.event_loop import serve_vault  # noqa: PLC0415

            serve_vault(given, copying, herald)
        finally:
            copying.end()
            if herald is not None:
                herald.end()
        code = 0
    except AgentError as error:
        given.report(Report(False, error.message, error.hint))
    except BaseException as error:
        log.exception("the process that serves the vault ends")
        given.report(Report(False, f"The agent failed: {error!r}."))
    finally:
        logging.shutdown()
        os._exit(code)
