"""The same names, changed behind the vault and in it by turns, while the agent announces the changes.

Whatever is being announced, a program in the vault gets the answer that a plain folder would have given:
every call is made there as well, and compared. The kernel keeps no names (`cache_seconds` 0), so that no
answer may be old.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.cases import rename
from tests.support.held_calls import MAKE, REMOVE, RENAME
from tests.support.listening import Listener, listening, until
from tests.support.remove import remove_tree
from tests.support.vault import Storage, Vault, drop_caches, outcome, serve

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


def without_estale(step: Callable[[], object]) -> object:
    """The outcome; of a folder that was moved behind the vault a moment ago, at the second attempt perhaps.

    See the limits in docs/foreign-changes.md.
    """
    got = outcome(step)
    return outcome(step) if got == "ESTALE" else got


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
    "rmtree": remove_tree,
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
                    got = without_estale(partial(step, base))
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


# Inode numbers used again, as ext4 does at once. Others do not know what programs in the vault have looked at
# a moment ago, and which name they are about to use.


@pytest.fixture(params=[True, False], ids=["events", "no events"])
def places(place: Storage, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A folder in the vault, whose names the kernel keeps for long, and behind it."""
    with serve(place, cache_seconds=20, foreign_events=request.param) as vault:
        behind = vault.backing("alpha") / "again"
        behind.mkdir()
        yield vault.path / "alpha/again", behind
        shutil.rmtree(behind)


def test_who_uses_the_old_name_gets_no_other_file(places: tuple[Path, Path]) -> None:
    """What is written to a file that is gone must not land in a new one, be that made here or there."""
    shown, behind = places
    again = 0
    for turn in range(20):
        maker = shown if turn % 2 else behind
        old, new = f"old-{turn}", f"new-{turn}"
        (behind / old).write_bytes(b"")
        number = os.stat(behind / old).st_ino
        assert (shown / old).read_bytes() == b""
        os.unlink(behind / old)
        (maker / new).write_bytes(b"new")
        again += os.stat(behind / new).st_ino == number
        assert (shown / new).read_bytes() == b"new"
        with open(shown / old, "ab") as file:
            file.write(b"old")
        assert (behind / new).read_bytes() == b"new"
        assert (behind / old).read_bytes() == b"old"
    assert again > 5, "no number was used again: this test has tested nothing"


def test_who_uses_the_old_name_gets_no_file_that_looks_the_same(places: tuple[Path, Path]) -> None:
    """As what a program unpacks may do, which gives all files one time."""
    shown, behind = places
    again = 0
    for turn in range(20):
        old, new = f"old-{turn}", f"new-{turn}"
        (behind / old).write_bytes(b"old")
        os.utime(behind / old, (1000, 1000))
        number = os.stat(behind / old).st_ino
        assert (shown / old).read_bytes() == b"old"
        os.unlink(behind / old)
        time.sleep(0.005)  # until the vault has closed it, which keeps its number from others
        (behind / new).write_bytes(b"new")
        os.utime(behind / new, (1000, 1000))
        again += os.stat(behind / new).st_ino == number
        assert (shown / new).read_bytes() == b"new"
        with open(shown / old, "ab") as file:
            file.write(b"anew")
        assert (behind / new).read_bytes() == b"new"
        assert (behind / old).read_bytes() == b"anew"
    assert again > 5, "no number was used again: this test has tested nothing"


