"""The agent is killed while it tells programs what others change: everything ends, nothing hangs for good."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.listening import listening, until
from tests.support.vault import Storage, Vault, serve, storage

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

PATIENCE = 20.0


@pytest.fixture(scope="module")
def place() -> Iterator[Storage]:
    with storage() as made:
        yield made


def at_work(folder: Path, stop: threading.Event, seed: int) -> None:
    """Make, rename and remove files until there is an error, or no need."""
    chance = random.Random(seed)
    names = [f"{number}" for number in range(20)]
    with contextlib.suppress(OSError):  # the vault is gone
        while not stop.is_set():
            with contextlib.suppress(FileNotFoundError):
                action = chance.randrange(4)
                if action == 0:
                    (folder / chance.choice(names)).write_bytes(b"1")
                elif action == 1:
                    os.unlink(folder / chance.choice(names))
                elif action == 2:
                    os.rename(folder / chance.choice(names), folder / chance.choice(names))
                else:
                    (folder / "sub" / chance.choice(names)).write_bytes(b"2")


def killed_at_work(place: Storage, seed: int) -> None:
    behind = place.branch("delta") / f"killed-{seed}"
    (behind / "sub").mkdir(parents=True)
    stop = threading.Event()
    with serve(place, {"delta": place.branch("delta")}) as vault:
        shown = vault.path / "delta" / behind.name
        os.listdir(shown / "sub")
        workers = [
            threading.Thread(target=at_work, args=(folder, stop, number), daemon=True)
            for number, folder in enumerate((shown, behind, shown / "sub", behind))
        ]
        for worker in workers:
            worker.start()
        time.sleep(random.Random(seed).uniform(0.05, 0.2))
        os.kill(vault.pid, signal.SIGKILL)
        until(lambda: is_ended(vault), True, PATIENCE)
        stop.set()
        for worker in workers:
            worker.join(PATIENCE)
            assert not worker.is_alive(), "a program still waits for the vault"


def is_ended(vault: Vault) -> bool:
    """Whether all of its threads have ended, one that waits for something included."""
    return len(os.listdir(f"/proc/{vault.pid}/task")) == 1 and "Z" in state_of(vault.pid)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


def test_it_ends_and_so_does_whoever_waits_for_it(place: Storage) -> None:
    for seed in range(30):
        with pytest.raises(AssertionError, match="did not end as told"):
            killed_at_work(place, seed)
        shutil.rmtree(place.branch("delta") / f"killed-{seed}")


def test_the_vault_goes_on_without_who_announces(place: Storage) -> None:
    """There are no events any more; what is remembered runs out as it does without them."""
    behind = place.branch("delta") / "without"
    behind.mkdir()
    with serve(place, {"delta": place.branch("delta")}) as vault:
        vault.expect("the process that announces foreign changes is gone")
        shown = vault.path / "delta/without"
        with listening(shown) as listener:
            (behind / "heard").touch()
            until(lambda: "CREATE heard" in listener.events(), True)
            os.kill(herald_of(vault.pid), signal.SIGKILL)
            until(lambda: "announces" in vault.log.read_text(), True)
            assert not (shown / "later").exists()
            (behind / "later").write_bytes(b"1")
            until((shown / "later").exists, True)
            (behind / "later").write_bytes(b"22")
            until(lambda: (shown / "later").stat().st_size, 2)
            (shown / "own").write_bytes(b"3")
            os.rename(shown / "own", shown / "renamed")
            assert (behind / "renamed").read_bytes() == b"3"
            assert "CREATE later" not in listener.events()
        vault.new_warnings()
    shutil.rmtree(behind)


def herald_of(pid: int) -> int:
    """The child with threads."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return next(int(child) for child in children if len(os.listdir(f"/proc/{child}/task")) > 1)
