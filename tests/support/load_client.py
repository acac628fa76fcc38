"""One of many programs that work in a vault at the same time and know what must be there.

    python -m tests.support.load_client VAULT NAME USER SECONDS SEED BRANCH...

works in VAULT/BRANCH/NAME and VAULT/BRANCH/common as USER, a number that only root may take on, until the
time is up or something is not as it must be: every answer is checked. At the end it prints a JSON object:
the latencies of each operation in microseconds, and how many lines it appended to each common log.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

FILES = 50  # at most, for each client
LINE = 100  # bytes of a line in a common log


def sealed(data: bytes) -> bytes:
    """`data` behind its own length and checksum."""
    return b"%10d " % len(data) + hashlib.sha256(data).digest() + data


def broken(data: bytes) -> str:
    """What is lost of what was sealed, added to it or mixed with something else; "" for nothing."""
    head, digest, rest = data[:11], data[11:43], data[43:]
    if head == b"%10d " % len(rest) and digest == hashlib.sha256(rest).digest():
        return ""
    return f"{head!r}, but {len(rest)} bytes, {'' if any(rest) else 'all of them zero'}"


class Client:
    """What one program does, and what it knows."""

    def __init__(self, vault: Path, name: str, seed: int, branches: list[str]) -> None:
        self.vault = vault
        self.name = name
        self.random = random.Random(seed)  # to be the same again
        self.branches = branches
        self.files: dict[Path, bytes] = {}
        self.next = 0
        self.lines: dict[str, int] = defaultdict(int)
        self.latencies: dict[str, list[int]] = defaultdict(list)
        self.kinds: list[tuple[int, Callable[[], None]]] = [
            (20, self.create),
            (25, self.read),
            (12, self.rename_within),
            (8, self.rename_across),
            (5, self.move_folder),
            (10, self.append),
            (5, self.rewrite),
            (8, self.list_folder),
            (10, self.unlink),
            (6, self.status),
            (4, self.links),
            (4, self.map),
            (6, self.add_line),
            (6, self.contend),
        ]

    def timed(self, what: str, start: int) -> None:
        """Note how long one system call, or opening, using and closing a file, has taken."""
        self.latencies[what].append((time.perf_counter_ns() - start) // 1000)

    def work(self, seconds: float) -> None:
        """Work until the time is up; AssertionError or OSError when something is wrong."""
        weights = [weight for weight, _ in self.kinds]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ((_, step),) = self.random.choices(self.kinds, weights)
            step()
        for path in list(self.files):
            self.check(path)
        for branch in self.branches:
            self.check_listing(self.vault / branch / self.name)

    # Where things are

    def folder(self) -> Path:
        return self.vault / self.random.choice(self.branches) / self.name

    def new_path(self, folder: Path | None = None) -> Path:
        self.next += 1
        return (folder or self.folder()) / f"{self.next} {'ü' * self.random.randrange(40)}"

    def any_file(self) -> Path | None:
        return self.random.choice(list(self.files)) if self.files else None

    def data(self) -> bytes:
        most = self.random.choice([10, 1000, 5000, 5000, 40_000, 200_000])
        return self.random.randbytes(self.random.randrange(most))

    # Its own files

    def create(self) -> None:
        if len(self.files) >= FILES:
            self.unlink()
        path, data = self.new_path(), self.data()
        start = time.perf_counter_ns()
        with open(path, "xb", buffering=0) as file:
            assert file.write(data) == len(data)
            if self.random.random() < 0.05:
                os.fsync(file.fileno())
        self.timed("create", start)
        self.files[path] = data

    def check(self, path: Path) -> None:
        start = time.perf_counter_ns()
        data = path.read_bytes()
        self.timed("read", start)
        assert data == self.files[path], (path, len(data), len(self.files[path]))

    def read(self) -> None:
        if path := self.any_file():
            self.check(path)

    def status(self) -> None:
        if path := self.any_file():
            start = time.perf_counter_ns()
            status = path.stat()
            self.timed("stat", start)
            assert (status.st_uid, status.st_size) == (os.geteuid(), len(self.files[path])), path

    def _renamed(self, path: Path, target: Path, what: str) -> None:
        data = self.files.pop(path)
        handle = os.open(path, os.O_RDONLY) if self.random.random() < 0.3 else -1
        start = time.perf_counter_ns()
        os.rename(path, target)
        self.timed(what, start)
        self.files[target] = data
        if handle >= 0:
            assert os.pread(handle, len(data) + 1, 0) == data, target
            os.close(handle)
        assert not path.exists(), path
        self.check(target)

    def rename_within(self) -> None:
        if path := self.any_file():
            others = [other for other in self.files if other.parent == path.parent != other]
            replacing = others and self.random.random() < 0.4
            target = self.random.choice(others) if replacing else self.new_path(path.parent)
            if target != path:
                self._renamed(path, target, "rename")

    def rename_across(self) -> None:
        if path := self.any_file():
            target = self.new_path()
            self._renamed(path, target, "rename" if path.parent == target.parent else "move")

    def move_folder(self) -> None:
        """A folder with files goes to another branch and its files back to where they are known."""
        folder = self.folder()
        inside = [path for path in self.files if path.parent == folder][:4]
        box, away = folder / "box", self.folder() / "box away"
        box.mkdir()
        for path in inside:
            os.rename(path, box / path.name)
        start = time.perf_counter_ns()
        os.rename(box, away)
        self.timed("move folder", start)
        assert sorted(os.listdir(away)) == sorted(path.name for path in inside)
        for path in inside:
            assert (away / path.name).read_bytes() == self.files[path], path
            os.rename(away / path.name, path)
            self.check(path)
        away.rmdir()
        assert not box.exists()

    def append(self) -> None:
        if path := self.any_file():
            data = self.data()
            if len(self.files[path]) > 300_000:
                self.files[path] = b""
                os.truncate(path, 0)
            start = time.perf_counter_ns()
            with open(path, "ab", buffering=0) as file:
                assert file.write(data) == len(data)
            self.timed("append", start)
            self.files[path] += data
            self.check(path)

    def rewrite(self) -> None:
        """In the middle, by a descriptor that reads as well."""
        if (path := self.any_file()) and (old := self.files[path]):
            offset = self.random.randrange(len(old))
            data = self.random.randbytes(self.random.randrange(1, 9000))
            with open(path, "r+b", buffering=0) as file:
                os.pwrite(file.fileno(), data, offset)
                self.files[path] = old[:offset] + data + old[offset + len(data) :]
                assert os.pread(file.fileno(), 1 << 20, 0) == self.files[path], path

    def map(self) -> None:
        if (path := self.any_file()) and (old := self.files[path]):
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
                assert mapped[:] == old, path
                mapped[-1:] = b"!"
            self.files[path] = old[:-1] + b"!"

    def unlink(self) -> None:
        if path := self.any_file():
            start = time.perf_counter_ns()
            path.unlink()
            self.timed("unlink", start)
            del self.files[path]
            with suppress(FileNotFoundError):
                path.stat()
                raise AssertionError(f"{path} is still there")

    def links(self) -> None:
        if path := self.any_file():
            second, symbolic = self.new_path(path.parent), self.new_path(path.parent)
            os.link(path, second)
            os.symlink(second.name, symbolic)
            with open(
                path, "rb"
            ) as file:  # else a moved file's number may change between the calls
                number = os.fstat(file.fileno()).st_ino
                assert os.stat(symbolic).st_ino == os.stat(path).st_ino == number
            assert (os.stat(path).st_nlink, symbolic.read_bytes()) == (2, self.files[path])
            path.unlink()
            os.rename(second, path)
            assert not symbolic.exists()
            symbolic.unlink()
            assert os.stat(path).st_nlink == 1

    def check_listing(self, folder: Path) -> None:
        start = time.perf_counter_ns()
        names = sorted(os.listdir(folder))
        self.timed("list", start)
        assert names == sorted(path.name for path in self.files if path.parent == folder), folder

    def list_folder(self) -> None:
        self.check_listing(self.folder())

    # What all work at

    def add_line(self) -> None:
        """A line to a log that all the others append to as well."""
        branch = self.random.choice(self.branches)
        number = self.lines[branch]
        line = f"{self.name} {number} ".ljust(LINE - 1, "x") + "\n"
        start = time.perf_counter_ns()
        with open(self.vault / branch / "common/log", "ab", buffering=0) as log:
            assert log.write(line.encode()) == LINE
        self.timed("append to log", start)
        self.lines[branch] += 1

    def contend(self) -> None:
        """Read, replace, move or remove what the others do this to as well: it is whole, or not there."""
        folder = self.vault / self.random.choice(self.branches) / "common"
        wanted = folder / self.random.choice("abc")
        try:
            data = wanted.read_bytes()
            assert not broken(data), (wanted, broken(data), "again:", broken(wanted.read_bytes()))
            if self.random.random() < 0.2:
                wanted.unlink()
            elif self.random.random() < 0.3:
                other = self.vault / self.random.choice(self.branches) / "common"
                os.rename(wanted, other / wanted.name)
        except FileNotFoundError:
            pass
        except OSError as error:  # it was replaced or removed just now
            if error.errno not in (errno.ESTALE, errno.EBUSY):
                raise
        beside = self.new_path(folder)
        beside = folder / f"{self.name} {beside.name}"
        beside.write_bytes(sealed(self.data()))
        os.rename(beside, wanted)


def main() -> None:
    """As the module's text says."""
    vault, name, user, seconds, seed, *branches = sys.argv[1:]
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    client = Client(Path(vault), name, int(seed), branches)
    client.work(float(seconds))
    print(json.dumps({"latencies": client.latencies, "lines": client.lines}))  # noqa: T201


if __name__ == "__main__":
    main()
