from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import foreign, foreign_figures, moves
from bench.rows import ROWS

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.skipif(shutil.which("gcc") is None, reason="the bench's driver needs gcc")
def test_every_row_is_measured_on_the_vault(tmp_path: Path) -> None:
    figures, image = tmp_path / "bench.json", tmp_path / "bench.svg"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--quick", "--scale", "0.005", "--rounds", "1"),
            *("--against", "vault", "--idle-seconds", "0.5"),
            *("--rows", ",".join([*(row.name for row in ROWS), "idle"])),
            *("--json", figures, "--plot", image, "--folder", tmp_path),
        ],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
    )
    assert figures.is_file(), done.stderr
    found = json.loads(figures.read_text(encoding="utf-8"))
    missing = {row.name for row in ROWS if row.why_not()}
    failures = {
        name: row["failures"]
        for name, row in found["rows"].items()
        if row["failures"] and name not in missing
    }
    assert failures == {}
    assert set(found["rows"]) == {row.name for row in ROWS}
    for name in set(found["rows"]) - missing:
        assert set(found["rows"][name]["medians"]) == {"native", "vault"}
        assert found["rows"][name]["cpu"]["vault"] > 0
    assert found["idle"]["vault"]["with_nodes"]["pss"] > 0
    assert image.read_text(encoding="utf-8").startswith("<svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.svg"]


@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.skipif(shutil.which("rsync") is None, reason="moves are compared with rsync's")
def test_moves_are_measured(tmp_path: Path) -> None:
    said: list[str] = []
    figures = moves.measure(tmp_path / "moves", 0.004, said.append, rounds=1)
    movers = {one.mover for one in figures.moved}
    assert movers == {
        "vault",
        "vault, by handle",
        "mv + sync",
        "rsync + sync",
        "shutil.move + sync",
    }
    assert all(0 < one.durable <= one.done for one in figures.moved)
    assert set(figures.accepted) == {"file", "notes"}
    assert len(figures.felt) == 24
    assert "| stat, target, while notes moves |" in moves.as_text(figures)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.skipif(shutil.which("git") is None, reason="the burst is a checkout")
def test_changes_behind_the_vault_are_measured(tmp_path: Path) -> None:
    said: list[str] = []
    figures = foreign.measure(tmp_path / "foreign", 0.02, said.append)
    assert {one.what: one.times for one in figures.arrivals} == dict.fromkeys(
        ("create", "modify", "rename", "remove"), 5
    )
    assert all(0 < one.median <= one.p99 for one in figures.arrivals)
    assert [burst.title for burst in figures.bursts] == ["nobody else at work", "others at work"]
    for burst in figures.bursts:
        assert burst.heard == burst.files == 200
        assert burst.events >= 200
        assert burst.counts["announced"] >= 200
        assert burst.counts["watched"] >= 4
        assert burst.checkout > 0
        assert burst.last > 0
        assert min(burst.before, burst.most, burst.after) > 10_000
    calls = {one.call for one in figures.felt if not one.call.startswith("walk")}
    assert calls == {
        f"{call}, {side}"
        for side in ("vault", "natively")
        for call in (
            "stat, another folder",
            "stat of an unknown name, another folder",
            "open and read, another folder",
            "create, another folder",
            "stat, same tree",
            "stat that asks, same tree",
        )
    }
    assert "| stat, same tree, vault |" in foreign_figures.as_text(figures)
    assert not list((tmp_path / "foreign/vault").iterdir())
