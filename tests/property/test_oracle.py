"""Random sequences of operations on the vault, across branches, and on a plain folder: all answers agree.

Compared are every result and errno, and at the end the whole trees: as the vault shows them, as they lie
in the branches behind it, and as the plain folder holds them. What may differ, because a vault of several
file systems cannot do what one can, is written into `Oracle`, and nowhere else:

- a hard link across branches is refused (EXDEV);
- a file with several links, moved to another branch, is split from the links that stay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
import unittest
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, note, settings

from tests.support.vault import Storage, Vault, drop_caches, outcome, serve, storage

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

SECONDS = 35.0  # for each of the two ways to serve
LONG_SECONDS = 900.0

BRANCHES = ("alpha", "beta", "gamma")
SLOTS = 3
NOREPLACE, EXCHANGE = 1, 2

Operation = tuple[object, ...]

# Few names, so that the operations meet each other's files. Every one may turn out to be a file, a
# folder, a symbolic link to either, or nothing.
_names = st.sampled_from(["x", "y", "d", "d/x", "d/y", "d/e", "d/e/x", "f/g"])
_folders = st.sampled_from(["", "alpha/", "alpha/", "beta/", "gamma/"])
_paths = st.builds(str.__add__, _folders, _names)
_any_folder = st.one_of(_paths, st.sampled_from([".", *BRANCHES]))
_slots = st.integers(0, SLOTS - 1)
_data = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b"word" * 1500, b"0123456789" * 30_000]),
)
_sizes = st.sampled_from([0, 1, 3, 4096, 5000, 200_000])
_modes = st.sampled_from([0o644, 0o600, 0o755, 0o700, 0o444, 0o4755, 0o2755, 0o000])
# Times long past: what is as old as that was set, and nothing has changed it since.
_times = st.integers(1, 10**18).map(lambda time_ns: time_ns + 3)
_attributes = st.sampled_from(["user.one", "user.two"])
_open_flags = st.sampled_from(
    [
        os.O_RDONLY,
        os.O_RDONLY | os.O_DIRECTORY,
        os.O_WRONLY,
        os.O_RDWR,
        os.O_WRONLY | os.O_APPEND,
        os.O_RDWR | os.O_APPEND,
        os.O_RDWR | os.O_TRUNC,
        os.O_RDWR | os.O_CREAT,
        os.O_RDWR | os.O_CREAT | os.O_EXCL,
        os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    ]
)
_link_targets = st.sampled_from(["x", "d", "../beta/x", "../alpha", "nowhere", "./d/../y", "x/"])


def _call(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Operation]:
    return st.tuples(st.just(name), *arguments)


_renames = [_call("rename", _paths, _paths, st.sampled_from([0, 0, NOREPLACE, EXCHANGE]))]
_operations = st.one_of(
    *_renames * 5,  # the point of it all
    _call("create", _paths, _data, st.sampled_from([0, os.O_EXCL, os.O_TRUNC]), _modes),
    _call("create", _paths, _data, st.sampled_from([0, os.O_EXCL, os.O_TRUNC]), _modes),
    _call("append", _paths, _data),
    _call("overwrite", _paths, _sizes, _data),
    _call("truncate", _paths, _sizes),
    _call("read", _paths),
    _call("link", _paths, _paths),
    _call("symlink", _link_targets, _paths),
    _call("readlink", _paths),
    _call("unlink", _paths),
    _call("mkdir", _paths, _modes),
    _call("mkdir", _paths, _modes),
    _call("rmdir", _paths),
    _call("chmod", _paths, _modes),
    _call("utime", _paths, _times, _times, st.booleans()),
    _call("set_attribute", _paths, _attributes, st.binary(max_size=40), st.integers(0, 2)),
    _call("get_attribute", _paths, _attributes),
    _call("remove_attribute", _paths, _attributes),
    _call("list_attributes", _paths),
    _call("list", _any_folder),
    _call("status", _any_folder, st.booleans()),
    _call("open", _slots, _paths, _open_flags),
    _call("open", _slots, _paths, _open_flags),
    _call("handle_read", _slots, _sizes),
    _call("handle_write", _slots, _sizes, _data),
    _call("handle_write", _slots, _sizes, _data),
    _call("handle_status", _slots),
    _call("handle_truncate", _slots, _sizes),
    _call("handle_chmod", _slots, _modes),
    _call("handle_utime", _slots, _times),
    _call("handle_attribute", _slots, _attributes, st.binary(max_size=40)),
    _call("handle_list", _slots),
    _call("handle_sync", _slots),
    _call("close", _slots),
)
# A list of lists, because hypothesis makes short lists of either: a few dozen operations in all.
_sequences = st.lists(st.lists(_operations, min_size=1, max_size=40), min_size=1, max_size=20)


class Side:
    """The operations on one of the two trees. Each method answers what is to agree."""

    def __init__(self, base: Path) -> None:
        self.base = str(base)
        self.slots: dict[int, int] = {}

    def path(self, path: str) -> str:
        return f"{self.base}/{path}"

    def prepare(self) -> None:
        """Something of every kind, so that no sequence has to begin by making it."""
        for branch in BRANCHES:
            Path(self.path(branch)).mkdir(exist_ok=True)
        for folder in ("alpha/", "gamma/"):
            os.makedirs(self.path(folder + "d/e"))
            for name in ("x", "d/x", "d/e/x"):
                self.create(folder + name, (folder + name).encode(), 0, 0o644)
        os.link(self.path("alpha/d/x"), self.path("alpha/y"))

    def clear(self) -> None:
        for fd in self.slots.values():
            os.close(fd)
        self.slots.clear()
        for folder in ("", *BRANCHES):
            with os.scandir(self.path(folder)) as entries:
                listed = list(entries)
            for entry in listed:
                if not folder and entry.name in BRANCHES:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)

    # Names

    def rename(self, source: str, target: str, flags: int) -> None:
        rename(self.path(source), self.path(target), flags)

    def link(self, source: str, target: str) -> None:
        os.link(self.path(source), self.path(target), follow_symlinks=False)

    def symlink(self, text: str, path: str) -> None:
        os.symlink(text, self.path(path))

    def readlink(self, path: str) -> object:
        return os.readlink(self.path(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.path(path))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.path(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.path(path))

    def list(self, path: str) -> object:
        return sorted(os.listdir(self.path(path)))

    # Content

    def _through(
        self, path: str, flags: int, step: Callable[[int], object], mode: int = 0
    ) -> object:
        fd = os.open(self.path(path), flags, mode)
        try:
            return step(fd)
        finally:
            os.close(fd)

    def create(self, path: str, data: bytes, flags: int, mode: int) -> object:
        flags |= os.O_WRONLY | os.O_CREAT
        return self._through(path, flags, lambda fd: os.write(fd, data), mode)

    def append(self, path: str, data: bytes) -> object:
        return self._through(path, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, data))

    def overwrite(self, path: str, offset: int, data: bytes) -> object:
        return self._through(path, os.O_RDWR, lambda fd: os.pwrite(fd, data, offset))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.path(path), size)

    def read(self, path: str) -> object:
        return self._through(path, os.O_RDONLY, lambda fd: os.read(fd, 1 << 20))

    # Attributes

    def status(self, path: str, follow: bool) -> object:
        return shown(os.stat(self.path(path), follow_symlinks=follow))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.path(path), mode)

    def utime(self, path: str, accessed: int, modified: int, follow: bool) -> None:
        os.utime(self.path(path), ns=(accessed, modified), follow_symlinks=follow)

    def set_attribute(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.path(path), name, value, flags)

    def get_attribute(self, path: str, name: str) -> object:
        return os.getxattr(self.path(path), name)

    def remove_attribute(self, path: str, name: str) -> None:
        os.removexattr(self.path(path), name)

    def list_attributes(self, path: str) -> object:
        return sorted(os.listxattr(self.path(path), follow_symlinks=False))

    # Open handles

    def open(self, slot: int, path: str, flags: int) -> object:
        fd = os.open(self.path(path), flags, 0o640)
        self.close(slot)
        self.slots[slot] = fd
        return "opened"

    def close(self, slot: int) -> object:
        if slot in self.slots:
            os.close(self.slots.pop(slot))
        return None

    def handle_read(self, slot: int, offset: int) -> object:
        return os.pread(self.slots[slot], 300_000, offset)

    def handle_write(self, slot: int, offset: int, data: bytes) -> object:
        # At the end, if the handle is an appending one.
        return os.pwrite(self.slots[slot], data, offset)

    def handle_status(self, slot: int) -> object:
        return shown(os.fstat(self.slots[slot]))

    def handle_truncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.slots[slot], size)

    def handle_chmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.slots[slot], mode)

    def handle_utime(self, slot: int, modified: int) -> None:
        os.utime(self.slots[slot], ns=(modified, modified))

    def handle_attribute(self, slot: int, name: str, value: bytes) -> object:
        os.setxattr(self.slots[slot], name, value)
        return sorted(os.listxattr(self.slots[slot])), os.getxattr(self.slots[slot], name)

    def handle_list(self, slot: int) -> object:
        return sorted(os.listdir(self.slots[slot]))

    def handle_sync(self, slot: int) -> None:
        os.fsync(self.slots[slot])


class Oracle(Side):
    """The plain folder, with what a vault of several file systems does otherwise."""

    def __init__(self, base: Path, cached: bool) -> None:
        super().__init__(base)
        self.cached = cached

    def branch(self, path: str) -> str:
        """The branch that the entry `path` lies in, symbolic links on the way to it followed."""
        folder = os.path.realpath(os.path.dirname(self.path(path)))
        first = os.path.relpath(folder, self.base).split("/")[0]
        return first if first in BRANCHES else ""

    def link(self, source: str, target: str) -> None:
        folder = os.path.dirname(self.path(target))
        before = outcome(lambda: os.stat(folder))
        super().link(source, target)
        if self.branch(source) == self.branch(target):
            return
        # The kernel refuses for every other reason before the overlay is asked: the plain folder has
        # just done so too. What it has done instead is undone.
        os.unlink(self.path(target))
        assert isinstance(before, os.stat_result)
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
        raise OSError(18, "EXDEV")

    def rename(self, source: str, target: str, flags: int) -> None:
        across = self.branch(source) != self.branch(target)
        super().rename(source, target, flags)
        if across:
            self._split_links()

    def _split_links(self) -> None:
        """Where one file has names in two branches, those that stayed behind become a file of their own.

        The moved ones keep the inode, since open handles go with them. `note_homes` knows the others.
        """
        for names in self._linked():
            by_branch = defaultdict(list)
            for name in names:
                by_branch[self.branch(name)].append(name)
            if len(by_branch) > 1:
                stayed = self._home[os.lstat(self.path(names[0])).st_ino]
                self._separate(by_branch[stayed])

    def _linked(self) -> Iterator[list[str]]:
        """The names of every file that has several."""
        found = defaultdict(list)
        for folder, folders, files in os.walk(self.base):
            for name in (*files, *folders):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                    found[status.st_ino].append(os.path.relpath(path, self.base))
        yield from found.values()

    def note_homes(self) -> None:
        """Remember which branch each file with several links is in, before a rename."""
        self._home = {
            os.lstat(self.path(names[0])).st_ino: self.branch(names[0]) for names in self._linked()
        }

    def _separate(self, names: list[str]) -> None:
        """Make these names links of a copy."""
        first = self.path(names[0])
        new = self.base + "-copy"
        shutil.copy2(first, new, follow_symlinks=False)
        for name in names:
            folder = os.path.dirname(self.path(name))
            times = os.stat(folder)
            os.unlink(self.path(name))
            os.link(new, self.path(name), follow_symlinks=False)
            os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
        os.unlink(new)

    def undefined(self, operation: Operation) -> bool:
        """Whether the vault may do either of two things.

        A folder moves to another branch, a file below it has another link outside, and is open: the
        handle goes with the folder or stays with the other link, whichever name the overlay met last.

        An open file moves and a link of it stays, made in the second in which the kernel may answer from
        what it was told: until then the name that stays may lead to the moved file.
        """
        if operation[0] != "rename":
            return False
        self.note_homes()
        _, *ends, _ = operation
        if len({self.branch(str(end)) for end in ends}) == 1:
            return False
        tops = [self._real(str(end)) for end in ends if os.path.isdir(self.path(str(end)))]
        opened = {os.fstat(fd).st_ino for fd in self.slots.values()}
        for names in self._linked():
            if os.lstat(self.path(names[0])).st_ino in opened:
                below = {
                    any(f"{self.base}/{name}".startswith(top + "/") for top in tops)
                    for name in names
                }
                moves = any(
                    f"{self.base}/{name}" in map(self._real, map(str, ends)) for name in names
                )
                if len(below) == 2 or (moves and self.cached):
                    return True
        return False

    def _real(self, path: str) -> str:
        folder, name = os.path.split(self.path(path))
        return os.path.join(os.path.realpath(folder), name)


def rename(source: str, target: str, flags: int) -> None:
    from session_agent.fsutil.syscalls import renameat2  # noqa: PLC0415

    cwd = -100  # AT_FDCWD
    renameat2(cwd, os.fsencode(source), cwd, os.fsencode(target), flags)


def shown(status: os.stat_result) -> dict[str, object]:
    """What two file systems agree on. The number of links and size of a folder is each one's affair."""
    told: dict[str, object] = {
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "modified": status.st_mtime_ns if status.st_mtime_ns <= 10**18 + 3 else "lately",
    }
    if not stat.S_ISDIR(status.st_mode):
        told |= {"size": status.st_size, "links": status.st_nlink}
    return told


