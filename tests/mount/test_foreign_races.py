"""The same names, changed behind the vault and in it by turns, while the agent announces the changes.

Whatever is being announced, a program in the vault gets the answer that a plain folder would have given:
every call is made there as well, and compared. The kernel keeps no names (`cache_seconds` 0), so that no
answer may be old.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.cases import rename
from tests.support.listening import listening, until
from tests.support.vault import Storage, Vault, outcome, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

NOREPLACE, EXCHANGE = 1, 2
NAMES = ("a", "b", "c", "d")
FOLDERS = ("p", "q")
STEPS = 2500


@pytest.fixture(scope="module")
def served(place: Storage) -> Iterator[Vault]:
    with serve(place, cache_seconds=0.0) as vault:
        yield vault


def new_file(path: Path) -> None:
    with open(path, "xb") as file:
        file.write(b"1")


def kind_of(path: Path) -> object:
    status = path.lstat()
    links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    return stat.S_IFMT(status.st_mode), oct(status.st_mode), links


ONE_NAME: dict[str, Callable[[Path], object]] = {
    "new": new_file,
    "write": lambda path: path.write_bytes(b"22"),
    "mkdir": os.mkdir,
    "symlink": lambda path: os.symlink("nowhere/at/all", path),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rmtree": shutil.rmtree,
    "stat": kind_of,
    "chmod": lambda path: os.chmod(path, 0o750),
    "truncate": lambda path: os.truncate(path, 3),
    "list": lambda path: sorted(os.listdir(path)),
}
TWO_NAMES: dict[str, Callable[[Path, Path], object]] = {
    "rename": os.rename,
    "rename new": lambda one, other: rename(one, other, NOREPLACE),
    "exchange": lambda one, other: rename(one, other, EXCHANGE),
    "link": lambda one, other: os.link(one, other, follow_symlinks=False),
}


def a_place(chance: random.Random) -> str:
    """A name in one of the folders, one of these folders, or a name in a folder below."""
    parts = [chance.choice(FOLDERS), chance.choice(NAMES), chance.choice(NAMES)]
    return "/".join(parts[: chance.choice((1, 2, 2, 2, 2, 3))])


def a_step(chance: random.Random) -> tuple[str, Callable[[Path], object]]:
    verb = chance.choice((*ONE_NAME, *TWO_NAMES))
    one, other = a_place(chance), a_place(chance)
    if verb in ONE_NAME:
        return f"{verb} {one}", lambda base: ONE_NAME[verb](base / one)
    return f"{verb} {one} {other}", lambda base: TWO_NAMES[verb](base / one, base / other)


@pytest.fixture(params=["alpha", "gamma", "delta", ""], ids=["ext4", "xfs", "tmpfs", "root"])
def branch(request: pytest.FixtureRequest) -> str:
    """The file systems that the branches lie on."""
    return str(request.param)


@pytest.mark.parametrize("seed", range(2))
def test_by_turns(vault: Vault, place: Storage, branch: str, seed: int) -> None:
    behind = vault.backing(branch) / f"races-{seed}"
    shown = vault.path / branch / behind.name
    plain = behind.parent / f"plain-{seed}"
    behind.mkdir()
    plain.mkdir()
    chance = random.Random(seed)
    history: list[str] = []
    try:
        for _ in range(STEPS // 5):
            for base in (behind, shown):
                for _ in range(chance.randrange(1, 5)):
                    text, step = a_step(chance)
                    expected = outcome(partial(step, plain))
                    got = outcome(partial(step, base))
                    history.append(f"{'vault' if base is shown else 'behind'}: {text}: {got}")
                    assert got == expected, "\n".join(history[-30:])
    finally:
        shutil.rmtree(plain)
        shutil.rmtree(behind)


def test_folders_with_the_numbers_of_removed_ones(vault: Vault, branch: str) -> None:
    """What is made in the vault gets inode numbers of what was removed behind it a moment ago.

    The kernel knows those folders, and their removal is being announced: it must not have to move them.
    """
    names = [f"{number}" for number in range(100)]
    behind = vault.backing(branch) / "numbers"
    shown = vault.path / branch / "numbers"
    for _ in range(4):
        for name in names:
            (behind / "old" / name).mkdir(parents=True)
        for name in names:
            assert (shown / "old" / name).is_dir()
        for name in names:
            os.rmdir(behind / "old" / name)
        for name in names:
            folder = shown / "new" / name
            folder.mkdir(parents=True)
            (folder / "a").mkdir()
            os.chown(folder / "a", 5, 6)
            os.rename(folder / "a", folder / "b")
            assert os.listdir(folder) == ["b"]
        shutil.rmtree(shown / "new")
    shutil.rmtree(behind)


def test_what_only_the_agent_has_looked_at_is_not_kept(place: Storage) -> None:
    """Told of a file that was removed since: who looks for the first time does not find it."""
    with serve(place, cache_seconds=60) as vault:
        behind, shown = vault.backing("delta") / "kept", vault.path / "delta/kept"
        behind.mkdir()
        with listening(shown) as listener:
            for number in range(10):
                (behind / f"{number}").write_bytes(b"1")
                until(lambda: listener.events()[-1:], [f"CLOSE_WRITE,CLOSE {number}"])
                os.unlink(behind / f"{number}")
                assert not (shown / f"{number}").exists()
        shutil.rmtree(behind)
