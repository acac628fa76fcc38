"""Kasm's session log: the agent's lines in the administrator's console, as Kasm's own scripts send theirs.

A courtesy that may cost nothing: whoever logs only puts a line into a bounded queue. One thread sends what
has gathered, with a time limit of a second; what a server does not take is kept while there is room, and
tried again after longer and longer times.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import queue
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from urllib.parse import quote

from session_agent.lifecycle.logs import message_of
from session_agent.redaction import redacted
from session_agent.settings import Kasm

log = logging.getLogger(__name__)

QUEUE_LIMIT = 500  # lines that wait; more are counted and left out
_BATCH = 100  # lines in one request
_GATHER = 1.0  # seconds that lines may wait for others
_TIME_LIMIT = 1.0  # seconds for a request
_LONGEST_WAIT = 300.0  # seconds between two tries
_HEAD_LIMIT = 512  # bytes of an answer that are looked at


class KasmLog(logging.Handler):
    """Hands lines to a thread that sends them. Nothing here waits for the network."""

    def __init__(self, kasm: Kasm, user_name: str, ca_file: str | None) -> None:
        super().__init__()
        self._kasm = kasm
        self._user_name = user_name
        self._ca_file = ca_file
        self._queue: queue.Queue[dict[str, str] | None] = queue.Queue(QUEUE_LIMIT)
        self._left_out = 0
        self._ending = threading.Event()
        self._context: ssl.SSLContext | None = None
        self._thread = threading.Thread(target=self._send_all, name="kasm-log", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put it into the queue, if there is room."""
        if record.name == __name__:  # that it cannot be sent cannot be sent
            return
        now = datetime.fromtimestamp(record.created, UTC)
        entry = {
            "host": self._kasm.session,
            "application": "Session",
            "ingest_date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "message": redacted(message_of(record)),
            "levelname": record.levelname,
            "process": "session-agent",
            "kasm_user_name": self._user_name,
            "kasm_id": self._kasm.session,
        }
        if self._left_out:
            entry["message"] += f" (before it {self._left_out} lines were left out)"
        try:
            self._queue.put_nowait(entry)
            self._left_out = 0
        except queue.Full:
            self._left_out += 1

    def close(self) -> None:
        """What is still to be sent has the time of one request; then it is left."""
        self._ending.set()
        with contextlib.suppress(queue.Full):  # then the thread does not wait for it
            self._queue.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(_TIME_LIMIT)
        super().close()

    def _send_all(self) -> None:
        pending: list[dict[str, str]] = []
        wait, told = _GATHER, False
        while not self._ending.is_set() or not self._queue.empty():
            waiting = [] if pending else [self._queue.get()]
            self._ending.wait(wait)
            with contextlib.suppress(queue.Empty):
                while len(pending) + len(waiting) < _BATCH:
                    waiting.append(self._queue.get_nowait())
            pending += [entry for entry in waiting if entry is not None]
            problem = self._send(pending) if pending else ""
            if not problem:
                pending, wait, told = [], _GATHER, False
                continue
            if self._ending.is_set():
                return
            if not told:
                log.warning("Kasm's session log does not take the log: %s", problem)
                told = True
            wait = min(_LONGEST_WAIT, 2 * wait)

    def _send(self, entries: list[dict[str, str]]) -> str:
        """One request; what is wrong, or ""."""
        deadline = time.monotonic() + _TIME_LIMIT
        connection = None
        try:
            # Checked against the system's certificates, or those given: the token goes along.
            self._context = self._context or ssl.create_default_context(cafile=self._ca_file)
            connection = http.client.HTTPSConnection(
                self._kasm.host,
                int(self._kasm.port or 443),
                timeout=_TIME_LIMIT,
                context=self._context,
            )
            connection.request(
                "POST",
                f"/api/kasm_session_log?token={quote(self._kasm.token, safe='')}",
                json.dumps(entries),
                {"Content-Type": "application/json"},
            )
            assert connection.sock is not None
            status = _status(connection.sock, deadline)
            return "" if 200 <= status < 300 else f"it answers {status}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        finally:
            if connection is not None:
                connection.close()


def _status(connection: socket.socket, deadline: float) -> int:
    """The HTTP status that comes in time. http.client would go on for as long as bytes trickle in."""
    head = b""
    while b"\n" not in head and len(head) < _HEAD_LIMIT:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(_HEAD_LIMIT)
        if not chunk:
            break
        head += chunk
    words = head.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError("it does not answer in HTTP")
    return int(words[1])
