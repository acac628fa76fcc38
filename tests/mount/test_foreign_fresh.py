"""How old what programs see can be, while others change it: a second, or what the kernel may remember.

Some change files, names and folders all the time, behind the vault and in it; others look at them in the
vault, in every way that programs have. Each look is compared with what was true when, to the moment. How
long a process has to wait for a processor is measured by one that looks at the same things behind the vault.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import time
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path

import pytest

from tests.support.at_once import at_once
from tests.support.freshness import Judgement, Key, Noted, Notes, judge
from tests.support.listening import until
from tests.support.vault import Storage, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

BOUND = 1.0  # seconds, that the documentation promises
ROUNDS, LONG_ROUNDS = 2, 20
BUSY, QUIET = 0.8, BOUND + 0.6  # seconds of a round in which things change, and do not
BLOCK = 4096  # read and written at once
LISTED = ("a", "b", "c")
SIDES = ("theirs", "ours")

Facts = dict[Key, Hashable]


def stamps(number: int, size: int = BLOCK) -> bytes:
    return b"%08d" % number * (size // 8)


def number_of(data: bytes) -> int:
    """The version, -1 if it is a mixture."""
    return int(data[:8]) if data == data[:8] * (len(data) // 8) else -1


def length(number: int) -> int:
    return 8 * (1 + 97 * number % 1000)


class Changer:
    """Changes things in a folder, one after the other, and notes what is true then.

    `side`: what its names begin with. Nobody else touches them.
    """

    def __init__(self, top: Path, side: str) -> None:
        self.notes = Notes()
        self._top = top
        self._side = side
        self._version = 0
        for name in ("folder", "list", "here"):
            self._path(name).mkdir()
        empty: Facts = {self._key("list", name): False for name in LISTED}
        self.notes.change(lambda: None, lambda: empty)
        self._steps = [
            step for name in dir(self) if name.startswith("step_") and (step := getattr(self, name))
        ]
        for step in self._steps:
            step()

    def _path(self, name: str) -> Path:
        return self._top / f"{self._side}-{name}"

    def _key(self, name: str, what: str) -> Key:
        return f"{self._side}-{name}", what

    def _status(self, name: str, *what: str) -> Facts:
        status = os.lstat(self._path(name))
        return {self._key(name, one): getattr(status, f"st_{one}") for one in what}

    def step_replaced(self) -> None:
        """Written beside, and renamed over: another size each time."""
        size = length(self._version)
        beside, path = self._path("beside"), self._path("replaced")
        beside.write_bytes(stamps(self._version, size))
        self.notes.change(
            partial(os.rename, beside, path),
            lambda: {
                self._key("replaced", "content"): (self._version, size),
                **self._status("replaced", "size", "mtime_ns"),
            },
        )

    def step_in_place(self) -> None:
        """One call, which changes neither size nor name."""

        def write() -> None:
            fd = os.open(self._path("in_place"), os.O_WRONLY | os.O_CREAT, 0o644)
            os.pwrite(fd, stamps(self._version), 0)
            os.close(fd)

        self.notes.change(
            write,
            lambda: {
                self._key("in_place", "block"): self._version,
                **self._status("in_place", "mtime_ns"),
            },
        )

    def step_sized(self) -> None:
        path = self._path("sized")
        path.touch()
        self.notes.change(
            partial(os.truncate, path, length(self._version)),
            partial(self._status, "sized", "size"),
        )

    def step_mode(self) -> None:
        path = self._path("mode")
        path.touch()
        self.notes.change(
            partial(os.chmod, path, 0o600 | self._version % 64),
            partial(self._status, "mode", "mode"),
        )

    def step_link(self) -> None:
        beside = self._path("link-beside")
        os.symlink(f"{self._version}", beside)
        self.notes.change(
            partial(os.rename, beside, self._path("link")),
            lambda: {self._key("link", "target"): f"{self._version}"},
        )

    def step_coming_and_going(self) -> None:
        """A name that is there or not."""
        path = self._path("coming")
        there = not self._version % 2
        self.notes.change(
            partial(path.write_bytes, b"") if there else partial(path.unlink, missing_ok=True),
            lambda: {self._key("coming", "exists"): there},
        )

    def step_kind(self) -> None:
        """A file, a folder, a link, nothing by turns."""
        path = self._path("kind")
        kinds: list[tuple[Callable[[], object], object]] = [
            (partial(path.write_bytes, b""), stat.S_IFREG),
            (partial(os.unlink, path), None),
            (partial(os.mkdir, path), stat.S_IFDIR),
            (partial(os.rmdir, path), None),
            (partial(os.symlink, "nowhere", path), stat.S_IFLNK),
            (partial(os.unlink, path), None),
        ]
        step, kind = kinds[self._version % len(kinds)]
        self.notes.change(step, lambda: {self._key("kind", "kind"): kind})

    def step_folder(self) -> None:
        """What a folder itself shows of what is done in it."""
        path = self._path("folder") / f"{self._version // 2}"
        self.notes.change(
            partial(os.rmdir if self._version % 2 else os.mkdir, path),
            partial(self._status, "folder", "nlink", "mtime_ns"),
        )

    def step_list(self) -> None:
        """One of some names in a folder comes or goes."""
        name = LISTED[self._version % len(LISTED)]
        path = self._path("list") / name
        there = not path.exists()
        self.notes.change(
            path.touch if there else path.unlink,
            lambda: {self._key("list", name): there},
        )

    def step_renamed(self) -> None:
        """A folder that has the one name or the other, with another file in it each time."""
        names = ["here", "there"]
        old, new = names if self._version % 2 else names[::-1]
        beside = self._path("who")
        beside.write_bytes(b"%08d" % self._version)

        def rename() -> None:
            if self._version:
                os.rename(self._path(old), self._path(new))

        self.notes.change(
            rename,
            lambda: {self._key(old, "exists"): False, self._key(new, "exists"): True},
        )
        self.notes.change(
            partial(os.rename, beside, self._path(new) / "who"),
            lambda: {self._key("who", "content"): self._version},
        )

    def turn(self, chance: random.Random) -> None:
        self._version += 1
        for step in chance.sample(self._steps, len(self._steps)):
            step()
            time.sleep(chance.choice((0.0, 0.001, 0.003)))


def change(top: Path, side: str, rounds: int) -> Notes:
    """Change things for a while, and rest for a while."""
    chance = random.Random(side)
    changer = Changer(top, side)
    for _ in range(rounds):
        end = time.monotonic() + BUSY
        while time.monotonic() < end:
            changer.turn(chance)
        time.sleep(QUIET)
    return changer.notes


def again(answer: Callable[[], Hashable]) -> Hashable:
    """The answer; None if the name is not there. The kernel looks again at a name that changes, but once."""
    for _ in range(10):
        try:
            return answer()
        except FileNotFoundError:
            return None
        except OSError as failure:
            if failure.errno != errno.ESTALE:
                raise
    raise AssertionError("the name changes faster than anybody can look")


class Looker:
    """Looks at what a Changer changes.

    `exact`: where the file system lets nobody read a block while it is being written.
    """

    def __init__(self, top: Path, side: str, exact: bool) -> None:
        self.notes = Notes()
        self._exact = exact
        self._top = top
        self._side = side
        self._kept = os.open(self._path("in_place"), os.O_RDONLY)
        self._sized = os.open(self._path("sized"), os.O_RDONLY)
        self._looks: list[tuple[Key, Callable[[], Hashable]]] = [
            (self._key("replaced", "content"), self._whole),
            (self._key("in_place", "block"), self._block),
            (self._key("in_place", "block"), lambda: self._number(os.pread(self._kept, BLOCK, 0))),
            (self._key("in_place", "mtime_ns"), lambda: os.fstat(self._kept).st_mtime_ns),
            (self._key("sized", "size"), lambda: os.fstat(self._sized).st_size),
            (self._key("link", "target"), lambda: os.readlink(self._path("link"))),
            (self._key("kind", "kind"), lambda: stat.S_IFMT(os.lstat(self._path("kind")).st_mode)),
        ]
        for name, what in (
            ("replaced", "size"),
            ("replaced", "mtime_ns"),
            ("in_place", "mtime_ns"),
            ("sized", "size"),
            ("mode", "mode"),
            ("folder", "nlink"),
            ("folder", "mtime_ns"),
        ):
            self._looks.append((self._key(name, what), partial(self._status, name, what)))
        for name in ("coming", "here", "there"):
            self._looks.append((self._key(name, "exists"), partial(self._path(name).exists)))

    def _path(self, name: str) -> Path:
        return self._top / f"{self._side}-{name}"

    def _key(self, name: str, what: str) -> Key:
        return f"{self._side}-{name}", what

    def _status(self, name: str, what: str) -> Hashable:
        found: Hashable = getattr(os.lstat(self._path(name)), f"st_{what}")
        return found

    def _whole(self) -> Hashable:
        data = self._path("replaced").read_bytes()
        return number_of(data), len(data)

    def _number(self, block: bytes) -> Hashable:
        if self._exact:
            return number_of(block)
        return min(int(block[at : at + 8]) for at in range(0, len(block), 8))

    def _block(self) -> Hashable:
        return self._number(self._path("in_place").read_bytes())

    def _who(self, name: str) -> Hashable:
        return int((self._path(name) / "who").read_bytes())

    def turn(self, chance: random.Random) -> None:
        for key, answer in chance.sample(self._looks, len(self._looks)):
            self.notes.look(key, partial(again, answer))
        for name in ("here", "there"):
            # By which name it can be reached is seen above.
            with contextlib.suppress(FileNotFoundError):
                self.notes.look(self._key("who", "content"), partial(self._who, name))
        start = time.monotonic()
        listed = os.listdir(self._path("list"))
        end = time.monotonic()
        self.notes += [
            Noted(self._key("list", name), name in listed, start, end) for name in LISTED
        ]


def look(top: Path, behind: Path, exact: bool, seconds: float) -> Notes:
    """Look at all things all the time."""
    chance = random.Random(1)
    end = time.monotonic() + seconds
    for side in SIDES:
        until((behind / f"{side}-there").exists, True)
    lookers = [Looker(top, side, exact) for side in SIDES]
    while time.monotonic() < end:
        for looker in lookers:
            looker.turn(chance)
        time.sleep(0.002)
    return Notes(note for looker in lookers for note in looker.notes)


def observe(place: Storage, branch: str, rounds: int, **options: object) -> tuple[Judgement, float]:
    """What is to be said of what was seen in the vault; and how long a process can be without a processor."""
    with serve(place, **options) as vault:  # type: ignore[arg-type]
        behind = vault.backing(branch) / "fresh"
        shown = vault.path / branch / "fresh"
        behind.mkdir()
        until(shown.is_dir, True)
        seconds = rounds * (BUSY + QUIET)
        exact = branch == "gamma"
        with vault.watched():
            theirs, ours, seen, native = at_once(
                seconds,
                [
                    partial(change, behind, SIDES[0], rounds),
                    partial(change, shown, SIDES[1], rounds),
                    partial(look, shown, behind, exact, seconds - 0.2),
                    partial(look, behind, behind, exact, seconds - 0.2),
                ],
            )
        shutil.rmtree(behind)
    natively = judge([*theirs, *ours], native)
    assert not natively.never, natively.never[:5]
    assert not natively.older_than(0), natively.older_than(0)
    return judge([*theirs, *ours], seen), native.longest_pause()


@pytest.mark.parametrize("branch", ["alpha", "gamma", "delta"], ids=["ext4", "xfs", "tmpfs"])
@pytest.mark.timeout(200)
def test_nothing_seen_is_older_than_a_second(
    place: Storage, branch: str, pytestconfig: pytest.Config
) -> None:
    rounds = LONG_ROUNDS if pytestconfig.getoption("--long") else ROUNDS
    seen, pause = observe(place, branch, rounds)
    assert not seen.never, seen.never[:5]
    assert not seen.older_than(BOUND + 2 * pause), (seen.older_than(BOUND), pause)


def test_without_events_nothing_is_older_than_what_the_kernel_may_remember(place: Storage) -> None:
    bound = 0.3
    seen, pause = observe(place, "alpha", ROUNDS, foreign_events=False, cache_seconds=bound)
    assert not seen.never, seen.never[:5]
    assert not seen.older_than(bound + 2 * pause), (seen.older_than(bound), pause)


def test_what_is_old_is_noticed(place: Storage) -> None:
    """Where nothing is heard of changes and the kernel remembers for long, the tests above would fail."""
    seen, pause = observe(place, "alpha", ROUNDS, foreign_events=False, cache_seconds=30)
    old = seen.older_than(BOUND + 2 * pause)
    assert {("theirs-sized", "size"), ("theirs-mode", "mode")} <= set(old), old
    assert any(what == "exists" for _, what in old), old


def test_many_files_at_once(place: Storage) -> None:
    """All of them are looked at, changed and removed within moments; after a second nothing old is seen."""
    names = [f"{number}" for number in range(2000)]
    with serve(place) as vault, vault.watched():
        behind, shown = vault.backing("alpha") / "many", vault.path / "alpha/many"
        behind.mkdir()

        def everything(top: Path) -> dict[str, object]:
            found: dict[str, object] = {}
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(top / name)
                    mode, content = status.st_mode, (top / name).read_bytes()
                    found[name] = mode, status.st_size, status.st_mtime_ns, content
            return {**found, "listed": sorted(os.listdir(top))}

        def settled(old: object) -> None:
            """Old answers for a second, and the time that the changes are still being made."""
            start = time.monotonic()
            truth = everything(behind)
            natively = time.monotonic() - start
            time.sleep(max(0.0, BOUND - natively))
            assert truth != old
            got = everything(shown)
            wrong = [name for name in truth if got.get(name) != truth[name]]
            assert not wrong, (len(wrong), wrong[:5])
            assert got == truth

        nothing = everything(shown)
        for name in names:
            (behind / name).write_bytes(b"old")
        settled(nothing)
        old = everything(shown)
        for name in names:
            (behind / name).write_bytes(b"other")
        settled(old)
        old = everything(shown)
        for name in names[::3]:
            os.chmod(behind / name, 0o640)
        for name in names[1::3]:
            os.unlink(behind / name)
        for name in names[2::3]:
            (behind / "beside").write_bytes(b"replaced")
            os.rename(behind / "beside", behind / name)
        settled(old)
        shutil.rmtree(behind)
