"""The audit trail: lines that are only added, rotation, and a bounded rate."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from session_agent.lifecycle import audit
from session_agent.lifecycle.audit import Audit


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_added(tmp_path: Path) -> None:
    path = tmp_path / "log/audit.jsonl"
    Audit(str(path)).write("grant", folder="a", because="ü\n\x1b")
    Audit(str(path)).write("grant", folder="b")
    assert [line["folder"] for line in lines(path)] == ["a", "b"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_refusals_come_at_a_bounded_rate(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = Audit(str(path))
    for _ in range(10_000):
        trail.refused("open", "a\udcff", 1000)
    assert audit._BURST <= len(lines(path)) < audit._BURST + 20
    trail._allowance = 1.0
    trail.refused("open", "b", 1000)
    assert lines(path)[-1]["path"] == "b"
    told = sum(int(str(line.get("left_out", 0))) for line in lines(path))
    assert told + len(lines(path)) == 10_001


def test_it_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_SIZE_LIMIT", 1000)
    path = tmp_path / "audit.jsonl"
    trail = Audit(str(path))
    for number in range(200):
        trail.write("grant", number=number)
    files = sorted(os.listdir(tmp_path))
    assert files == ["audit.jsonl", *(f"audit.jsonl.{n}" for n in range(1, audit._KEPT + 1))]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in files)
    kept = [line["number"] for name in (*files[:0:-1], files[0]) for line in lines(tmp_path / name)]
    assert kept == list(range(200))[-len(kept) :]


def test_what_cannot_be_written_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("elsewhere")
    for path in ("file/audit", "link"):
        trail = Audit(str(tmp_path / path))
        trail.write("grant")
        trail.write("grant")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert not (tmp_path / "elsewhere").exists()
    Audit(None).write("grant")
