"""The moment in which a background move's file comes to lie where it was shown: who looks just then."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.test_moves_background import DATA, arrived, until
from tests.support.cases import rename
from tests.support.ends import behind, folders_in, pair_name
from tests.support.vault import Storage, Vault, outcome, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

PAIRS = [("alpha", "gamma"), ("alpha", "remote"), ("remote", "alpha")]


@pytest.fixture(scope="module")
def served(place: Storage) -> Iterator[Vault]:
    branches = {name: place.branch(name) for name in ("alpha", "gamma")}
    branches["remote"] = place.branch("delta")
    with serve(place, branches, inline_bytes=1000, cache_seconds=0.0) as vault:
        yield vault


@pytest.fixture(params=PAIRS, ids=pair_name)
def ends(vault: Vault, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    with folders_in(vault, request.param) as folders:
        yield folders


@contextmanager
def held(vault: Vault, old: Path, new: Path, point: str) -> Iterator[None]:
    """The move has come to that point, and goes on when the block ends."""
    with vault.held_at(point):
        rename(old, new)
        until(lambda: vault.has_reached(point))
        yield


def test_a_file_that_is_opened_meanwhile(vault: Vault, ends: tuple[Path, Path]) -> None:
    """The handles have changed over, and the old file is still there: nobody is led to it any more."""
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    number = os.stat(old).st_ino

    def write() -> None:
        with open(new, "ab") as file:
            file.write(b"and more")

    writer = threading.Thread(target=write)
    with held(vault, old, new, "changed-over"):
        assert outcome(lambda: os.mkdir(new)) == "EEXIST"  # it is looked up
        writer.start()
        writer.join(0.3)
    writer.join()
    arrived(vault, old, new)
    assert os.stat(new).st_ino == number
    assert new.read_bytes() == behind(vault, new).read_bytes() == DATA + b"and more"


def test_a_folder_that_is_listed_meanwhile(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    old.mkdir()
    (old / "note").write_bytes(DATA)
    number = os.stat(old).st_ino
    with held(vault, old, new, "changed-over"):
        assert outcome(lambda: os.mkdir(new)) == "EEXIST"
        assert os.listdir(ends[1]) == ["new"]
    arrived(vault, old, new)
    assert os.stat(new).st_ino == number
    assert os.listdir(new) == ["note"]
    (new / "late").write_bytes(b"late")
    assert (behind(vault, new) / "late").read_bytes() == b"late"


def test_the_old_file_stays_if_its_handles_cannot_follow(
    vault: Vault, ends: tuple[Path, Path]
) -> None:
    """Somebody removes the copy just after it got its name: then the old file is all there is."""
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    vault.expect("the old name cannot be removed")
    vault.expect("FileNotFoundError")
    vault.expect("the old version is kept")
    with open(old, "ab", buffering=0) as file:
        with held(vault, old, new, "committed"):
            behind(vault, new).unlink()
        until(old.exists)
        file.write(b"and more")
    assert behind(vault, old).read_bytes() == DATA + b"and more"


def test_looked_up_all_the_time(vault: Vault, ends: tuple[Path, Path]) -> None:
    """While files move there and back, both names are looked up without a pause."""
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    over = threading.Event()

    def hammer(path: Path) -> None:
        while not over.is_set():
            with contextlib.suppress(FileNotFoundError):
                os.stat(path)

    hammers = [threading.Thread(target=hammer, args=(path,)) for path in (old, new)]
    for thread in hammers:
        thread.start()
    try:
        for _ in range(20):
            rename(old, new)
            with open(new, "ab") as file:
                file.write(b"+")
            arrived(vault, old, new)
            old, new = new, old
    finally:
        over.set()
        for thread in hammers:
            thread.join()
    assert behind(vault, old).read_bytes() == DATA + 20 * b"+"