def test_replaced_by_one_with_its_number(places: tuple[Path, Path]) -> None:
    """It is another file all the same: who has seen the former one must not be shown the new one for it."""
    shown, behind = places
    again = 0
    for turn in range(20):
        name = f"replaced-{turn}"
        (behind / name).write_bytes(b"old")
        number = os.stat(behind / name).st_ino
        shown_number = os.stat(shown / name).st_ino
        assert (shown / name).read_bytes() == b"old"
        former = os.open(shown / name, os.O_PATH)
        os.unlink(behind / name)
        time.sleep(0.005)  # until the vault has closed it, which keeps its number from others
        (behind / name).write_bytes(b"another")
        same = os.stat(behind / name).st_ino == number
        assert (shown / name).read_bytes() == b"another"
        if same:
            seen = outcome(lambda: os.fstat(former).st_size)  # noqa: B023 - at once
            assert seen in ("ESTALE", len(b"old"))
            assert os.stat(shown / name).st_ino != shown_number
        os.close(former)
        again += same
    assert again > 5, "no number was used again: this test has tested nothing"


def test_renamed_behind_it_is_the_same_file(places: tuple[Path, Path]) -> None:
    """Whoever has looked at it sees the same number under its new name."""
    shown, behind = places
    for turn in range(5):
        old, new = f"old-{turn}", f"new-{turn}"
        (behind / old).write_bytes(b"same")
        number = os.stat(shown / old).st_ino
        time.sleep(0.02 * turn)
        os.rename(behind / old, behind / new)
        assert os.stat(shown / new).st_ino == number


def test_what_the_vault_removes_is_no_other_file(places: tuple[Path, Path]) -> None:
    """The kernel takes what it removes for what was there before, and knows its number by another name."""
    shown, behind = places
    again = 0
    for turn in range(20):
        old, name = f"old-{turn}", f"name-{turn}"
        (behind / old).write_bytes(b"old")
        (behind / name).write_bytes(b"name")
        number = os.stat(behind / old).st_ino
        assert (shown / old).read_bytes() + (shown / name).read_bytes() == b"oldname"
        os.unlink(behind / old)
        os.unlink(behind / name)
        os.symlink("nowhere", behind / name)
        again += os.lstat(behind / name).st_ino == number
        os.unlink(shown / name)
        assert outcome((shown / old).read_bytes) == "ENOENT"
    assert again > 5, "no number was used again: this test has tested nothing"


def test_what_the_vault_renames_is_no_other_file(places: tuple[Path, Path]) -> None:
    """Another file has come to the name, with the number of one that is known by a third name."""
    shown, behind = places
    again = 0
    for turn in range(20):
        gone, name, new = f"gone-{turn}", f"name-{turn}", f"new-{turn}"
        (behind / gone).write_bytes(b"gone")
        (behind / name).write_bytes(b"name")
        number = os.stat(behind / gone).st_ino
        assert (shown / gone).read_bytes() + (shown / name).read_bytes() == b"gonename"
        os.unlink(behind / gone)
        (behind / "other").write_bytes(b"other")
        again += os.stat(behind / "other").st_ino == number
        os.rename(behind / "other", behind / name)
        os.rename(shown / name, shown / new)
        assert outcome((shown / gone).read_bytes) == "ENOENT"
        with open(shown / gone, "ab") as file:
            file.write(b"anew")
        assert (shown / new).read_bytes() == (behind / new).read_bytes() == b"other"
        assert (behind / gone).read_bytes() == b"anew"
    assert again > 5, "no number was used again: this test has tested nothing"


@pytest.mark.parametrize("action", ["remove", "rename"])
def test_a_folder_that_was_moved_away_is_not_taken_for_the_one_that_came(
    places: tuple[Path, Path], action: str
) -> None:
    """The kernel takes what is removed, or renamed, for what it remembers by that name."""
    shown, behind = places
    (behind / "old").mkdir()
    (behind / "old/in").touch()
    assert os.listdir(shown / "old") == ["in"]
    os.rename(behind / "old", behind / "away")
    (behind / "old").mkdir()
    if action == "remove":
        os.rmdir(shown / "old")
    else:
        os.rename(shown / "old", shown / "other")
        assert os.listdir(shown / "other") == os.listdir(behind / "other") == []
    assert os.listdir(shown / "away") == ["in"]


