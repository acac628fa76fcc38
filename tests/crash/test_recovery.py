"""Killed at every single system call of a move, then recovered: everything is there exactly once."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from session_agent.moves.recover import Found
from tests.support import move_ends as ends
from tests.support.disks import contents
from tests.support.failpoints import killed_at
from tests.support.moving import Disks, Recorded
from tests.support.storage import tmpfs

pytestmark = pytest.mark.needs_root  # two file systems in memory

Contents = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """A move: what is at both ends before, the flags, and whether it was accepted first."""

    source: Callable[[Path], None]
    target: Callable[[Path], None]
    flags: int = 0
    background: bool = False


CASES = {
    "a file": Case(ends.file, ends.absent),
    "a file over a file": Case(ends.file, ends.other_file),
    "a file, not to replace": Case(ends.file, ends.absent, RENAME_NOREPLACE),
    "a tree": Case(ends.tree, ends.absent),
    "a tree over an empty folder": Case(ends.tree, ends.empty),
    "files exchanged": Case(ends.file, ends.other_file, RENAME_EXCHANGE),
    "a tree exchanged with a file": Case(ends.tree, ends.other_file, RENAME_EXCHANGE),
    "a file in the background": Case(ends.file, ends.other_file, 0, background=True),
    "a tree in the background": Case(ends.tree, ends.absent, 0, background=True),
}


@dataclass
class Bench:
    """The case set up anew for each step."""

    recorded: Recorded
    case: Case
    round: int = 0
    before: tuple[Contents, Contents] = field(default_factory=lambda: ({}, {}))
    after: tuple[Contents, Contents] = field(default_factory=lambda: ({}, {}))

    def paths(self) -> tuple[Path, Path]:
        """Paths of this round: folders of their own, which nothing of another round is in."""
        return (
            self.recorded.disks.source / str(self.round) / "here",
            self.recorded.disks.target / str(self.round) / "there",
        )

    def make(self) -> None:
        """Both ends as they are before the move."""
        for end in self.paths():
            shutil.rmtree(end.parent, ignore_errors=True)
        self.round += 1
        source, target = self.paths()
        source.parent.mkdir()
        target.parent.mkdir()
        self.case.source(source)
        self.case.target(target)

    def seen(self) -> tuple[Contents, Contents]:
        """What both folders hold."""
        source, target = self.paths()
        return contents(source.parent), contents(target.parent)

    def go(self) -> None:
        """The move."""
        self.recorded.move(*self.paths(), self.case.flags, background=self.case.background)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    with tmpfs(tmp_path / "a") as source, tmpfs(tmp_path / "b") as target:
        yield Disks(source, target)


@pytest.fixture(params=CASES)
def bench(disks: Disks, tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    bench = Bench(Recorded(disks, tmp_path / "state"), CASES[request.param])
    bench.make()
    bench.before = bench.seen()
    bench.go()
    bench.after = bench.seen()
    assert bench.before != bench.after
    return bench


def test_killed_at_every_step(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    step = 0
    seen: set[Found] = set()
    while True:
        bench.make()
        killed = killed_at(step, bench.go)
        findings = bench.recorded.recover()
        seen.update(finding.found for finding in findings)
        where = f"killed at step {step}: {[finding.found for finding in findings]}"
        assert bench.seen() in (bench.before, bench.after), where
        if bench.case.background and findings:
            assert bench.seen() == bench.after, f"accepted, but not done, {where}"
        assert bench.recorded.disks.reserved == [], where
        assert bench.recorded.recover() == [], f"a second recovery found something, {where}"
        if not killed:
            break
        step += 1
    with capsys.disabled():
        sys.stdout.write(f"{step} kills ")
    assert Found.FINISHED in seen
    assert (Found.AGAIN if bench.case.background else Found.UNDONE) in seen
    assert step > 20


def test_killed_in_the_recovery_as_well(bench: Bench) -> None:
    """A coarser net: some steps of the move, and in each of those some of the recovery."""
    step = 0
    while True:
        recovery_step = step % 7
        while True:
            bench.make()
            killed = killed_at(step, bench.go)
            recovery_killed = killed_at(recovery_step, lambda: _recover(bench))
            bench.recorded.recover()
            assert bench.seen() in (bench.before, bench.after), (step, recovery_step)
            assert bench.recorded.disks.reserved == [], (step, recovery_step)
            if not recovery_killed:
                break
            recovery_step += 7
        if not killed:
            break
        step += 11


def _recover(bench: Bench) -> None:
    bench.recorded.recover()