def answer(side: Side, operation: Operation) -> object:
    name, *arguments = operation
    if str(name).startswith("handle_") and arguments[0] not in side.slots:
        return "nothing open"
    result = outcome(lambda: getattr(side, str(name))(*arguments))
    # POSIX allows both for a folder that is not empty, and xfs gives the other one for rename.
    return "ENOTEMPTY" if name == "rename" and result == "EEXIST" and not arguments[2] else result


def tree(base: str, folders: dict[str, str]) -> dict[str, object]:
    """All that is below `base`, where the entries `folders` are to be found elsewhere."""
    found: dict[str, object] = {}
    pending = [("", base)]
    while pending:
        shown_as, folder = pending.pop()
        for name in sorted(os.listdir(folder)):
            path = folders.get(shown_as + name, f"{folder}/{name}")
            status = os.lstat(path)
            entry = shown(status)
            if stat.S_ISDIR(status.st_mode):
                pending.append((f"{shown_as}{name}/", path))
            elif stat.S_ISLNK(status.st_mode):
                entry["target"] = os.readlink(path)
            else:
                entry["content"] = Path(path).read_bytes()
            entry["attributes"] = {
                attribute: os.getxattr(path, attribute, follow_symlinks=False)
                for attribute in os.listxattr(path, follow_symlinks=False)
            }
            if shown_as + name in BRANCHES:
                entry = {}  # it is there from the start; its own attributes are the mount's
            found[shown_as + name] = entry
    return found