def test_a_link_that_comes_to_a_name_is_followed(places: tuple[Path, Path]) -> None:
    shown, behind = places
    (behind / "aim").write_bytes(b"aim")
    (behind / "file").write_bytes(b"file")
    assert (shown / "file").read_bytes() == b"file"
    assert not (shown / "absent").exists()
    os.unlink(behind / "file")
    for name in ("file", "absent"):
        os.symlink("aim", behind / name)
        with open(shown / name, "a+b") as file:
            file.seek(0)
            assert file.read() == b"aim"


def test_new_contents_do_not_end_where_the_old_ones_did(places: tuple[Path, Path]) -> None:
    """A program that opens the file sees all of it, whatever size the kernel was told before."""
    shown, behind = places
    for turn, size in enumerate((10, 5000, 3, 100_000, 0, 1)):
        content = bytes([65 + turn]) * size
        (behind / "x").write_bytes(content)
        assert (shown / "x").read_bytes() == content


# The last word on a name


def test_made_behind_replaced_in_the_vault_removed_behind(place: Storage) -> None:
    with serve(place) as vault:
        behind, shown = vault.backing("delta") / "word", vault.path / "delta/word"
        behind.mkdir()
        for _ in range(10):
            (shown / "here").write_bytes(b"1")
            with listening(shown) as listener:
                (behind / "there").write_bytes(b"2")
                os.rename(shown / "here", shown / "there")
                os.unlink(behind / "there")
                until(lambda: listener.events()[-1:], ["DELETE there"])
        shutil.rmtree(behind)


def test_renamed_over_another_one_and_on(place: Storage) -> None:
    """Told as one rename; what was replaced in between is gone as well."""
    with serve(place) as vault:
        behind, shown = vault.backing("delta") / "word", vault.path / "delta/word"
        behind.mkdir()
        for _ in range(5):
            for name in ("a", "b"):
                new_file(behind / name)
                until((shown / name).exists, True)
            with listening(shown) as listener:
                os.rename(behind / "a", behind / "b")
                os.rename(behind / "b", behind / "c")
                until(lambda: "DELETE b" in listener.events(), True)
                until(lambda: "MOVED_TO c" in listener.events(), True)
            os.unlink(behind / "c")
        shutil.rmtree(behind)


def test_renamed_behind_removed_in_the_vault(place: Storage) -> None:
    with serve(place) as vault:
        behind, shown = vault.backing("delta") / "word", vault.path / "delta/word"
        behind.mkdir()
        for _ in range(10):
            (shown / "here").write_bytes(b"1")
            with listening(shown) as listener:
                os.rename(behind / "here", behind / "there")
                os.unlink(shown / "there")
                until(lambda: "DELETE here" in listener.events(), True)
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


# What comes between the agent's last look and its call


@dataclass
class Held:
    vault: Vault
    shown: Path
    behind: Path
    listener: Listener

    def heard(self, *names: str) -> list[str]:
        """What was heard of these names: what was made, removed and renamed."""
        kinds = ("CREATE", "DELETE", "MOVED_FROM", "MOVED_TO")
        events = [event.replace(",ISDIR", "").split(" ", 1) for event in self.listener.events()]
        return [f"{kind} {name}" for kind, name in events if kind in kinds and name in names]

    @contextlib.contextmanager
    def at(self, point: str, change: Callable[[], object]) -> Iterator[None]:
        """The block is carried out while the announcement of the change is held there."""
        with self.vault.held_at(point):
            change()
            until(partial(self.vault.has_reached, point), True)
            yield
        # What comes after it has been announced.
        before = len(self.heard("after"))
        (self.behind / "after").touch()
        until(lambda: self.heard("after")[before:], ["CREATE after"])
        os.unlink(self.behind / "after")
        until(lambda: self.heard("after")[before:], ["CREATE after", "DELETE after"])


