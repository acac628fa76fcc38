"""The agent's log: one line a fact, to standard error, to the state directory, and to Kasm.

Text or JSON (`log.format`). Secrets are not logged; the formatter strikes out what slips through.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sys
from datetime import UTC, datetime

from session_agent.lifecycle import state
from session_agent.model import SessionUser, printable
from session_agent.redaction import redacted
from session_agent.settings import Loaded
from session_agent.settings_types import LogSettings

SIZE_LIMIT = 1 << 20  # bytes of the log; then it becomes the older one, which is lost


class _Formatter(logging.Formatter):
    """A line of text, or a JSON object. Control characters in names do not break a line of either."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self._json = style == "json"

    def format(self, record: logging.LogRecord) -> str:
        message = redacted(message_of(record))
        trace = redacted(self.formatException(record.exc_info)) if record.exc_info else ""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if not self._json:
            line = f"{time} {record.levelname} {message}"
            return printable(f"{line}\n{trace}" if trace else line)
        document = {
            "time": time,
            "level": record.levelname.lower(),
            "part": record.name.removeprefix("session_agent."),
            "pid": record.process,
            "message": message,
        }
        return json.dumps(document | ({"traceback": trace} if trace else {}))


def message_of(record: logging.LogRecord) -> str:
    """A record's message in one line."""
    text = printable(record.getMessage())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _StateLog(logging.Handler):
    """Writes to the state directory's log, and empties it into the older one when it is large.

    By descriptors alone: whoever may change names in that folder changes nothing about it. Every process that
    has inherited the descriptors may write and rotate; they append to whatever the file is then. A
    full disk, or a home that fails, loses lines and nothing else.
    """

    def __init__(self, log: int, older: int) -> None:
        super().__init__()
        self._log = log
        self._older = older

    def emit(self, record: logging.LogRecord) -> None:
        """Write it down, if that is possible."""
        line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        with contextlib.suppress(OSError):
            os.write(self._log, line)
            if os.fstat(self._log).st_size > SIZE_LIMIT:
                self._rotate()

    def _rotate(self) -> None:
        # A record lock is a process's own, so it is one between those that share the descriptors.
        fcntl.lockf(self._older, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            if os.fstat(self._log).st_size > SIZE_LIMIT:
                os.ftruncate(self._older, 0)
                os.pwrite(self._older, os.pread(self._log, 2 * SIZE_LIMIT, 0), 0)
                os.ftruncate(self._log, 0)
        finally:
            fcntl.lockf(self._older, fcntl.LOCK_UN)


def to_stderr(settings: LogSettings) -> None:
    """Log to standard error, and nowhere else."""
    _begin(settings, logging.StreamHandler(sys.stderr))


def to_state_directory(
    folder: int, user: SessionUser, settings: LogSettings, *, instead_of_stderr: bool
) -> None:
    """Log to the state directory `folder` too; or only there, and what else goes to standard error."""
    log, older = state.open_logs(folder, user)
    handler = _StateLog(log, older)
    if instead_of_stderr:
        os.dup2(log, sys.stderr.fileno())
        _begin(settings, handler)
    else:
        _add(settings, handler)


def to_kasm(loaded: Loaded) -> None:
    """Log to Kasm's session log too, if its variables are set. Starts a thread: fork before, not after."""
    kasm = loaded.environment.kasm
    if not (kasm.host and kasm.token):
        return
    # Not before: it is needed in few sessions, and brings the TLS library.
    from session_agent.lifecycle.kasm_log import KasmLog  # noqa: PLC0415

    handler = KasmLog(kasm, loaded.environment.kasm_user_name, loaded.settings.log.kasm_ca_file)
    _add(loaded.settings.log, handler)
    handler.start()


def _begin(settings: LogSettings, handler: logging.Handler) -> None:
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.setLevel(settings.level.upper())
    _add(settings, handler)


def _add(settings: LogSettings, handler: logging.Handler) -> None:
    handler.setFormatter(_Formatter(settings.format))
    logging.getLogger().addHandler(handler)