def run(
    vault: Vault, oracle_base: Path, cached: bool, operations: list[Operation], count: Counter[str]
) -> None:
    served, oracle = Side(vault.path), Oracle(oracle_base, cached)
    try:
        served.prepare()
        oracle.prepare()
        for number, operation in enumerate(operations):
            if oracle.undefined(operation):
                continue
            count[str(operation[0])] += 1
            expected = answer(oracle, operation)
            got = answer(served, operation)
            note(f"{number}: {operation!r:.200} -> {got!r:.200}")
            assert got == expected, operation
        plain = tree(str(oracle_base), {})
        assert tree(str(vault.path), {}) == plain
        backing = {name: str(vault.backing(name)) for name in BRANCHES}
        assert tree(str(vault.root), backing) == plain | {name: {} for name in BRANCHES}
        for slot in list(oracle.slots):
            for name in ("handle_status", "handle_list"):
                last = (name, slot)
                assert answer(served, last) == answer(oracle, last), last
    finally:
        served.clear()
        oracle.clear()


@pytest.fixture(scope="module")
def place() -> Iterator[Storage]:
    with storage() as mounted:
        yield mounted


@pytest.mark.timeout(LONG_SECONDS + 600)
@pytest.mark.parametrize(
    ("cache_seconds", "folder_limit"),
    [
        pytest.param(1.0, 4096, id="as usual"),
        pytest.param(0.0, 2, id="nothing cached"),  # every name is looked up, every folder reopened
    ],
)
def test_vault_agrees_with_plain_folder(
    place: Storage,
    pytestconfig: pytest.Config,
    capsys: pytest.CaptureFixture[str],
    cache_seconds: float,
    folder_limit: int,
) -> None:
    seconds = LONG_SECONDS if pytestconfig.getoption("--long") else SECONDS
    count: Counter[str] = Counter()
    branches = {name: place.branch(name) for name in BRANCHES}
    for name in BRANCHES:
        (place.root / name).mkdir(exist_ok=True)
    oracle_base = place.native / "oracle"
    oracle_base.mkdir(exist_ok=True)
    end = time.monotonic() + seconds
    failed = False

    with serve(place, branches, cache_seconds=cache_seconds, folder_limit=folder_limit) as vault:

        @settings(
            max_examples=1_000_000,
            suppress_health_check=list(HealthCheck),
            database=None,  # what is found goes into a test of its own
        )
        @given(sequences=_sequences)
        def sequence(sequences: list[list[Operation]]) -> None:
            nonlocal failed
            if time.monotonic() > end and not failed:
                # That ends the whole of it. But one that has failed must go on failing, to be made
                # smaller.
                raise unittest.SkipTest("the time is up")
            try:
                with vault.watched():
                    operations = [one for some in sequences for one in some]
                    run(vault, oracle_base, cache_seconds > 0, operations, count)
            except BaseException:
                failed = True
                raise
            if count["sequences"] % 50 == 0:
                drop_caches()
            count["sequences"] += 1

        with contextlib.suppress(unittest.SkipTest):
            sequence()
    sequences = count.pop("sequences")
    with capsys.disabled():
        print(f" {count.total()} operations in {sequences} sequences", end=" ")  # noqa: T201
    assert min(count.values()) > 0
    assert sequences > 20
