"""Moves between branches of what is in use meanwhile: no write is lost, and nobody sees half of anything."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.support.cases import rename
from tests.support.ends import folders_in, pair_name
from tests.support.trees import content
from tests.support.vault import Vault, outcome

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.usefixtures("nothing_left_in_branches"),
]

EXCHANGE = 2

_PROCESSES = multiprocessing.get_context("fork")


@pytest.fixture(params=[("alpha", "beta"), ("gamma", "delta"), ("", "alpha")], ids=pair_name)
def ends(vault: Vault, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A folder in each of two branches: fewer pairs than elsewhere."""
    with folders_in(vault, request.param) as folders:
        yield folders


@contextmanager
def meanwhile(work: Callable[[Connection], object]) -> Iterator[Connection]:
    """`work` in another process; it sends what it found when it is told "stop"."""
    ours, theirs = _PROCESSES.Pipe()
    process = _PROCESSES.Process(target=work, args=(theirs,))
    process.start()
    try:
        assert ours.poll(10)
        assert ours.recv() == "started"
        yield ours
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join(10)
        ours.close()
        theirs.close()
    assert process.exitcode == 0


def finished(connection: Connection) -> Any:
    connection.send("stop")
    assert connection.poll(20)
    return connection.recv()


def test_no_line_of_a_log_is_lost(vault: Vault, ends: tuple[Path, Path]) -> None:
    """A program appends to a file that goes to and fro."""
    path = [ends[0] / "log", ends[1] / "log"]
    path[0].touch()

    def write(connection: Connection) -> None:
        count = 0
        with open(path[0], "ab", buffering=0) as log:
            connection.send("started")
            while not connection.poll():
                log.write(b"%09d\n" % count)
                count += 1
        connection.send(count)

    with meanwhile(write) as connection:
        for number in range(30):
            source, target = path[number % 2], path[1 - number % 2]
            assert outcome(lambda: rename(source, target)) is None  # noqa: B023
        count = finished(connection)
    assert count > 30
    assert path[0].read_bytes() == b"".join(b"%09d\n" % number for number in range(count))
    assert not path[1].exists()


def test_no_new_file_is_lost(vault: Vault, ends: tuple[Path, Path]) -> None:
    """A program makes and changes files in its working folder, whose parent goes to and fro."""
    tree = [ends[0] / "tree", ends[1] / "tree"]
    (tree[0] / "work").mkdir(parents=True)

    def work(connection: Connection) -> None:
        os.chdir(tree[0] / "work")
        count, problems = 0, set()
        connection.send("started")
        while not connection.poll():
            for step in (
                lambda: Path(f"{count}.new").write_bytes(b"%d" % count),  # noqa: B023
                lambda: os.rename(f"{count}.new", f"{count}.md"),  # noqa: B023
                lambda: os.utime(f"{count}.md", ns=(count, count)),  # noqa: B023
            ):
                done = outcome(step)
                if isinstance(done, str):
                    problems.add(done)
            count += 1
            if count > 3000:
                time.sleep(0.02)  # do not let the tree grow without end
        connection.send((count, sorted(problems)))

    with meanwhile(work) as connection:
        done = []
        for number in range(14):
            source, target = tree[number % 2], tree[1 - number % 2]
            done.append(outcome(lambda: rename(source, target)))  # noqa: B023
            if (
                done[-1] is not None
            ):  # it did not stop changing: the way back is to fail likewise, or not
                break
            time.sleep(0.02)
        count, problems = finished(connection)
    assert problems == []
    assert done == [None] * 14
    assert {path.name for path in (tree[0] / "work").iterdir()} == {f"{n}.md" for n in range(count)}
    for number in range(count):
        path = tree[0] / f"work/{number}.md"
        assert (path.read_bytes(), os.stat(path).st_mtime_ns) == (b"%d" % number, number)


COUNT = 12


def look_for_halves(ends: tuple[Path, Path], connection: Connection) -> None:
    """Follow one file after the other from the old name to the new one."""
    wrong: list[str] = []
    looks = number = 0
    connection.send("started")
    while number < COUNT:
        for end in ends:
            strange = set(os.listdir(end)) - {str(n) for n in range(COUNT)}
            wrong += [f"listed {name}" for name in strange]
        data = outcome((ends[0] / str(number)).read_bytes)
        arrived = data == "ENOENT"
        if arrived:
            data = outcome((ends[1] / str(number)).read_bytes)
        looks += 1
        if data != content(number, 1_000_000) * 3:
            wrong.append(f"{number}: {len(data) if isinstance(data, bytes) else data}")
        number += arrived
    connection.send((looks, wrong[:5]))


def test_nobody_sees_half_of_a_file(ends: tuple[Path, Path]) -> None:
    """Every look finds the whole file by its old name or by its new one."""
    for number in range(COUNT):
        (ends[0] / f"{number}").write_bytes(content(number, 1_000_000) * 3)
    with meanwhile(functools.partial(look_for_halves, ends)) as connection:
        for number in range(COUNT):
            rename(ends[0] / f"{number}", ends[1] / f"{number}")
            time.sleep(0.01)
        assert connection.poll(20)
        looks, wrong = connection.recv()
    assert wrong == []
    assert looks >= COUNT


