"""Power cuts: after any write to the disks, everything is whole under its old or its new name.

Recorded below the file systems (tests.support.recorder): a move is made, then the disks are rebuilt as they
were after some of the writes, mounted, and recovered.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import EIO, ENOSPC
from pathlib import Path

import pytest

from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from session_agent.moves import engine
from tests.support.disks import contents
from tests.support.moving import Disks, Recorded
from tests.support.recorder import Recorder, Step, power_cut, recorded
from tests.support.storage import run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.timeout(600)]

KINDS = {"ext4": ["-F", "-E", "lazy_itable_init=1"], "xfs": ["-f"]}
SIZES = {"ext4": 48 << 20, "xfs": 300 << 20}
CUTS = 50  # a case and a pair of disks
LONG_CUTS = 200


@contextmanager
def _mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    run("mount", "-o", "loop", str(image), str(folder))
    try:
        yield folder
    finally:
        run("umount", str(folder))


@dataclass(frozen=True)
class Case:
    """A move and what is there before. The journal lies on the source's disk."""

    prepare: Callable[[Path, Path], None]
    flags: int = 0
    background: bool = False


def _file(source: Path, target: Path) -> None:
    (source / "here").write_bytes(os.urandom(300_000))


def _file_over_file(source: Path, target: Path) -> None:
    _file(source, target)
    (target / "there").write_bytes(os.urandom(50_000))


def _tree(source: Path, target: Path) -> None:
    for folder in range(4):
        (source / f"here/{folder}").mkdir(parents=True)
        for note in range(5):
            (source / f"here/{folder}/{note}").write_bytes(os.urandom(3000 * note))


CASES = {
    "a file": Case(_file),
    "a file over a file": Case(_file_over_file),
    "a tree": Case(_tree),
    "a tree in the background": Case(_tree, background=True),
    "an exchange": Case(_file_over_file, RENAME_EXCHANGE),
}


@contextmanager
def _images(base: Path, kinds: tuple[str, str]) -> Iterator[list[Path]]:
    """In memory: the disks of this machine are not what is tested."""
    images = [base / f"image{number}" for number in range(2)]
    for image, kind in zip(images, kinds, strict=True):
        with open(image, "wb") as file:
            file.truncate(SIZES[kind])
        run(f"mkfs.{kind}", "-q", *KINDS[kind], str(image), patience=60)
    yield images


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    base = Path("/dev/shm") / f"session-agent-{os.getpid()}"
    base.mkdir()
    yield base
    shutil.rmtree(base)


def _recorded_in(source: Path, target: Path) -> Recorded:
    return Recorded(Disks(source / "data", target / "data"), source / "state")


def _seen(work: Recorded) -> tuple[dict[str, bytes], dict[str, bytes]]:
    return contents(work.disks.source), contents(work.disks.target)


@dataclass
class Run:
    """What was recorded of a move."""

    before: tuple[dict[str, bytes], dict[str, bytes]]
    after: tuple[dict[str, bytes], dict[str, bytes]]
    durable_before: list[Step]
    of_the_move: list[Step]


@contextmanager
def _run(base: Path, images: list[Path], case: Case) -> Iterator[Run]:
    with ExitStack() as stack:
        served = [base / f"served{number}" for number in range(2)]
        for image, copy in zip(images, served, strict=True):
            run("cp", "--sparse=always", str(image), str(copy), patience=60)
        recorder = stack.enter_context(recorded(base / "fuse", base / "log", served))
        with (
            _mounted(recorder.folder / "0", base / "a") as a,
            _mounted(recorder.folder / "1", base / "b") as b,
        ):
            work = _recorded_in(a, b)
            for folder in (work.disks.source, work.disks.target):
                folder.mkdir()
            case.prepare(work.disks.source, work.disks.target)
            with work.journal():
                pass
            os.sync()
            before = _seen(work)
            begun = recorder.position
            ends = (work.disks.source / "here", work.disks.target / "there")
            work.move(*ends, case.flags, background=case.background)
            ended = recorder.position
            after = _seen(work)
        yield Run(
            before,
            after,
            recorder.steps(0, begun),
            recorder.steps(begun, ended),
        )


def _cuts(steps: list[Step], count: int, chance: random.Random) -> Iterator[list[Step]]:
    """States that the disks may be in: a prefix; or one without some of what was not flushed."""
    yield steps
    positions = sorted(chance.sample(range(len(steps)), min(count, len(steps))))
    for number, position in enumerate(positions):
        prefix = steps[:position]
        if number % 2:
            yield prefix
            continue
        flushed = [0, 0]
        for index, step in enumerate(prefix):
            if step.data is None:
                flushed[step.image] = index
        yield [
            step
            for index, step in enumerate(prefix)
            if index < flushed[step.image] or chance.random() < 0.5
        ]


@pytest.mark.parametrize("kinds", [("ext4", "xfs"), ("xfs", "ext4")], ids="-".join)
@pytest.mark.parametrize("name", CASES)
def test_power_cuts(
    memory: Path,
    name: str,
    kinds: tuple[str, str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    count = LONG_CUTS if request.config.getoption("--long") else CUTS
    chance = random.Random(name)
    case = CASES[name]
    with _images(memory, kinds) as images, _run(memory, images, case) as run_:
        assert run_.before != run_.after
        assert any(step.data is None for step in run_.of_the_move), "nothing was flushed"
        copies = [memory / f"cut{number}" for number in range(2)]
        met = set()
        monkeypatch.setattr(engine, "boot_id", lambda: "after the cut")
        for number, steps in enumerate(_cuts(run_.of_the_move, count, chance)):
            power_cut(images, copies, [*run_.durable_before, *steps])
            with _mounted(copies[0], memory / "a") as a, _mounted(copies[1], memory / "b") as b:
                work = _recorded_in(a, b)
                work.recover()
                seen = _seen(work)
                where = f"cut {number}, after {len(steps)} of {len(run_.of_the_move)} steps"
                assert seen in (run_.before, run_.after), where
                assert work.disks.reserved == [], where
                if number == 0:
                    assert seen == run_.after, "the move had returned, but is not durable"
                met.add(seen == run_.after)
        with capsys.disabled():
            sys.stdout.write(f"{number + 1} cuts in {len(run_.of_the_move)} writes and flushes ")
    assert met == {True, False} or case.background


@contextmanager
def _failing_target(memory: Path) -> Iterator[tuple[Recorder, Recorded]]:
    """A tree to move, and a target whose disk is recorded."""
    with _images(memory, ("ext4", "xfs")) as images, ExitStack() as stack:
        recorder = stack.enter_context(recorded(memory / "fuse", memory / "log", [images[1]]))
        a = stack.enter_context(_mounted(images[0], memory / "a"))
        b = stack.enter_context(_mounted(recorder.folder / "0", memory / "b"))
        work = _recorded_in(a, b)
        for folder in (work.disks.source, work.disks.target):
            folder.mkdir()
        _tree(work.disks.source, work.disks.target)
        os.sync()
        yield recorder, work
        recorder.fail(0)


@pytest.mark.parametrize("errno", [EIO, ENOSPC])
def test_a_disk_that_fails(memory: Path, errno: int) -> None:
    """It takes no more writes: what is not known to be durable does not replace the source."""
    with _failing_target(memory) as (recorder, work):
        before = contents(work.disks.source)
        recorder.fail(errno)
        with pytest.raises(OSError, match=os.strerror(EIO)):
            work.move(work.disks.source / "here", work.disks.target / "there")
        assert contents(work.disks.source) == before