@pytest.fixture(params=[20.0, 0.0], ids=["kept", "asked"])
def held(place: Storage, request: pytest.FixtureRequest) -> Iterator[Held]:
    """Where the kernel keeps a name, the call finds what it remembers; else it asks for it meanwhile."""
    with serve(place, cache_seconds=request.param) as vault, vault.watched():
        behind = vault.backing("delta") / "held"
        behind.mkdir()
        with listening(vault.path / "delta/held") as listener:
            yield Held(vault, vault.path / "delta/held", behind, listener)
        shutil.rmtree(behind)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("folder", [True, False])
def test_made_anew_when_it_is_to_be_removed(held: Held, known: bool, folder: bool) -> None:
    make: Callable[[Path], object] = os.mkdir if folder else new_file
    remove: Callable[[Path], object] = os.rmdir if folder else os.unlink
    make(held.behind / "x")
    until(lambda: held.heard("x"), ["CREATE x"])
    if known:
        assert os.path.lexists(held.shown / "x")
    with held.at(REMOVE, lambda: remove(held.behind / "x")):
        make(held.shown / "x")
    assert held.heard("x") == ["CREATE x", "CREATE x"]
    assert kind_of(held.shown / "x") == kind_of(held.behind / "x")
    remove(held.shown / "x")
    until(lambda: held.heard("x"), ["CREATE x", "CREATE x", "DELETE x"])


def test_made_anew_when_it_is_to_be_removed_and_gone_before_that_is_told(held: Held) -> None:
    """The removal of the first file cannot be told, and the second one nobody has heard of."""
    for name in ("old", "x"):
        new_file(held.behind / name)
        until(lambda: held.heard("old", "x")[-1:], [f"CREATE {name}"])
    with held.vault.held_at(RENAME):
        with held.vault.held_at(REMOVE):
            os.unlink(held.behind / "x")
            until(partial(held.vault.has_reached, REMOVE), True)
            os.rename(held.behind / "old", held.behind / "new")
            for number in range(100):  # are told first as well, and not all at once
                new_file(held.behind / f"{number}")
            new_file(held.behind / "x")
        until(partial(held.vault.has_reached, RENAME), True)
        assert held.heard("x") == ["CREATE x"]
        os.unlink(held.behind / "x")
        time.sleep(0.1)  # until that is read
    until(lambda: held.heard("x"), ["CREATE x", "DELETE x"])


def test_something_else_when_it_is_to_be_removed(held: Held) -> None:
    """It has another kind, and the kernel knows it by the name that is removed."""
    new_file(held.behind / "x")
    until(lambda: held.heard("x"), ["CREATE x"])
    assert (held.shown / "x").read_bytes() == b"1"
    with held.at(REMOVE, lambda: os.unlink(held.behind / "x")):
        os.mkdir(held.behind / "x")
        assert os.listdir(held.shown) == ["x"]
        new_file(held.shown / "x/in")
    assert held.heard("x")[-1:] == ["CREATE x"]
    assert os.listdir(held.shown / "x") == ["in"]


def test_the_old_name_taken_when_it_is_to_be_renamed(held: Held) -> None:
    new_file(held.behind / "a")
    until(lambda: held.heard("a"), ["CREATE a"])
    assert (held.shown / "a").read_bytes() == b"1"
    with held.at(RENAME, lambda: os.rename(held.behind / "a", held.behind / "b")):
        (held.shown / "a").write_bytes(b"another")
    assert "MOVED_FROM a" not in held.heard("a", "b")
    assert held.heard("b") == ["CREATE b"]
    assert (held.shown / "a").read_bytes() == b"another"
    assert (held.shown / "b").read_bytes() == b"1"


def test_gone_when_it_is_to_be_renamed(held: Held) -> None:
    new_file(held.behind / "a")
    until(lambda: held.heard("a"), ["CREATE a"])
    with held.at(RENAME, lambda: os.rename(held.behind / "a", held.behind / "b")):
        os.unlink(held.behind / "b")
    assert "MOVED_TO b" not in held.heard("b")
    assert os.listdir(held.shown) == []
    assert not os.path.lexists(held.shown / "b")