def test_a_tree_is_whole_all_the_time(ends: tuple[Path, Path]) -> None:
    """To a program that has its top folder open, and looks at everything below it again and again."""
    tree = [ends[0] / "tree", ends[1] / "tree"]
    (tree[0] / "folder").mkdir(parents=True)
    for number in range(100):
        (tree[0] / f"folder/{number}").write_bytes(b"%d" % number)
    os.symlink("folder/7", tree[0] / "link")
    os.setxattr(tree[0] / "folder/5", "user.a", b"1")

    def look(connection: Connection) -> None:
        wrong: set[str] = set()
        looks = 0
        here = os.open(tree[0], os.O_RDONLY | os.O_DIRECTORY)
        os.chdir(here)
        connection.send("started")
        while not connection.poll():
            answers = (
                outcome(lambda: sorted(os.listdir("."))) == ["folder", "link"],
                outcome(lambda: len(os.listdir("folder"))) == 100,
                outcome(lambda: os.readlink("link")) == "folder/7",
                outcome(Path("link").read_bytes) == b"7",
                outcome(lambda: os.listxattr("folder/5")) == ["user.a"],
                outcome(lambda: os.stat("folder/9").st_size) == 1,
                outcome(lambda: os.stat("folder").st_nlink > 0),
                outcome(lambda: os.chmod("folder/9", 0o600)) is None,
                outcome(lambda: os.statvfs("folder").f_bsize > 0),
                outcome(lambda: os.stat("nothing")) == "ENOENT",
                outcome(lambda: len(os.listdir(here))) == 2,
            )
            wrong |= {f"step {index}" for index, good in enumerate(answers) if not good}
            looks += 1
        connection.send((looks, sorted(wrong)))

    with meanwhile(look) as connection:
        for number in range(20):
            rename(tree[number % 2], tree[1 - number % 2])
            time.sleep(0.02)
        looks, wrong = finished(connection)
    assert wrong == []
    assert looks > 2


def test_the_replaced_target_is_always_there(ends: tuple[Path, Path]) -> None:
    """Save by renaming over, from another branch: a reader finds an old version or a new one."""
    target = ends[1] / "note"
    target.write_bytes(b"%09d" % 0 * 10_000)

    def look(connection: Connection) -> None:
        wrong: list[str] = []
        versions = set()
        connection.send("started")
        while not connection.poll():
            found = outcome(target.read_bytes)
            if not isinstance(found, bytes) or found != found[:9] * 10_000:
                wrong.append(repr(found)[:100])
            else:
                versions.add(int(found[:9]))
        connection.send((sorted(versions), wrong[:5]))

    with meanwhile(look) as connection:
        for number in range(1, 40):
            (ends[0] / "new").write_bytes(b"%09d" % number * 10_000)
            rename(ends[0] / "new", target)
            time.sleep(0.005)
        versions, wrong = finished(connection)
    assert wrong == []
    assert versions


def test_two_moves_at_once(ends: tuple[Path, Path]) -> None:
    """Two programs move different folders against each other, a third both ends of one file."""

    def to_and_fro(name: str, first: int) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            connection.send("started")
            problems = []
            for number in range(20):
                source = ends[(number + first) % 2] / name
                target = ends[(number + first + 1) % 2] / name
                done = outcome(lambda: rename(source, target))  # noqa: B023
                if done is not None:
                    problems.append(done)
            while not connection.poll():
                time.sleep(0.01)
            connection.send(problems)

        return work

    for name, first in (("a", 0), ("b", 1)):
        (ends[first] / name / "below").mkdir(parents=True)
        (ends[first] / name / "below/file").write_bytes(content(first, 50_000))
    (ends[0] / "x").write_bytes(b"x")
    (ends[1] / "x").write_bytes(b"y")
    with meanwhile(to_and_fro("a", 0)) as one, meanwhile(to_and_fro("b", 1)) as two:
        for _ in range(20):
            rename(ends[0] / "x", ends[1] / "x", EXCHANGE)
        assert finished(one) == []
        assert finished(two) == []
    assert (ends[0] / "a/below/file").read_bytes() == content(0, 50_000)
    assert (ends[1] / "b/below/file").read_bytes() == content(1, 50_000)
    assert [(end / "x").read_bytes() for end in ends] == [b"x", b"y"]
    assert [sorted(os.listdir(end)) for end in ends] == [["a", "x"], ["b", "x"]]


def test_the_program_that_moves_is_killed(vault: Vault, ends: tuple[Path, Path]) -> None:
    """The agent finishes what it has begun, or it has not begun."""
    source, target = ends[0] / "tree", ends[1] / "tree"
    source.mkdir()
    for number in range(300):
        (source / str(number)).write_bytes(content(number, 3000))
    for delay in (0.0, 0.005, 0.02, 0.05):
        mover = _PROCESSES.Process(target=lambda: rename(source, target))
        mover.start()
        time.sleep(delay)
        assert mover.pid is not None
        os.kill(mover.pid, signal.SIGKILL)
        mover.join(20)
        deadline = time.monotonic() + 10
        while source.exists() == target.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert source.exists() != target.exists()
        found = source if source.exists() else target
        assert len(os.listdir(found)) == 300
        for number in range(0, 300, 7):
            assert (found / str(number)).read_bytes() == content(number, 3000)
        if found is target:
            rename(target, source)
