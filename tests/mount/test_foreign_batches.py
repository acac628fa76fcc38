"""Several foreign changes of one name, read in one go: what is told in the end is how things are.

The vault is stopped while they happen, as a busy machine may stop it for a moment.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.listening import Listener, last_words, listening, until
from tests.support.vault import Vault, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

ROUNDS, LONG_ROUNDS = 15, 500
FRESH = 1.0  # seconds after which everybody sees what there is
QUIET = 0.15  # seconds in which what must not come would have come


class Batch:
    """A folder with the file `x` and the folder `p` with the file `p/b`, which programs have seen."""

    def __init__(self, vault: Vault, shown: Path, behind: Path, listener: Listener) -> None:
        self.vault = vault
        self.shown = shown
        self.behind = behind
        self.listener = listener
        self.before: dict[str, int] = {}

    @contextlib.contextmanager
    def at_once(self) -> Iterator[Path]:
        """What is done in the block is heard of in one go; then everything is as it is behind the vault."""
        heard = len(self.listener.events())
        os.kill(self.vault.pid, signal.SIGSTOP)
        try:
            yield self.behind
        finally:
            os.kill(self.vault.pid, signal.SIGCONT)

        now = inodes(self.behind)
        names = {*self.before, *now}
        # Of what has gone or is another file by now, programs are to hear.
        same = {name: True for name in names if self.before.get(name) == now.get(name)}

        def misled() -> dict[str, list[str]]:
            events = self.listener.events()[heard:]
            words = {**dict.fromkeys(names), **same, **last_words(events)}
            wrong = [name for name, there in words.items() if there is not (name in now)]
            return {name: [event for event in events if event.endswith(name)] for name in wrong}

        until(misled, {}, patience=FRESH)
        for name in names:
            assert os.path.lexists(self.shown / name) == (name in now), name
        assert sorted(os.listdir(self.shown)) == sorted(os.listdir(self.behind))
        time.sleep(QUIET)
        assert not misled()
        for name in names:
            if os.path.lexists(self.behind / name):
                old, new = os.lstat(self.behind / name), os.lstat(self.shown / name)
                assert (old.st_mode, old.st_size) == (new.st_mode, new.st_size)

    def know(self) -> None:
        """Let the kernel know all of it."""
        self.before = inodes(self.behind)
        for name in self.before:
            os.lstat(self.shown / name)


def inodes(folder: Path) -> dict[str, int]:
    return {name: os.lstat(folder / name).st_ino for name in os.listdir(folder)}


@pytest.fixture(params=["alpha", "delta"], ids=["ext4", "tmpfs"])
def batch(vault: Vault, request: pytest.FixtureRequest) -> Iterator[Batch]:
    behind = vault.backing(request.param) / "batch"
    shown = vault.path / request.param / "batch"
    (behind / "p").mkdir(parents=True)
    (behind / "unseen").mkdir()
    (behind / "x").write_bytes(b"x")
    (behind / "p/b").write_bytes(b"b")
    until((shown / "p/b").exists, True)
    time.sleep(QUIET)
    with listening(shown) as listener:
        made = Batch(vault, shown, behind, listener)
        made.know()
        yield made
    shutil.rmtree(behind)
    until(shown.exists, False)


def test_moved_away_and_made_anew(batch: Batch) -> None:
    """To where nobody watches: whether it came somewhere is known when all has been read, and not before."""
    with batch.at_once() as behind:
        os.rename(behind / "x", behind / "unseen/x")
        (behind / "x").write_bytes(b"again")
    assert (batch.shown / "x").read_bytes() == b"again"


def test_moved_away_twice(batch: Batch) -> None:
    with batch.at_once() as behind:
        os.rename(behind / "x", behind / "unseen/x")
        (behind / "x").write_bytes(b"again")
        os.rename(behind / "x", behind / "unseen/y")


def test_moved_away_and_replaced_by_another(batch: Batch) -> None:
    with batch.at_once() as behind:
        os.rename(behind / "x", behind / "unseen/x")
        os.rename(behind / "p/b", behind / "x")
    assert (batch.shown / "x").read_bytes() == b"b"


def test_a_file_becomes_a_folder(batch: Batch) -> None:
    with batch.at_once() as behind:
        os.unlink(behind / "x")
        os.rename(behind / "p", behind / "x")
    assert os.listdir(batch.shown / "x") == ["b"]


def test_a_folder_becomes_a_file(batch: Batch) -> None:
    with batch.at_once() as behind:
        shutil.rmtree(behind / "p")
        os.rename(behind / "x", behind / "p")
    assert (batch.shown / "p").read_bytes() == b"x"


def test_a_folder_becomes_a_file_that_goes(batch: Batch) -> None:
    with batch.at_once() as behind:
        shutil.rmtree(behind / "p")
        (behind / "p").write_bytes(b"")
        os.unlink(behind / "p")


def test_a_file_becomes_a_folder_that_goes(batch: Batch) -> None:
    with batch.at_once() as behind:
        os.unlink(behind / "x")
        (behind / "x").mkdir()
        (behind / "x").rmdir()


def test_its_former_folder_goes(batch: Batch) -> None:
    with batch.at_once() as behind:
        os.rename(behind / "p/b", behind / "new")
        os.rmdir(behind / "p")
    assert (batch.shown / "new").read_bytes() == b"b"


def test_its_new_name_goes(batch: Batch) -> None:
    with batch.at_once() as behind:
        os.rename(behind / "x", behind / "new")
        os.unlink(behind / "new")


def test_its_old_name_comes_again(batch: Batch) -> None:
    with batch.at_once() as behind:
        os.rename(behind / "x", behind / "new")
        (behind / "x").mkdir()
    assert (batch.shown / "new").read_bytes() == b"x"


def test_two_change_their_names(batch: Batch) -> None:
    with batch.at_once() as behind:
        os.rename(behind / "x", behind / "between")
        os.rename(behind / "p", behind / "x")
        os.rename(behind / "between", behind / "p")
    assert (batch.shown / "p").read_bytes() == b"x"


def test_known_as_gone_already(batch: Batch) -> None:
    """A program finds out that it is gone before that is told; others are told all the same."""
    with batch.at_once() as behind:
        os.unlink(behind / "x")
        pid = os.fork()
        if pid == 0:
            os._exit(0 if outcome((batch.shown / "x").read_bytes) == "ENOENT" else 1)
        time.sleep(0.05)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.timeout(400)
def test_chances(batch: Batch, pytestconfig: pytest.Config) -> None:
    """Whatever happens in a batch."""
    chance = random.Random(8)
    names = ["x", "y", "p", "unseen/x", "p/b"]
    actions: list[Callable[[Path, Path], object]] = [
        lambda one, _: one.write_bytes(b"1" * chance.randrange(9)),
        lambda one, _: os.mkdir(one),
        lambda one, _: os.unlink(one),
        lambda one, _: os.rmdir(one),
        os.rename,
        os.rename,
    ]
    for _ in range(LONG_ROUNDS if pytestconfig.getoption("--long") else ROUNDS):
        batch.know()
        with batch.at_once() as behind:
            for _ in range(chance.randrange(1, 12)):
                with contextlib.suppress(OSError):
                    one, other = chance.choice(names), chance.choice(names)
                    chance.choice(actions)(behind / one, behind / other)
