"""Kasm's session log, on a real HTTPS server: one that works, hangs, refuses, or is not to be trusted."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from session_agent.lifecycle import kasm_log
from session_agent.lifecycle.kasm_log import KasmLog
from session_agent.settings import Kasm
from tests.support.kasm_api import KasmApi, kasm_api

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJrYXNtX2lkIjoiNSJ9.c2ln/bmF0+dXJl"
_PATIENCE = 30.0  # seconds, before a thread counts as hung


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KasmApi]:
    with kasm_api(tmp_path) as running:
        yield running


@contextmanager
def sending(port: int, ca_file: Path | None) -> Iterator[tuple[KasmLog, logging.Logger]]:
    """A logger of one's own whose lines go there."""
    handler = KasmLog(
        Kasm("127.0.0.1", str(port), TOKEN, "kasm-5"), "ann", str(ca_file) if ca_file else None
    )
    logger = logging.Logger("test")
    logger.addHandler(handler)
    handler.start()
    try:
        yield handler, logger
    finally:
        handler.close()
        handler._thread.join(_PATIENCE)
        assert not handler._thread.is_alive()


def test_lines_arrive_in_batches(api: KasmApi) -> None:
    with sending(api.port, api.certificate) as (_, logger):
        for number in range(50):
            logger.warning("line %d of caf\udce9", number)
        entry = api.wait_for("line 49")
    date = entry.pop("ingest_date")
    assert time.strptime(date, "%Y-%m-%dT%H:%M:%SZ")
    assert entry == {
        "host": "kasm-5",
        "application": "Session",
        "message": "line 49 of caf\\xe9",
        "levelname": "WARNING",
        "process": "session-agent",
        "kasm_user_name": "ann",
        "kasm_id": "kasm-5",
    }
    paths = {path for path, _ in api.requests}
    assert paths == {f"/api/kasm_session_log?token={TOKEN.replace('/', '%2F').replace('+', '%2B')}"}
    assert len(api.requests) < 5


def test_the_last_lines_are_sent_at_the_end(api: KasmApi) -> None:
    with sending(api.port, api.certificate) as (_, logger):
        logger.error("the agent ends")
    assert api.wait_for("the agent ends", 0)["levelname"] == "ERROR"


def test_a_certificate_that_nobody_vouches_for_gets_no_token(
    api: KasmApi, caplog: pytest.LogCaptureFixture
) -> None:
    with sending(api.port, None) as (_, logger):
        logger.error("x")
        _wait_until(lambda: caplog.records)
    assert api.requests == []
    assert "certificate verify failed" in caplog.text
    assert TOKEN not in caplog.text


def test_a_ca_file_that_does_not_exist(
    api: KasmApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with sending(api.port, tmp_path / "absent") as (_, logger):
        logger.error("x")
        _wait_until(lambda: caplog.records)
    assert api.requests == []
    assert "No such file" in caplog.text


def test_a_server_that_hangs_holds_nobody_up(api: KasmApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kasm_log, "QUEUE_LIMIT", 50)
    monkeypatch.setattr(kasm_log, "_GATHER", 0.05)
    api.held.clear()
    with sending(api.port, api.certificate) as (handler, logger):
        logger.error("first")
        api.wait_for("first")
        for number in range(10_000):
            logger.error("line %d", number)
        assert handler._queue.full()
        assert handler._left_out > 9000
        _wait_until(lambda: len(api.requests) > 1)
        api.held.set()
        api.wait_for("line 49")
        _wait_until(lambda: not handler._queue.full())
        logger.error("last")
        entry = api.wait_for("last")
        assert "lines were left out)" in entry["message"]
    # What was not confirmed was sent again.
    messages = [entry["message"] for _, batch in api.requests for entry in batch]
    assert messages.count("first") > 1


def test_a_server_that_hangs_does_not_delay_the_end(api: KasmApi) -> None:
    api.held.clear()
    with sending(api.port, api.certificate) as (handler, logger):
        logger.error("first")
        api.wait_for("first")
        begun = time.monotonic()
        handler.close()
        assert time.monotonic() - begun < 5  # a second, on a machine that is not busy
        api.held.set()


def test_one_that_trickles_is_given_a_second(tmp_path: Path) -> None:
    """Each byte comes in time, the answer never does."""
    received, sent = socket.socketpair()
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            sent.send(b"H")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        with pytest.raises(TimeoutError):
            kasm_log._status(received, time.monotonic() + 1)
    finally:
        stop.set()
        thread.join()
        received.close()
        sent.close()


def test_a_refusal_is_told_once_and_tried_again(
    api: KasmApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kasm_log, "_GATHER", 0.05)
    api.status = 403
    with sending(api.port, api.certificate) as (_, logger):
        logger.error("first")
        _wait_until(lambda: len(api.requests) > 2)
        api.status = 200
        seen = len(api.requests)
        _wait_until(lambda: len(api.requests) > seen)
        logger.error("second")
        api.wait_for("second")
    assert [record.getMessage() for record in caplog.records] == [
        "Kasm's session log does not take the log: it answers 403"
    ]


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with sending(taken.getsockname()[1], None) as (_, logger):
            logger.error("x")
            _wait_until(lambda: caplog.records)
    assert "refused" in caplog.text


def _wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
