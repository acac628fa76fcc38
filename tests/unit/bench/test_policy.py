from __future__ import annotations

from dataclasses import replace

from bench import policy, report
from tests.unit.bench.test_report import RUN


def test_ten_thousand_folders_and_a_thousand_groups() -> None:
    small, large = policy.measure(sizes=(1_000, 10_000), runs=3)
    assert large.shown == 2_000
    assert large.evaluate < 1.0
    assert large.peak < 16 * 1024
    # Linear: ten times as many, with room for what a busy machine does to the smaller figure.
    assert large.evaluate < 30 * small.evaluate
    assert large.peak < 20 * small.peak


def test_the_report_has_them() -> None:
    figures = policy.PolicyFigures(10, 2, 0.5, 0.00025, 512.0, 3)
    assert "| 10      |      2 |    0.50 |          0.2 |          25.00 |       0.5 |     3 |" in (
        report.as_text(replace(RUN, policy=[figures]))
    )
