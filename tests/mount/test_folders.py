"""Numbers of files, the way up, and large folders read while they change."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.support.vault import Vault, drop_caches

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

BRANCHES = ("", "alpha", "gamma", "delta")


def test_numbers_are_one_files_alone(vault: Vault) -> None:
    """Equal on two names only if these are links of one file; and the same again when looked up anew."""
    paths = []
    for branch in BRANCHES:
        folder = vault.path / branch / "numbers"
        folder.mkdir()
        for number in range(30):
            (folder / f"{number}").write_bytes(b"")
            os.link(folder / f"{number}", folder / f"{number} too")
            paths += [folder / f"{number}", folder / f"{number} too"]
        paths.append(folder)
    numbers = {path: os.stat(path).st_ino for path in paths}
    assert Counter(Counter(numbers.values()).values()) == {2: 30 * len(BRANCHES), 1: len(BRANCHES)}
    for path in paths:
        if path.name.endswith(" too"):
            assert numbers[path] == numbers[path.with_name(path.name.removesuffix(" too"))]
    assert len({os.stat(path).st_dev for path in paths}) == 1
    listed = {entry.name: entry.inode() for entry in os.scandir(vault.path / "alpha/numbers")}
    assert all(listed[path.name] == numbers[path] for path in paths if path.parts[-3] == "alpha")
    if drop_caches():
        assert {path: os.stat(path).st_ino for path in paths} == numbers
    for branch in BRANCHES:
        shutil.rmtree(vault.path / branch / "numbers")
    assert max(numbers.values()) < 2**53  # beyond, JavaScript's numbers are not exact


def test_the_way_up(vault: Vault) -> None:
    root = os.stat(vault.path).st_ino
    assert os.stat(vault.path / "alpha/..").st_ino == root
    assert os.stat(vault.path / "alpha/../beta").st_ino == os.stat(vault.path / "beta").st_ino
    (vault.path / "alpha/d/e").mkdir(parents=True)
    fd = os.open(vault.path / "alpha/d/e", os.O_RDONLY | os.O_DIRECTORY)
    try:
        drop_caches()
        assert os.stat("..", dir_fd=fd).st_ino == os.stat(vault.path / "alpha/d").st_ino
        assert os.stat("../../..", dir_fd=fd).st_ino == root
        entries = {entry.name for entry in os.scandir(fd)}
        assert entries == set()
    finally:
        os.close(fd)
    shutil.rmtree(vault.path / "alpha/d")


class Entry(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint64),
        ("position", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("kind", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


class Listing:
    """A folder read with the C library, as programs that seek in it do."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(None, use_errno=True)
        for name, result in (("opendir", ctypes.c_void_p), ("readdir", ctypes.POINTER(Entry))):
            getattr(self.library, name).restype = result
        self.library.telldir.restype = ctypes.c_long
        self.library.telldir.argtypes = self.library.readdir.argtypes = (ctypes.c_void_p,)
        self.library.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
        self.library.rewinddir.argtypes = self.library.closedir.argtypes = (ctypes.c_void_p,)
        self.stream = self.library.opendir(os.fsencode(path))

    def next(self) -> bytes | None:
        entry = self.library.readdir(self.stream)
        return bytes(entry.contents.name) if entry else None

    def rest(self) -> list[bytes]:
        return list(iter(self.next, None))

    def tell(self) -> int:
        return int(self.library.telldir(self.stream))

    def seek(self, position: int) -> None:
        self.library.seekdir(self.stream, position)

    def rewind(self) -> None:
        self.library.rewinddir(self.stream)

    def close(self) -> None:
        self.library.closedir(self.stream)


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_large_folder_listed_while_it_changes(vault: Vault, branch: str) -> None:
    folder = vault.path / branch / "large"
    folder.mkdir()
    behind = vault.backing(branch) / "large"
    stay = {b"stays %d" % number for number in range(10_000)}
    for name in stay:
        os.close(os.open(os.path.join(os.fsencode(behind), name), os.O_CREAT | os.O_WRONLY))
    for number in range(300):
        (behind / f"goes {number}").touch()
    listing = Listing(folder)
    names = [listing.next() for _ in range(50)]
    for number in range(300):
        (folder / f"goes {number}").unlink()
        (folder / f"comes {number}").touch()
        names.append(listing.next())
    names += listing.rest()
    count = Counter(names)
    assert {name for name in stay if count[name] != 1} == set()
    assert max(count.values()) == 1
    listing.rewind()
    again = Counter(listing.rest())
    assert set(again) - {b".", b".."} == stay | {b"comes %d" % number for number in range(300)}
    assert max(again.values()) == 1
    assert {b".", b".."} <= set(again)
    listing.close()
    shutil.rmtree(behind)


@pytest.mark.parametrize("branch", BRANCHES)
def test_seeking_in_a_folder(vault: Vault, branch: str) -> None:
    folder = vault.path / branch / "seek"
    folder.mkdir()
    for number in range(500):
        (folder / f"{number}").touch()
    listing = Listing(folder)
    order: list[bytes | None] = []
    places = [listing.tell()]
    while (name := listing.next()) is not None:
        order.append(name)
        places.append(listing.tell())
    for index in (0, 1, 2, 3, 250, 499, 500, 77):
        listing.seek(places[index])
        assert listing.rest() == order[index:]
    assert len(set(order)) == 502
    listing.close()
    shutil.rmtree(folder)


def test_the_vault_lists_its_branches_once(vault: Vault) -> None:
    """Also where the root branch has an entry of the same name: the branch covers it."""
    (vault.root / "alpha").mkdir(exist_ok=True)
    (vault.root / "alpha/covered").touch()
    listed = os.listdir(vault.path)
    assert sorted(listed) == sorted(set(listed))
    assert set(vault.branches) <= set(listed)
    assert not (vault.path / "alpha/covered").exists()
    shutil.rmtree(vault.root / "alpha")
