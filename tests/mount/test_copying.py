"""The programs that copy trees, into the vault and out of it: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.trees import describe, differences, make_tree, needs, run
from tests.support.vault import Storage, Vault, drop_caches

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, needs("setfacl")]

# The root branch and a bind mount on ext4, an xfs, a tmpfs.
BRANCHES = ("", "alpha", "gamma", "delta")


@pytest.fixture(scope="module")
def tree(place: Storage) -> Path:
    """One of everything, on a plain file system."""
    top = place.native / "tree"
    make_tree(top)
    return top


@pytest.fixture
def back(place: Storage) -> Iterator[Path]:
    """A folder to copy back to, on a plain file system."""
    folder = place.native / "back"
    folder.mkdir()
    yield folder
    remove(folder)


@pytest.fixture
def branch(place: Storage, request: pytest.FixtureRequest) -> str:
    """The name of a branch that takes all that a tree can hold."""
    name: str = request.param
    if not takes_attributes(place.branch(name) if name else place.root):
        pytest.skip(f"{name} has no user attributes: a tmpfs before Linux 6.6")
    return name


def takes_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.test", b"")
        os.removexattr(folder, "user.test")
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    run("rm", "-rf", "--", path)


@needs("rsync")
@pytest.mark.parametrize("branch", BRANCHES, indirect=True)
def test_rsync_there_and_back(vault: Vault, tree: Path, back: Path, branch: str) -> None:
    copy = vault.path / branch / "rsync"
    # The filter: xfs shows root its ACLs a second time, under a name that rsync would take away.
    command = ("rsync", "-aHAXS", "--checksum", "--filter=-xr trusted.SGI_ACL*")
    again = ("--itemize-changes", "--delete", "--stats")
    assert run(*command, f"{tree}/", f"{copy}/") == ""
    assert differences(tree, copy) == []
    # What the kernel knows is forgotten, so that it is not its memory which agrees.
    drop_caches()
    said = run(*command, *again, f"{tree}/", f"{copy}/")
    assert "Number of regular files transferred: 0" in said
    assert said.startswith("\nNumber of files:"), f"something differs:\n{said}"
    assert run(*command, f"{copy}/", f"{back}/") == ""
    assert run(*command, *again, f"{tree}/", f"{back}/").startswith("\nNumber of files:")
    assert differences(tree, back) == []
    assert differences(tree, vault.backing(branch) / "rsync") == []
    remove(copy)
    assert not (vault.backing(branch) / "rsync").exists()


@pytest.mark.parametrize("branch", BRANCHES, indirect=True)
def test_tar_in_and_out(vault: Vault, tree: Path, back: Path, branch: str) -> None:
    attributes = ("--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner")
    options = (*attributes, "--format=pax", "--sparse", "--warning=no-file-ignored")
    copy = vault.path / branch / "tar"
    copy.mkdir()
    inside = vault.path / branch / "tree.tar"
    run("tar", *options, "-C", tree, "-cf", inside, ".")
    run("tar", *attributes, "-C", copy, "-xpf", inside)
    assert without_sockets(differences(tree, copy)) == []
    assert run("tar", *attributes, "-C", copy, "-df", inside) == ""
    native = back / "tree.tar"
    run("tar", *options, "-C", copy, "-cf", native, ".")
    (back / "tree").mkdir()
    run("tar", *attributes, "-C", back / "tree", "-xpf", native)
    assert without_sockets(differences(tree, back / "tree")) == []
    remove(copy)
    inside.unlink()


def without_sockets(found: list[str]) -> list[str]:
    """tar leaves sockets out, which changes nothing else: their folder's time is set afterwards."""
    return [text for text in found if "/special/socket'" not in text]


@pytest.mark.parametrize("branch", BRANCHES, indirect=True)
def test_cp_in_within_and_out(vault: Vault, tree: Path, back: Path, branch: str) -> None:
    first, second = (vault.path / branch / name for name in ("first", "second"))
    for source, target in ((tree, first), (first, second), (second, back / "third")):
        run("cp", "-a", "--sparse=always", source, target)
        assert differences(tree, target) == []
        # Of 3 and 4 MB, two blocks and five times 20,000 bytes are data.
        for name, most in (("hole first", 64 << 10), ("holes between", 300 << 10)):
            assert (target / "sparse" / name).stat().st_blocks * 512 < most
    for name in ("hole first", "holes between"):
        shown, behind = (
            top / "first/sparse" / name for top in (first.parent, vault.backing(branch))
        )
        assert shown.stat().st_blocks == behind.stat().st_blocks
    remove(first)
    remove(second)


