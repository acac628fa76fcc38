"""At every single system call of a move: the process is killed there, or the call fails there.

Killed: a whole version of everything lies under a name that is shown, and nothing else is shown but that.
Failed: the same, and what was begun has been cleaned up.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EDQUOT
from pathlib import Path

import pytest

from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support import move_ends
from tests.support.disks import contents
from tests.support.failpoints import failing, killed_at, record
from tests.support.moving import Disks, move

pytestmark = pytest.mark.needs_root  # two file systems in memory

RENAMES = frozenset({"rename", "renameat2"})
Contents = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """A move: what is at both ends before, and the flags."""

    source: Callable[[Path], None]
    target: Callable[[Path], None]
    flags: int = 0


CASES = {
    "a file": Case(move_ends.file, move_ends.absent),
    "a file over a file": Case(move_ends.file, move_ends.other_file),
    "a file, not to replace": Case(move_ends.file, move_ends.absent, RENAME_NOREPLACE),
    "a tree": Case(move_ends.tree, move_ends.absent),
    "a tree over an empty folder": Case(move_ends.tree, move_ends.empty),
    "files exchanged": Case(move_ends.file, move_ends.other_file, RENAME_EXCHANGE),
    "a tree exchanged with a file": Case(move_ends.tree, move_ends.other_file, RENAME_EXCHANGE),
}


@dataclass
class Bench:
    """The case set up anew for each step."""

    disks: Disks
    case: Case
    old: Contents = field(init=False)  # by what is at source and target
    replaced: Contents = field(init=False)

    def set_up(self) -> None:
        for folder in (self.disks.source, self.disks.target):
            for name in os.listdir(folder):
                _remove(folder / name)
        self.case.source(self.source)
        self.case.target(self.target)
        self.old, self.replaced = contents(self.source), contents(self.target)

    @property
    def source(self) -> Path:
        return self.disks.source / "here"

    @property
    def target(self) -> Path:
        return self.disks.target / "there"

    def run(self) -> None:
        move(self.source, self.target, self.case.flags)

    def shown(self) -> dict[str, Contents]:
        """What a user sees on both sides."""
        return {
            name: contents(folder / name)
            for folder in (self.disks.source, self.disks.target)
            for name in sorted(os.listdir(folder))
            if not name.startswith(".~session-agent-")
        }

    def check(self, where: str) -> None:
        """What holds at any instant."""
        shown = self.shown()
        versions = list(shown.values())
        assert self.old in versions, f"{where}: nothing whole is left: {_short(shown)}"
        if self.case.flags & RENAME_EXCHANGE:
            assert self.replaced in versions, f"{where}: the target is lost: {_short(shown)}"
            names = [name for name in shown if ".exchanged-" not in name]
            assert names == ["here", "there"], where
        else:
            assert set(shown) <= {"here", "there"}, where
            there = shown.get("there")
            before = self.replaced if self.case.target is not move_ends.absent else None
            assert there in (self.old, before), f"{where}: {_short(shown)}"
            if there == before and self.old != before:
                assert shown["here"] == self.old, where
        if (
            self.case.source is not move_ends.tree
        ):  # what is partly retired may be shown only of a tree
            assert all(one in (self.old, self.replaced) for one in versions), where


def _short(shown: dict[str, Contents]) -> dict[str, dict[str, int]]:
    return {
        name: {path: len(data) for path, data in found.items()} for name, found in shown.items()
    }


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for name in os.listdir(path):
            _remove(path / name)
        path.rmdir()
    else:
        path.unlink()


@pytest.fixture(params=CASES)
def bench(request: pytest.FixtureRequest, fast_disks: Disks) -> Bench:
    made = Bench(fast_disks, CASES[request.param])
    made.set_up()
    made.run()  # what is imported or opened once and for all must not count
    made.set_up()
    return made


def test_killed_at_every_step(bench: Bench) -> None:
    names = record(bench.run)
    assert len(names) > 30
    bench.check("at the end")
    for number, name in enumerate(names):
        bench.set_up()
        assert killed_at(number, bench.run), f"the second run has no step {number}"
        bench.check(f"killed at {name}, step {number}")
    bench.set_up()
    assert not killed_at(len(names), bench.run)


def test_an_error_at_every_step(bench: Bench) -> None:
    names = record(bench.run)
    open_before = os.listdir("/proc/self/fd")
    refused = 0
    for number, name in enumerate(names):
        bench.set_up()
        where = f"error at {name}, step {number}"
        failed, errno = False, 0
        with failing(number, EDQUOT):
            try:
                bench.run()
            except OSError as error:
                failed = True
                errno = error.errno or 0
        bench.check(where)
        assert os.listdir("/proc/self/fd") == open_before, where
        assert bench.disks.reserved == [], where
        if failed:
            refused += 1
            assert errno == EDQUOT, where
            assert bench.shown() == _before(bench), where
    assert refused > len(names) // 3  # most of it comes before the commit


def _before(bench: Bench) -> dict[str, Contents]:
    before = {"here": bench.old}
    if bench.case.target is not move_ends.absent:
        before["there"] = bench.replaced
    return before


def test_no_rename_succeeds_from_some_step_on(bench: Bench) -> None:
    """So that what was renamed cannot be put back either. The rest works: it can still be removed."""
    renames = [name for name in record(bench.run) if name in RENAMES]
    for number in range(len(renames)):
        bench.set_up()
        with failing(number, EDQUOT, only=RENAMES, lasting=True), suppress(OSError):
            bench.run()
        bench.check(f"renames fail from number {number} on")