def test_gone_when_it_is_to_be_made(held: Held) -> None:
    with held.at(MAKE, lambda: new_file(held.behind / "x")):
        os.unlink(held.behind / "x")
    assert "CREATE x" not in held.heard("x")
    assert not os.path.lexists(held.shown / "x")


def test_looked_up_when_it_is_to_be_made(held: Held) -> None:
    with held.at(MAKE, lambda: new_file(held.behind / "x")):
        assert (held.shown / "x").read_bytes() == b"1"
    assert held.heard("x") == ["CREATE x"]
    assert (held.shown / "x").read_bytes() == b"1"


def test_removed_in_the_vault_when_it_is_to_be_made(held: Held) -> None:
    with held.at(MAKE, lambda: new_file(held.behind / "x")):
        os.unlink(held.shown / "x")
    assert held.heard("x")[-1:] == ["DELETE x"]
    assert not os.path.lexists(held.shown / "x")


def test_the_name_beside_taken_when_a_safe_save_is_told(held: Held) -> None:
    """The new file was written beside the old one; that name is another one's when it is to be told."""
    new_file(held.behind / "note")
    until(lambda: held.heard("note"), ["CREATE note"])

    def save() -> None:
        (held.behind / "beside").write_bytes(b"saved")
        os.rename(held.behind / "beside", held.behind / "note")

    with held.at(MAKE, save):
        (held.shown / "beside").write_bytes(b"mine")
    assert held.heard("beside") == ["CREATE beside"]
    assert (held.shown / "beside").read_bytes() == b"mine"
    assert (held.shown / "note").read_bytes() == b"saved"


def test_a_file_that_became_a_folder_and_went(held: Held) -> None:
    """The kernel knows the file; what is told to be gone is a folder."""
    new_file(held.behind / "x")
    until(lambda: held.heard("x"), ["CREATE x"])
    assert (held.shown / "x").read_bytes() == b"1"
    os.unlink(held.behind / "x")
    os.mkdir(held.behind / "x")
    os.rmdir(held.behind / "x")
    until(lambda: held.heard("x")[-1:], ["DELETE x"])
    assert not os.path.lexists(held.shown / "x")


def test_a_folder_moved_to_where_nobody_looks(held: Held) -> None:
    """It is told to be gone, and goes on to be a folder like any other at its new place."""
    (held.behind / "deep/er").mkdir(parents=True)
    os.mkdir(held.behind / "x")
    until(lambda: held.heard("x"), ["CREATE x"])
    fd = os.open(held.shown / "x", os.O_RDONLY | os.O_DIRECTORY)
    os.rename(held.behind / "x", held.behind / "deep/er/x")
    until(lambda: held.heard("x"), ["CREATE x", "DELETE x"])
    new_file(held.shown / "deep/er/x/new")
    assert os.listdir(fd) == ["new"]
    os.close(fd)


def test_looked_up_before_its_rename_is_told(held: Held) -> None:
    """The kernel knows it by the new name already, where it must not be taken for what was there before."""
    new_file(held.behind / "0")
    until(lambda: held.heard("0"), ["CREATE 0"])
    assert (held.shown / "0").read_bytes() == b"1"
    for number in range(10):
        old, new = f"{number}", f"{number + 1}"
        os.rename(held.behind / old, held.behind / new)
        assert (held.shown / new).read_bytes() == b"1"
        until(partial(held.heard, new), [f"MOVED_TO {new}"])


def test_forgotten_when_it_is_to_be_removed(held: Held) -> None:
    new_file(held.behind / "x")
    until(lambda: held.heard("x"), ["CREATE x"])
    assert (held.shown / "x").read_bytes() == b"1"
    with held.at(REMOVE, lambda: os.unlink(held.behind / "x")):
        assert drop_caches()
    assert held.heard("x") == ["CREATE x", "DELETE x"]
    assert not os.path.lexists(held.shown / "x")
