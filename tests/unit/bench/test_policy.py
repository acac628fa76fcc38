from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from bench import policy, report
from session_agent.policy.evaluate import evaluate
from session_agent.policy.identity import Identity
from session_agent.policy.schema import parse_policy
from tests.unit.bench.test_report import RUN

TraceFunction = Callable[[FrameType, str, Any], Any]


def lines_run(folders: int) -> int:
    """How many lines of Python an evaluation executes: work that no other program can make longer."""
    parsed = parse_policy(policy.text_of(folders, groups=100).encode(), "test.yaml")
    who = Identity("u0", groups=frozenset({"g0", "g5"}))
    lines = 0

    def count(_: FrameType, event: str, __: object) -> TraceFunction:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        evaluate(parsed, who, datetime(2026, 11, 30, 12, tzinfo=UTC))
    finally:
        sys.settrace(before)
    return lines


def test_ten_times_the_folders_are_ten_times_the_work() -> None:
    small, large = lines_run(200), lines_run(2_000)
    assert 9 * small < large < 11 * small


def test_ten_thousand_folders_and_a_thousand_groups() -> None:
    small, large = policy.measure(sizes=(1_000, 10_000), runs=1)
    assert large.shown == 2_000
    assert large.read > 0
    assert large.evaluate > 0
    assert large.peak < 16 * 1024
    assert large.peak < 20 * small.peak


def test_the_report_has_them() -> None:
    figures = policy.PolicyFigures(10, 2, 0.5, 0.00025, 512.0, 3)
    assert "| 10      |      2 |    0.50 |          0.2 |          25.00 |       0.5 |     3 |" in (
        report.as_text(replace(RUN, policy=[figures]))
    )
