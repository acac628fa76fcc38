from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from bench import foreign, report
from bench.failure import Failure
from bench.figures import percentile99
from bench.foreign_figures import (
    Burst,
    Call,
    Delay,
    Felt,
    ForeignFigures,
    arrival,
    as_text,
    changed_counts,
    felt,
    files_heard,
)
from bench.listener import RECORD, Heard, decode
from session_agent.overlay.inotify import CREATE, DELETE, OVERFLOW
from tests.unit.bench.test_report import RUN

BURST = Burst(
    title="others at work",
    checkout=0.5,
    last=6.25,
    files=100,
    heard=99,
    events=301,
    before=40 * 1024,
    most=48 * 1024,
    after=44 * 1024,
    counts={"watched": 7, "announced": 103},
)


def record(nanoseconds: int, *events: tuple[int, int, bytes]) -> bytes:
    data = b"".join(struct.pack("iIII16s", wd, mask, 0, 16, name) for wd, mask, name in events)
    return RECORD.pack(nanoseconds, len(data)) + data


def test_the_99th_percentile() -> None:
    assert percentile99([3.0]) == 3.0
    assert percentile99([1.0, 2.0]) <= 2.0
    assert percentile99([float(n) for n in range(101)]) == pytest.approx(99.0)


def test_arrivals_are_in_milliseconds() -> None:
    found = arrival("create", [0.010, 0.012, 0.020])
    assert (found.what, found.times) == ("create", 3)
    assert found.median == pytest.approx(12.0)
    assert 19.0 < found.p99 <= 20.0


def test_what_is_felt_is_told_apart_by_when_it_began() -> None:
    calls = {
        "stat": [Call(1.0, 0.001), Call(2.0, 0.003), Call(2.5, 0.002), Call(3.1, 0.9)],
        "create": [Call(2.1, 0.001)],  # none before: no ratio
    }
    (found,) = felt(calls, began=2.0, ended=3.0)
    assert (found.call, found.idle.times, found.meanwhile.times) == ("stat", 1, 2)
    assert found.idle.median == found.idle.p99 == found.idle.longest == pytest.approx(1.0)
    assert found.meanwhile.median == pytest.approx(2.5)
    assert found.meanwhile.longest == pytest.approx(3.0)
    assert 2.9 < found.meanwhile.p99 <= 3.0
    assert found.ratio == pytest.approx(found.meanwhile.p99)


def test_counts_are_those_of_the_burst_alone() -> None:
    before = {"watched": 5, "polled": 1, "announced": 10}
    after = {"watched": 7, "polled": 1, "announced": 13, "rescanned": 2}
    assert changed_counts(before, after) == after | {"announced": 3}


def test_a_file_is_heard_of_once() -> None:
    events = [
        Heard(1.0, "part1", "a", DELETE),
        Heard(1.0, "part1", "a", CREATE),
        Heard(1.0, "part2", "a", CREATE),
        Heard(1.0, ".", "other", CREATE),
    ]
    assert files_heard(events, ["part1/a", "part1/b", "part2/a"]) == 2


def test_what_the_listener_wrote_is_read_as_far_as_it_goes() -> None:
    first = record(1_500_000_000, (1, CREATE, b"a"), (2, DELETE, b"b"))
    second = record(2_000_000_000, (1, CREATE, b"c"))
    folders = {1: ".", 2: "inside"}
    found, used = decode(first + second[:-1], folders)
    assert used == len(first)
    assert found == [Heard(1.5, ".", "a", CREATE), Heard(1.5, "inside", "b", DELETE)]
    assert decode(second, folders) == ([Heard(2.0, ".", "c", CREATE)], len(second))


def test_lost_events_are_a_failure() -> None:
    with pytest.raises(Failure, match="lost"):
        decode(record(1, (-1, OVERFLOW, b"")), {})


def test_the_text() -> None:
    figures = ForeignFigures(
        arrivals=(arrival("create", [0.010, 0.010]),),
        bursts=(replace(BURST, title="nobody else at work"), BURST),
        felt=(Felt("stat, same tree", Delay(20, 0.05, 0.1, 1.0), Delay(50, 0.06, 0.25, 4.04)),),
    )
    lines = as_text(figures).splitlines()
    assert "| create | 2 | 10.0 | 10.0 |" in lines
    assert "A checkout that changes 100 files behind the vault:" in lines
    assert "| others at work | 0.50 | 6.25 | 301 | 99 | 40.0 | 48.0 | 44.0 |" in lines
    assert "- nobody else at work: watched 7, announced 103" in lines
    assert "| stat, same tree | 0.050 | 0.100 | 1.0 | 0.060 | 0.250 | 4.0 | 50 | 2.5 |" in lines
    assert "Disturbed" not in as_text(figures)
    assert "Disturbed" in as_text(replace(figures, disturbed=True))
    run = replace(RUN, foreign=figures)
    assert as_text(figures) in report.as_text(run)
    written = report.as_json(run)["foreign"]
    assert isinstance(written, dict)
    assert written["bursts"][1]["counts"] == {"watched": 7, "announced": 103}


def test_a_vault_that_shows_something_else_is_not_measured(tmp_path: Path) -> None:
    for side in ("shown", "behind"):
        (tmp_path / side / ".git").mkdir(parents=True)
        (tmp_path / side / "note").write_bytes(b"one")
    (tmp_path / "behind/.git/index").write_bytes(b"git's own is not compared")
    foreign.shows_as_behind(tmp_path / "shown", tmp_path / "behind")
    (tmp_path / "behind/note").write_bytes(b"two")
    with pytest.raises(Failure, match="1 names are not shown as they are, as note"):
        foreign.shows_as_behind(tmp_path / "shown", tmp_path / "behind")
