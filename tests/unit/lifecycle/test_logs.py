"""The log: its lines, its files, and what it does where they cannot be written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent import redaction
from session_agent.lifecycle import logs, state
from session_agent.model import SessionUser
from session_agent.settings_types import LogSettings
from tests.support import storage

ME = SessionUser("me", os.geteuid(), os.getegid(), (), "/")
log = logging.getLogger("session_agent.lifecycle.vault")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def to_folder(folder: Path, settings: LogSettings | None = None) -> None:
    descriptor = state.create(str(folder), ME)
    logs.to_state_directory(descriptor, ME, settings or LogSettings(), instead_of_stderr=False)
    os.close(descriptor)


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.to_stderr(LogSettings())
    log.warning("%s is dead", "caf\udce9\nERROR forged\x1b[2J")
    log.debug("not told")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING caf\\xe9\\nERROR forged\\x1b[2J is dead")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.to_stderr(LogSettings(level="debug", format="json"))
    try:
        raise ValueError("https://a:hunter22@b")
    except ValueError:
        log.exception("caf\udce9")
    log.debug("x")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["part"], first["message"]) == (
        "error",
        "lifecycle.vault",
        "caf\\xe9",
    )
    assert "ValueError: https://[redacted]@b" in first["traceback"]
    assert (second["level"], second["pid"]) == ("debug", os.getpid())


def test_the_file_is_bounded_and_no_name_is_needed_to_rotate_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "SIZE_LIMIT", 4000)
    logs.to_stderr(LogSettings(level="error"))
    to_folder(tmp_path / "state")
    for number in range(200):
        log.error("line %d", number)
    files = sorted((tmp_path / "state").iterdir())
    assert [file.name for file in files] == ["agent.log", "agent.log.1"]
    assert all(0 < file.stat().st_size < 4200 for file in files)
    told = files[1].read_text() + files[0].read_text()
    numbers = [int(line.rpartition(" ")[2]) for line in told.splitlines()]
    assert numbers == list(range(numbers[0], 200))
    assert len(capsys.readouterr().err.splitlines()) == 200


def test_several_processes_write_and_rotate_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "SIZE_LIMIT", 20_000)
    logs.to_stderr(LogSettings())
    to_folder(tmp_path / "state")
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                for number in range(300):
                    log.error("process %d line %d", child, number)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    for file in (tmp_path / "state").iterdir():
        assert file.stat().st_size < 21_000
        assert all("ERROR process" in line for line in file.read_text().splitlines())


@pytest.mark.needs_root
def test_a_full_disk_loses_lines_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with storage.tmpfs(tmp_path / "small", size="64k"):
        logs.to_stderr(LogSettings())
        to_folder(tmp_path / "small/state")
        (tmp_path / "small/rest").write_bytes(b"x" * 40_000)
        for number in range(2000):
            log.error("line %d %s", number, "y" * 50)
        for handler in logging.getLogger().handlers[1:]:  # they hold the file system
            os.close(handler._log)  # type: ignore[attr-defined]
            os.close(handler._older)  # type: ignore[attr-defined]
    assert len(capsys.readouterr().err.splitlines()) == 2000


def test_known_secrets_are_struck_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "_known", set())
    redaction.know(["open sesame"])
    logs.to_stderr(LogSettings())
    log.error("he said %s", "open sesame")
    assert "sesame" not in capsys.readouterr().err
