"""Random sequences of operations on the vault, across branches, and on a plain folder: all answers agree.

Compared are every result and errno, and at the end the whole trees: as the vault shows them, as they lie
in the branches behind it, and as the plain folder holds them. What may differ, because a vault of several
file systems cannot do what one can, is written into `tests.support.oracle`, and nowhere else:

- a hard link across branches is refused (EXDEV);
- a file with several links, moved to another branch, is split from the links that stay.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import unittest
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, note, settings

from tests.support.oracle import BRANCHES, Operation, Oracle, Side, answer, tree
from tests.support.vault import Storage, Vault, drop_caches, serve, storage

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

SECONDS = 20.0  # for each of the two ways to serve
LONG_SECONDS = 900.0

SLOTS = 3
NOREPLACE, EXCHANGE = 1, 2

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


@contextlib.contextmanager
def forgetful_kernel() -> Iterator[None]:
    """It forgets whatever it need not remember, all the time, as it does when memory is short."""
    over = threading.Event()

    def forget() -> None:
        while not over.wait(0.05):
            drop_caches()

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def place() -> Iterator[Storage]:
    with storage() as mounted:
        yield mounted


@pytest.mark.timeout(LONG_SECONDS + 600)
@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of one that fails
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
            count["sequences"] += 1

        with contextlib.suppress(unittest.SkipTest), forgetful_kernel():
            sequence()
    sequences = count.pop("sequences")
    with capsys.disabled():
        print(f" {count.total()} operations in {sequences} sequences", end=" ")  # noqa: T201
    assert min(count.values()) > 0
    assert sequences > 20
