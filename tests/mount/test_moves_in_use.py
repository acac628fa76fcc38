"""Moves between branches of what is in use meanwhile: no write is lost, and nobody sees half of anything."""

from __future__ import annotations

import fcntl
import functools
import mmap
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.mount.test_moves import EXCHANGE, behind, rename
from tests.support.trees import content
from tests.support.vault import Vault, drop_caches, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

PAIRS = [("alpha", "beta"), ("gamma", "delta"), ("", "alpha")]
_PROCESSES = multiprocessing.get_context("fork")


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(name or "root" for name in pair))
def ends(vault: Vault, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A folder in each of two branches."""
    first, second = (vault.path / branch / "folder" for branch in request.param)
    first.mkdir()
    second.mkdir()
    yield first, second
    for folder in (first, second):
        left = [name for name in os.listdir(behind(vault, folder)) if name.startswith(".~")]
        shutil.rmtree(folder)
        assert left == []


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


# Open handles


def test_handles_of_every_kind_come_along(vault: Vault, ends: tuple[Path, Path]) -> None:
    source, target = ends[0] / "file", ends[1] / "moved"
    source.write_bytes(b"0123456789")
    flags = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_SYNC)
    reading, writing, both, appending, synchronous = fds = [os.open(source, flag) for flag in flags]
    os.lseek(reading, 5, os.SEEK_SET)
    number = os.fstat(reading).st_ino
    rename(source, target)
    os.pwrite(writing, b"W", 0)
    os.pwrite(both, b"B", 1)
    os.write(appending, b"A")
    os.pwrite(synchronous, b"S", 2)
    os.fsync(writing)
    assert os.read(reading, 100) == b"56789A"
    assert behind(vault, target).read_bytes() == target.read_bytes() == b"WBS3456789A"
    for fd in fds:
        status = os.fstat(fd)
        assert (status.st_ino, status.st_size, status.st_nlink) == (number, 11, 1)
    os.ftruncate(both, 3)
    os.fchmod(reading, 0o600)
    os.setxattr(reading, "user.a", b"1")
    assert behind(vault, target).read_bytes() == b"WBS"
    assert os.stat(behind(vault, target)).st_mode & 0o777 == 0o600
    assert os.getxattr(behind(vault, target), "user.a") == b"1"
    target.unlink()
    os.pwrite(both, b"still", 0)
    assert os.pread(reading, 10, 0) == b"still"
    assert os.fstat(reading).st_nlink == 0
    for fd in fds:
        os.close(fd)


def test_handles_on_what_is_replaced_stay(vault: Vault, ends: tuple[Path, Path]) -> None:
    source, target, link = ends[0] / "file", ends[1] / "file", ends[1] / "link"
    source.write_bytes(b"new")
    target.write_bytes(b"old content")
    with open(target, "r+b", buffering=0) as old:
        rename(source, target)
        assert old.read() == b"old content"
        old.write(b", and more")
        old.seek(0)
        assert old.read() == b"old content, and more"
        status = os.fstat(old.fileno())
        assert (status.st_nlink, status.st_size) == (0, 21)
        os.ftruncate(old.fileno(), 3)
        assert target.read_bytes() == b"new"
        assert os.stat(target).st_ino != status.st_ino
        drop_caches()
        assert os.pread(old.fileno(), 10, 0) == b"old"
    os.link(target, link)
    source.write_bytes(b"newer")
    with open(target, "r+b", buffering=0) as old:
        rename(source, target)
        old.write(b"NEW")
        assert os.fstat(old.fileno()).st_nlink == 1
    assert (target.read_bytes(), link.read_bytes()) == (b"newer", b"NEW")


def test_handles_of_an_exchange_change_sides(ends: tuple[Path, Path]) -> None:
    one, other = ends[0] / "one", ends[1] / "other"
    one.mkdir()
    (one / "below").write_bytes(b"one")
    other.write_bytes(b"other")
    with open(one / "below", "ab", buffering=0) as first, open(other, "ab", buffering=0) as second:
        rename(one, other, EXCHANGE)
        first.write(b" 1")
        second.write(b" 2")
    assert (other / "below").read_bytes() == b"one 1"
    assert one.read_bytes() == b"other 2"


def test_a_mapping_comes_along(vault: Vault, ends: tuple[Path, Path]) -> None:
    source, target = ends[0] / "file", ends[1] / "moved"
    source.write_bytes(b"x" * 20_000)
    with open(source, "r+b") as file, mmap.mmap(file.fileno(), 20_000) as mapped:
        mapped[0:6] = b"before"
        rename(source, target)
        assert target.read_bytes()[:6] == b"before"
        mapped[10_000:10_005] = b"after"
        mapped.flush()
        assert behind(vault, target).read_bytes()[10_000:10_005] == b"after"
        with open(target, "r+b") as again:
            again.write(b"file")
        assert mapped[0:6] == b"filere"


def test_locks_come_along(ends: tuple[Path, Path]) -> None:
    source, target = ends[0] / "file", ends[1] / "moved"
    source.write_bytes(b"1")
    with open(source, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rename(source, target)
        with open(target, "r+b") as other:
            assert outcome(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)) == "EAGAIN"


def test_a_folder_in_use_comes_along(vault: Vault, ends: tuple[Path, Path]) -> None:
    tree, target = ends[0] / "tree", ends[1] / "moved"
    (tree / "work/deep").mkdir(parents=True)
    (tree / "work/file").write_bytes(b"1")
    here = os.getcwd()
    fd = os.open(tree / "work/deep", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(tree / "work")
        rename(tree, target)
        Path("new").write_bytes(b"2")
        os.mkdir("folder", dir_fd=fd)
        assert os.getcwd() == str(target / "work")
        assert sorted(os.listdir()) == ["deep", "file", "new"]
        assert os.listdir(fd) == ["folder"]
        assert os.path.samestat(os.stat(".."), os.stat(target))
        assert sorted(os.listdir(behind(vault, target) / "work")) == ["deep", "file", "new"]
        os.rename("new", "../up")
        assert (target / "up").read_bytes() == b"2"
        rename(target / "work/deep", tree)  # a part of it back again
        os.rename("../up", f"/proc/self/fd/{fd}/back")
        assert (tree / "back").read_bytes() == b"2"
    finally:
        os.chdir(here)
        os.close(fd)


def test_a_listing_goes_on_in_the_new_place(ends: tuple[Path, Path]) -> None:
    tree, target = ends[0] / "tree", ends[1] / "moved"
    tree.mkdir()
    names = {f"entry {number} {'x' * 150}" for number in range(700)}
    for name in names:
        (tree / name).touch()
    listed = []
    with os.scandir(tree) as entries:
        for _ in range(10):
            listed.append(next(entries).name)
        rename(tree, target)
        listed += [entry.name for entry in entries]
    assert len(listed) == len(names)
    assert set(listed) == names


def test_the_folder_that_is_replaced_while_in_use(ends: tuple[Path, Path]) -> None:
    (ends[0] / "new").mkdir()
    (ends[0] / "new/file").write_bytes(b"1")
    (ends[1] / "old").mkdir()
    here = os.getcwd()
    try:
        os.chdir(ends[1] / "old")
        rename(ends[0] / "new", ends[1] / "old")
        assert outcome(lambda: os.open("x", os.O_CREAT | os.O_WRONLY)) == "ENOENT"
        assert outcome(lambda: os.stat("file")) == "ENOENT"
        assert os.stat(".").st_nlink in (0, 1, 2)
    finally:
        os.chdir(here)
    assert os.listdir(ends[1] / "old") == ["file"]


# Other programs meanwhile


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