def test_mv_takes_a_tree_through_all_branches(vault: Vault, tree: Path) -> None:
    """mv calls rename(2), and copies only if that fails: numbers and open files show which it was."""
    run("cp", "-a", tree, vault.path / "alpha/start")
    there = vault.path / "alpha/start"
    before = describe(there)
    with open(there / "attachment", "rb") as reader:
        number = os.fstat(reader.fileno()).st_ino
        way = ("gamma", "delta", "", "beta", "gamma", "alpha")
        for step, branch in enumerate(n for n in way if takes_attributes(vault.backing(n))):
            target = vault.path / branch / f"step {step}"
            assert run("mv", "-v", there, target) == f"renamed '{there}' -> '{target}'\n"
            assert not there.exists()
            there = target
            assert differences(before, there) == []
            assert differences(before, vault.backing(branch) / target.name) == []
            assert (there / "attachment").stat().st_ino == number
            assert os.fstat(reader.fileno()).st_nlink == 1
            assert (there / "sparse/hole first").stat().st_blocks * 512 < 64 << 10
    assert not list(vault.path.rglob("start")) + list(vault.path.rglob("step [0-4]"))
    drop_caches()
    assert differences(before, there) == []
    remove(there)


def test_mv_replaces_or_does_not(vault: Vault) -> None:
    """What the options of mv promise, when source and target are in two branches."""
    old, new = vault.path / "alpha/note", vault.path / "delta/note"
    old.write_text("one")
    new.write_text("two")
    subprocess.run(["mv", "-n", old, new], check=False, timeout=20)  # its exit status: a version's
    assert (old.read_text(), new.read_text()) == ("one", "two")
    run("mv", "-b", old, new)
    assert (old.exists(), new.read_text(), new.with_name("note~").read_text()) == (
        False,
        "one",
        "two",
    )
    run("mv", "-f", new.with_name("note~"), new)
    assert new.read_text() == "two"
    folder = vault.path / "gamma/folder"
    folder.mkdir()
    run("mv", "-t", folder, new)
    assert (folder / "note").read_text() == "two"
    full = vault.path / "alpha/folder"
    full.mkdir()
    (full / "kept").write_text("kept")
    done = subprocess.run(
        ["mv", "-T", folder, full], check=False, timeout=20, capture_output=True, text=True
    )
    assert (done.returncode, "Directory not empty" in done.stderr) == (1, True)
    assert [*folder.iterdir(), *full.iterdir()] == [folder / "note", full / "kept"]
    remove(folder)
    remove(full)


@pytest.mark.parametrize("branch", BRANCHES, indirect=True)
def test_find_and_du_see_what_is_behind(vault: Vault, tree: Path, branch: str) -> None:
    run("cp", "-a", tree, vault.path / branch / "seen")
    places = (vault.path / branch, vault.backing(branch))
    commands = (
        ("find", "seen", "-printf", r"%y %m %n %U %G %s %b %T@ %p %l\n"),
        ("find", "seen", "-type", "f", "-size", "+1k", "-newermt", "1990-01-01", "-perm", "-400"),
        ("find", "seen", "-samefile", "seen/links/first"),
        ("du", "-a", "seen"),
        ("du", "-s", "--apparent-size", "-B1", "seen"),
        ("du", "-s", "-l", "-B1", "seen"),
        ("du", "-s", "--inodes", "seen"),
        ("ls", "-lAR", "--time-style=full-iso", "seen"),
    )
    for _ in range(2):
        for command in commands:
            shown, behind = (sorted(run(*command, cwd=top).splitlines()) for top in places)
            assert shown
            assert shown == behind, command
        drop_caches()
    assert run("diff", "-r", "--no-dereference", places[0] / "seen/names", tree / "names") == ""
    remove(places[0] / "seen")


def test_one_walk_sees_every_branch(vault: Vault, place: Storage) -> None:
    """To find and du the vault is one file system: -xdev goes on, no file is counted for another."""
    total = 0
    for number, branch in enumerate(("", "alpha", "beta", "gamma", "delta")):
        (vault.path / branch / "sized").write_bytes(bytes(1 << 20))
        total += (vault.backing(branch) / "sized").stat().st_blocks * 512
        assert total >= (number + 1) << 20
    found = run("find", vault.path, "-xdev", "-name", "sized", "-printf", r"%D %i\n").splitlines()
    assert len(found) == len(set(found)) == 5
    assert len({line.split()[0] for line in found}) == 1
    files = [str(path) for path in vault.path.rglob("sized")]
    assert int(run("du", "-xcB1", *files).splitlines()[-1].split()[0]) == total
    for path in files:
        os.unlink(path)
