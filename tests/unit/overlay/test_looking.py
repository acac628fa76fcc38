"""Whose turn it is to be looked at, how often, and what is news: on plain folders, by a clock that jumps.

What real servers make of it is in tests/mount/test_foreign_remote.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing

from session_agent.fsutil.credentials import AGENT
from session_agent.overlay import looking, names
from session_agent.overlay.branches import OpenBranch, RemoteBranch
from session_agent.overlay.changes import Pending
from session_agent.overlay.counts import ForeignCounts
from session_agent.overlay.expiry import Absent, Expiry
from session_agent.overlay.inotify import CREATE, DELETE, MOVED_TO
from session_agent.overlay.looking import Looked, Looker
from session_agent.overlay.nodes import FolderNode
from session_agent.overlay.telling import Telling
from session_agent.overlay.vault import Vault
from tests.support.branches import branch as described


class Clock:
    """What looking takes for the time: the event loop's, which jumps, and what a test adds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return trio.current_time() + self.ahead

    def time_ns(self) -> int:
        return time.time_ns()


class Look(NamedTuple):
    at: float
    folder: bytes


class Recorded(Looker):
    """One that notes when it looks."""

    def __init__(self, telling: Telling, vault: Vault, per_minute: int) -> None:
        super().__init__(telling, vault.tree, per_minute, self._asked_to_watch)
        self.looks: list[Look] = []
        self.to_watch: list[FolderNode] = []

    def _asked_to_watch(self, folder: FolderNode) -> bool:
        self.to_watch.append(folder)
        return False

    async def _look(self, looked: Looked) -> None:
        self.looks.append(Look(trio.current_time(), looked.folder.name))
        await super()._look(looked)

    def times(self, name: bytes) -> list[float]:
        return [look.at for look in self.looks if look.folder == name]


class Place:
    """A branch over the folder `behind`, and what looks at it. Made within the event loop."""

    def __init__(self, base: Path, remote: bool, per_minute: int) -> None:
        self.behind = base / "one"
        self.behind.mkdir(exist_ok=True)
        (base / "root").mkdir(exist_ok=True)
        top = OpenBranch(0, described(""), os.open(base / "root", os.O_PATH))
        fd = os.open(self.behind, os.O_PATH)
        info = described("one")
        self.branch = RemoteBranch(1, info, fd, 5.0) if remote else OpenBranch(1, info, fd)
        self.vault = Vault(top, [self.branch], 1000)
        self.counts = ForeignCounts()
        self.telling = Telling(
            self.vault, self.branch, self.counts, Expiry(), Absent(), lambda *_: False
        )
        self.looker = Recorded(self.telling, self.vault, per_minute)
        self.root = self.vault.branch_roots[0]

    def close(self) -> None:
        self.looker.close()
        for branch in self.vault.branches:
            branch.close()

    async def folder(self, name: str, front: bool = False) -> FolderNode:
        """A folder in the branch that is looked at."""
        (self.behind / name).mkdir(exist_ok=True)
        node, _ = await names.lookup(self.vault, self.root.id, os.fsencode(name), AGENT)
        assert isinstance(node, FolderNode)
        self.looker.add(node)
        if front:
            self.in_front(node)
        return node

    def in_front(self, *folders: FolderNode) -> None:
        self.looker.put_in_front(lambda folder: folder in folders)

    async def look(self, folder: FolderNode) -> list[str]:
        """Look at the folder now; what was to be told then."""
        looked = folder.watch
        assert isinstance(looked, Looked)
        await trio.sleep(1.0)
        await self.looker._look(looked)
        return self.told()

    def told(self) -> list[str]:
        """In words, sorted."""
        words = []
        for change in self.telling.pending.take(1000):
            name = change.name.decode()
            if change.source is not None:
                words.append(f"{change.source[1].decode()} to {name}")
            kinds = ("removed", "made", "contents", "attributes")
            words += [f"{kind} {name}" for kind in kinds if getattr(change, kind)]
        return sorted(words)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(looking, "time", made)
    return made


@pytest.fixture(params=["local", "remote"])
def remote(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "remote")


Test = Callable[[Place], Coroutine[Any, Any, None]]


class Loop:
    """Runs a test in an event loop whose clock jumps whenever nothing is to be done."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def __call__(self, test: Test, *, remote: bool = True, per_minute: int = 600) -> None:
        async def main() -> None:
            place = Place(self._base, remote, per_minute)
            try:
                await test(place)
            finally:
                place.close()

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


@pytest.fixture
def run(tmp_path: Path, clock: Clock) -> Loop:
    del clock  # is in place
    return Loop(tmp_path)


async def for_long(place: Place, seconds: float) -> None:
    """Look for so long, by the clock that jumps."""
    with trio.move_on_after(seconds):
        await place.looker.run()


# Whose turn it is


def test_whose_turn_it_is(run: Loop) -> None:
    async def test(place: Place) -> None:
        folders = [await place.folder(f"{number}") for number in range(4)]
        looker = place.looker
        now = trio.current_time()
        place.in_front(folders[3])
        for due, folder in zip((30.0, 10.0, 20.0, 40.0), folders, strict=True):
            looked = folder.watch
            assert isinstance(looked, Looked)
            looker._queue(looked, now + due)

        def turn(at: float) -> bytes:
            looked = looker._next(now + at)
            assert looked is not None
            return looked.folder.name

        assert turn(0) == b"1"  # none is due: the one that will be first
        assert turn(35) == b"1"  # that has waited longest
        looker._turn = 1
        assert turn(45) == b"3"  # in front
        looker._turn = looking._FRONT_TURNS
        assert turn(45) == b"1"  # but not at every turn
        looker.leave(folders[1])
        assert turn(45) == b"2"
        place.in_front()
        looker._queue(folders[3].watch, now + 50)  # type: ignore[arg-type]
        assert turn(60) == b"2"
        for folder in folders:
            looker.leave(folder)
        assert looker._next(now + 99) is None

    run(test)


def test_those_in_front_are_looked_at_most_and_the_others_all_the_same(run: Loop) -> None:
    async def test(place: Place) -> None:
        front = [await place.folder(f"front{number}") for number in range(20)]
        for number in range(20):
            await place.folder(f"behind{number}")
        place.in_front(*front)
        await for_long(place, 300.0)
        counts = [len(place.looker.times(b"front%d" % number)) for number in range(20)]
        assert max(counts) - min(counts) <= 2, "each of them as often"
        others = [len(place.looker.times(b"behind%d" % number)) for number in range(20)]
        assert min(others) >= 1
        assert max(others) - min(others) <= 2
        assert sum(counts) > 2 * sum(others)

    run(test, per_minute=30)


# How often


def test_no_more_than_are_allowed(run: Loop) -> None:
    async def test(place: Place) -> None:
        for number in range(10):
            await place.folder(f"{number}", front=number == 0)
        await for_long(place, 300.0)
        times = [look.at for look in place.looker.looks]
        assert 25 <= len(times) <= 31
        assert min(later - sooner for sooner, later in pairwise(times)) >= 9.9
        assert place.counts.polls == len(times)

    run(test, per_minute=6)


def test_a_large_folder_costs_more(run: Loop) -> None:
    async def test(place: Place) -> None:
        await place.folder("large")
        await place.folder("small")
        for number in range(2 * looking._PAGE):
            (place.behind / "large" / str(number)).touch()
        await for_long(place, 30.0)
        first, second = place.looker.looks[:2]
        assert (first.folder, second.folder) == (b"large", b"small")
        assert 2.9 <= second.at - first.at < 5

    run(test, per_minute=60)


@pytest.mark.parametrize(("front", "longest"), [(False, 300.0), (True, 15.0)])
def test_where_nothing_changes_less_and_less(run: Loop, front: bool, longest: float) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("quiet", front)
        await for_long(place, 2000.0)
        times = place.looker.times(b"quiet")
        pauses = [later - sooner for sooner, later in pairwise(times)]
        wanted = [min(2.0**number, longest) for number in range(1, len(pauses) + 1)]
        assert len(pauses) >= 10
        for pause, least in zip(pauses, wanted, strict=True):
            assert least <= pause < least + 1
        (place.behind / "quiet/new").touch()
        assert await place.look(folder) == ["made new"]
        assert isinstance(folder.watch, Looked)
        assert folder.watch.interval == looking._FIRST

    run(test)


def test_a_program_that_lists_a_folder_has_it_looked_at_soon(run: Loop) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("quiet")
        await for_long(place, 500.0)
        before = len(place.looker.looks)
        now = trio.current_time()
        for _ in range(1000):
            place.looker.used(folder)
        assert sum(map(len, place.looker._queues.values())) < 10, "that is remembered once"
        await for_long(place, 4.0)
        assert place.looker.looks[before].at < now + 2
        assert await place.look(folder) == []

    run(test)


def test_nothing_is_looked_at_while_too_much_waits_to_be_told(
    run: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pending, "LIMIT", 3)

    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        for number in range(3):
            place.telling.pending.made(folder, b"%d" % number)
        await for_long(place, 60.0)
        assert place.looker.looks == []
        place.told()
        await for_long(place, 60.0)
        assert place.looker.looks

    run(test)


def test_a_folder_that_is_forgotten_during_a_look(run: Loop) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        looked = folder.watch
        assert isinstance(looked, Looked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.looker._look, looked)
            while place.looker.looks == []:
                await trio.lowlevel.checkpoint()
            place.looker.leave(folder)
        assert place.looker.to_watch == []
        assert len(place.looker) == place.counts.polled == place.looker._remembered == 0

    run(test)


# What is news


def test_what_others_do(run: Loop, remote: bool) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        behind = place.behind / "folder"
        for name in ("changed", "gone", "mode", "old", "turned"):
            (behind / name).write_bytes(b"1")
        (behind / "below").mkdir()
        assert await place.look(folder) == [], "of what was there before nobody is told"
        (behind / "changed").write_bytes(b"22")
        (behind / "gone").unlink()
        (behind / "mode").chmod(0o600)
        (behind / "new").touch()
        (behind / "old").rename(behind / "renamed")
        (behind / "turned").unlink()
        (behind / "turned").mkdir()
        (behind / "below/inside").touch()  # which is told of below
        told = await place.look(folder)
        assert told == [
            *("attributes mode", "contents changed", "made new", "made turned", "old to renamed"),
            *("removed gone", "removed turned"),
        ]
        assert await place.look(folder) == []

    run(test, remote=remote)


def test_a_rename_that_is_none(run: Loop) -> None:
    """A number that was used again: a new file has other times."""

    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        behind = place.behind / "folder"
        (behind / "old").write_bytes(b"1")
        number = (behind / "old").stat().st_ino
        await place.look(folder)
        (behind / "old").rename(behind / "new")
        (behind / "new").write_bytes(b"2")
        assert (behind / "new").stat().st_ino == number
        assert await place.look(folder) == ["made new", "removed old"]

    run(test)


def test_two_names_of_one_file(run: Loop) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        behind = place.behind / "folder"
        (behind / "one").touch()
        os.link(behind / "one", behind / "two")
        await place.look(folder)
        (behind / "one").rename(behind / "renamed")
        (behind / "two").unlink()
        told = await place.look(folder)
        assert told in (["one to renamed", "removed two"], ["removed one", "two to renamed"])
        (behind / "renamed").unlink()
        assert await place.look(folder) == ["removed renamed"]

    run(test, remote=False)


def later_times(path: Path) -> None:
    """As a server gives them to what it was sent."""
    os.utime(path, (time.time() + 5, int(time.time()) + 5))


def test_times_that_come_late_are_no_news(run: Loop, clock: Clock) -> None:
    """Of a file that the vault has saved, renamed or moved; for a minute."""

    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        behind, looked = place.behind / "folder", folder.watch
        assert isinstance(looked, Looked)
        await place.look(folder)
        for name in ("saved", "renamed", "moved"):
            (behind / name).write_bytes(b"22")
        looked.saved(b"saved", 2)
        looked.expect(b"renamed", MOVED_TO)
        looked.settled(b"moved")
        assert await place.look(folder) == []
        for name in ("saved", "renamed", "moved"):
            later_times(behind / name)
        assert await place.look(folder) == []
        for name in ("saved", "renamed", "moved"):
            (behind / name).write_bytes(b"333")
        assert await place.look(folder) == [
            *("contents moved", "contents renamed", "contents saved")
        ]
        looked.saved(b"saved", 3)
        assert await place.look(folder) == []
        clock.ahead += looking._ECHO
        await place.look(folder)
        later_times(behind / "saved")
        assert await place.look(folder) == ["contents saved"]
        assert looked.own == {}

    run(test)


def test_what_is_large_gets_its_times_later(run: Loop, clock: Clock) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        large, looked = place.behind / "folder/large", folder.watch
        assert isinstance(looked, Looked)
        await place.look(folder)
        large.touch()
        os.truncate(large, 100_000_000)
        looked.saved(b"large", 100_000_000)
        assert await place.look(folder) == []
        clock.ahead += 500
        assert await place.look(folder) == []
        later_times(large)
        assert await place.look(folder) == []
        clock.ahead += 1000
        await place.look(folder)
        os.utime(large, (1, 1))
        assert await place.look(folder) == ["contents large"]

    run(test)


def test_what_the_vault_makes_and_removes_is_no_news(run: Loop, remote: bool) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        behind, looked = place.behind / "folder", folder.watch
        assert isinstance(looked, Looked)
        (behind / "removed").touch()
        await place.look(folder)
        (behind / "made").touch()
        looked.expect(b"made", CREATE)
        (behind / "removed").unlink()
        looked.expect(b"removed", DELETE)
        (behind / "theirs").touch()
        assert await place.look(folder) == ["made theirs"]
        # And then others are at the same names.
        (behind / "made").write_bytes(b"1")
        (behind / "removed").touch()
        assert await place.look(folder) == ["contents made", "made removed"]
        (behind / "made").unlink()
        (behind / "removed").unlink()
        assert await place.look(folder) == ["removed made", "removed removed"]
        assert looked.own == {}

    run(test, remote=remote)


def test_what_others_do_against_the_vault_before_it_is_looked_at(run: Loop, remote: bool) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        behind, looked = place.behind / "folder", folder.watch
        assert isinstance(looked, Looked)
        (behind / "note").touch()
        await place.look(folder)
        looked.expect(b"note", CREATE)
        (behind / "note").unlink()
        looked.expect(b"other", DELETE)
        (behind / "other").touch()
        assert await place.look(folder) == ["made other", "removed note"]

    run(test, remote=remote)


def test_what_the_vault_does_during_a_look_is_left_to_the_next_one(run: Loop, remote: bool) -> None:
    """The listing may be of before or after: a file that was half written, or removed by now."""

    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        behind, looked = place.behind / "folder", folder.watch
        assert isinstance(looked, Looked)
        await place.look(folder)
        (behind / "half").write_bytes(b"1")
        (behind / "short").write_bytes(b"1")
        found = {name: os.stat(behind / os.fsdecode(name)) for name in (b"half", b"short")}
        began = trio.current_time()
        await trio.sleep(0.1)
        (behind / "half").write_bytes(b"22")
        looked.saved(b"half", 2)
        (behind / "short").unlink()
        looked.expect(b"short", DELETE)
        place.looker._compare(looked, found, began)
        assert place.told() == []
        if not remote:
            return  # there what was written is known by its times (Node.announced)
        assert await place.look(folder) == []

    run(test, remote=remote)


def test_in_a_local_branch_times_are_right_at_once(run: Loop) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        behind, looked = place.behind / "folder", folder.watch
        assert isinstance(looked, Looked)
        await place.look(folder)
        (behind / "note").write_bytes(b"1")
        looked.expect(b"note", CREATE)
        assert await place.look(folder) == []
        (behind / "note").write_bytes(b"2")
        assert await place.look(folder) == ["contents note"]

    run(test, remote=False)


# What is remembered


def test_no_more_is_remembered_than_a_limit(run: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Looker, "LIMIT", 5)

    async def test(place: Place) -> None:
        small, large = await place.folder("small"), await place.folder("large")
        for number in range(3):
            (place.behind / "small" / str(number)).touch()
            (place.behind / "large" / str(number)).touch()
        for folder in (small, large, large):
            await place.look(folder)
        assert place.looker._remembered == 3
        (place.behind / "small/new").touch()
        (place.behind / "large/new").touch()
        assert await place.look(large) == [], "nothing is known of it"
        assert await place.look(small) == ["made new"]
        place.looker.leave(small)
        assert place.looker._remembered == 0
        await place.look(large)
        (place.behind / "large/newer").touch()
        assert await place.look(large) == ["made newer"]
        place.looker.close()
        assert place.looker._remembered == place.counts.polled == 0

    run(test)


def test_what_a_program_has_listed_is_what_later_looks_are_compared_with(run: Loop) -> None:
    async def test(place: Place) -> None:
        folder = await place.folder("folder")
        behind = place.behind / "folder"
        (behind / "seen").touch()
        place.looker.listed(folder, {b"seen": os.stat(behind / "seen")})
        (behind / "new").touch()
        place.looker.listed(folder, {})  # later: only a look tells programs that listen
        assert await place.look(folder) == ["made new"]

    run(test)
