"""Renames between branches that are refused: with the errno of one within a branch, and nothing changed."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cases import rename
from tests.support.ends import remove
from tests.support.trees import content, describe, differences
from tests.support.vault import Storage, Vault, as_person, outcome, serve

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.usefixtures("nothing_left_in_branches"),
]

NOREPLACE, EXCHANGE = 1, 2
OWNER, OTHER = 4001, 4003


def make(kind: str, path: Path) -> None:
    if kind == "file":
        path.write_bytes(os.fsencode(path.name))
    elif kind in ("folder", "full"):
        path.mkdir()
        if kind == "full":
            (path / "below").write_bytes(os.fsencode(path.name))
    elif kind == "link":
        os.symlink("nothing", path)
    elif kind == "fifo":
        os.mkfifo(path)


KINDS = ("file", "folder", "full", "link", "fifo", "none")


@pytest.mark.parametrize("flags", [0, NOREPLACE, EXCHANGE, NOREPLACE | EXCHANGE, 8])
def test_every_kind_onto_every_kind(ends: tuple[Path, Path], place: Storage, flags: int) -> None:
    (place.native / "s").mkdir()
    (place.native / "t").mkdir()
    native = (place.native / "s", place.native / "t")

    def tried(source: Path, target: Path, first: str, second: str) -> object:
        make(first, source / "x")
        make(second, target / "y")
        done = outcome(lambda: rename(source / "x", target / "y", flags))
        left = []
        for folder in (source, target):
            for path in sorted(folder.iterdir()):
                below = sorted(os.listdir(path)) if path.is_dir() else None
                text = path.read_bytes() if path.is_file() else None
                left.append((path.name, stat.S_IFMT(path.lstat().st_mode), below, text))
                remove(path)
        return done, left

    for first in KINDS:
        for second in KINDS:
            expected = tried(*native, first, second)
            assert tried(*ends, first, second) == expected, (first, second)
    for folder in native:
        folder.rmdir()


def test_names_that_cannot_be(ends: tuple[Path, Path]) -> None:
    (ends[0] / "d").mkdir()
    (ends[0] / "f").write_bytes(b"")
    assert outcome(lambda: rename(ends[0] / "d", ends[1] / "none/d")) == "ENOENT"
    assert outcome(lambda: rename(ends[0] / "none", ends[1] / "new")) == "ENOENT"
    assert outcome(lambda: os.rename(f"{ends[0]}/f", f"{ends[1]}/f/")) == "ENOTDIR"
    assert outcome(lambda: os.rename(f"{ends[0]}/d/", f"{ends[1]}/d/")) is None
    assert outcome(lambda: os.rename(f"{ends[1]}/d/.", f"{ends[0]}/d")) == "EBUSY"
    reserved = ".~session-agent-0123"
    assert outcome(lambda: rename(ends[0] / "f", ends[1] / reserved)) == "EPERM"
    assert sorted(os.listdir(ends[0])) == ["f"]


PERSONS = {"owner": OWNER, "other": OTHER, "root": 0}
FOLDER_MODES = (0o755, 0o777, 0o1777, 0o733)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "pair", [("alpha", "gamma"), ("", "delta")], ids=["alpha-gamma", "root-delta"]
)
def test_rights_of_both_folders(vault: Vault, place: Storage, pair: tuple[str, str]) -> None:
    """Who may rename what, by the folders' modes and owners: as natively, whoever owns the file."""

    def tried(first: Path, second: Path) -> list[object]:
        results: list[object] = []
        for source_mode in FOLDER_MODES:
            for target_mode in FOLDER_MODES:
                for owner in (OWNER, 0):
                    source, target = first / "source", second / "target"
                    for folder, mode in ((source, source_mode), (target, target_mode)):
                        folder.mkdir()
                        for name, uid in (("owners", OWNER), ("others", OTHER), ("roots", 0)):
                            (folder / name).write_bytes(b"1")
                            os.chown(folder / name, uid, 0)
                            os.chmod(folder / name, 0o600)
                            (folder / f"d-{name}").mkdir()
                            os.chown(folder / f"d-{name}", uid, 0)
                        os.chown(folder, owner, 0)
                        folder.chmod(mode)
                    for person, uid in PERSONS.items():
                        done = as_person(lambda: moves(source, target), uid)  # noqa: B023
                        left = [sorted(os.listdir(folder)) for folder in (source, target)]
                        results.append(
                            ((oct(source_mode), oct(target_mode), owner, person), done, left)
                        )
                    shutil.rmtree(source)
                    shutil.rmtree(target)
        return results

    def moves(source: Path, target: Path) -> list[object]:
        names = ("owners", "others", "roots")
        steps = [(name, f"new-{name}", 0) for name in names]  # onto nothing
        steps += [(f"d-{name}", f"new-d-{name}", 0) for name in names]
        done = [outcome(lambda: rename(source / a, target / b, flags)) for a, b, flags in steps]  # noqa: B023
        back = [(f"new-{name}", name, NOREPLACE) for name in names]
        back += [(f"new-d-{name}", f"d-{name}", NOREPLACE) for name in names]
        done += [outcome(lambda: rename(target / a, source / b, flags)) for a, b, flags in back]  # noqa: B023
        both = [(one, other, EXCHANGE) for one in names for other in names]
        done += [outcome(lambda: rename(source / a, target / b, flags)) for a, b, flags in both]  # noqa: B023
        return done

    # Not all of it three times over: one file system of its own kind is what "natively" is.
    native = place.branch("beta") / "rights"
    native.mkdir()
    expected = tried(native, native)
    native.rmdir()
    got = tried(vault.path / pair[0], vault.path / pair[1])
    for wanted, answer in zip(expected, got, strict=True):
        assert answer == wanted


def test_a_user_moves_what_is_not_theirs(vault: Vault, ends: tuple[Path, Path]) -> None:
    """Whoever may write both folders may rename what they could not even read: it stays whose it was."""
    source, target = ends
    for folder in ends:
        folder.chmod(0o777)
    secret = source / "secret"
    secret.write_bytes(b"for root only")
    secret.chmod(0o4600)
    closed = source / "closed"
    closed.mkdir(mode=0o700)
    (closed / "below").write_bytes(b"x")
    # A folder that changes its parent has to be writable to who moves it; natively so, too.
    assert as_person(lambda: outcome(lambda: rename(closed, target / "closed")), OTHER) == "EACCES"
    assert as_person(lambda: outcome(lambda: rename(secret, target / "new")), OTHER) is None
    status = os.stat(target / "new")
    assert (status.st_uid, oct(status.st_mode)) == (0, "0o104600")
    assert (target / "new").read_bytes() == b"for root only"
    assert (closed / "below").read_bytes() == b"x"
    assert as_person(lambda: outcome((target / "new").read_bytes), OTHER) == "EACCES"


def test_read_only_branches(vault: Vault) -> None:
    read_only, alpha = vault.path / "readonly", vault.path / "alpha"
    for name in ("file", "folder"):
        assert outcome(lambda: rename(read_only / name, alpha / name)) == "EROFS"  # noqa: B023
        assert outcome(lambda: rename(read_only / name, alpha / name, NOREPLACE)) == "EROFS"  # noqa: B023
    (alpha / "mine").write_bytes(b"mine")
    assert outcome(lambda: rename(alpha / "mine", read_only / "new")) == "EROFS"
    assert outcome(lambda: rename(alpha / "mine", read_only / "file")) == "EROFS"
    assert outcome(lambda: rename(alpha / "mine", read_only / "file", EXCHANGE)) == "EROFS"
    assert (alpha / "mine").read_bytes() == b"mine"
    assert sorted(os.listdir(read_only)) == ["file", "folder"]
    (alpha / "mine").unlink()


@pytest.mark.parametrize("what", ["file", "tree", "exchange"])
def test_no_room(vault: Vault, what: str) -> None:
    alpha, tiny = vault.path / "alpha", vault.path / "tiny"
    source, target = alpha / "big", tiny / "big"
    if what == "tree":
        source.mkdir()
        for number in range(30):
            (source / str(number)).write_bytes(content(number, 100_000))
    else:
        source.write_bytes(content(1, 700_000) * 2)
    if what != "tree":
        target.write_bytes(b"in the way")
    before, free = describe(source), os.statvfs(vault.backing("tiny")).f_bfree
    flags = EXCHANGE if what == "exchange" else 0
    assert outcome(lambda: rename(source, target, flags)) == "ENOSPC"
    assert differences(before, source) == []
    assert os.statvfs(vault.backing("tiny")).f_bfree == free
    if what != "tree":
        assert target.read_bytes() == b"in the way"
        target.unlink()
    remove(source)


def test_holes_need_no_room(vault: Vault) -> None:
    with open(vault.path / "alpha/sparse", "wb") as file:
        file.write(b"start")
        file.truncate(100 << 20)
    rename(vault.path / "alpha/sparse", vault.path / "tiny/sparse")
    status = os.stat(vault.path / "tiny/sparse")
    assert (status.st_size, status.st_blocks * 512 <= 8192) == (100 << 20, True)
    (vault.path / "tiny/sparse").unlink()


# Branches in branches


@pytest.fixture
def nested(place: Storage) -> Iterator[Vault]:
    """A branch below a folder of another; and a branch whose folder another branch shows as well."""
    inner = place.branch("beta") / "shared/inner"
    inner.mkdir(parents=True)
    (place.branch("alpha") / "holder/hook").mkdir(parents=True)
    branches = {
        "alpha": place.branch("alpha"),
        "alpha/holder/hook": place.branch("delta"),
        "beta": place.branch("beta"),
        "twin": inner,
        "gamma": place.branch("gamma"),
    }
    with serve(place, branches) as vault, vault.watched():
        yield vault
    shutil.rmtree(place.branch("beta") / "shared")
    shutil.rmtree(place.branch("alpha") / "holder")


def test_a_folder_that_holds_a_branch(nested: Vault) -> None:
    holder = nested.path / "alpha/holder"
    (holder / "hook/file").write_bytes(b"in the inner branch")
    assert outcome(lambda: rename(holder, nested.path / "gamma/holder")) == "EBUSY"
    assert outcome(lambda: rename(holder / "hook", nested.path / "gamma/hook")) == "EBUSY"
    (nested.path / "gamma/d").mkdir()
    assert outcome(lambda: rename(nested.path / "gamma/d", holder, EXCHANGE)) == "EBUSY"
    assert outcome(lambda: rename(nested.path / "gamma/d", holder)) in ("ENOTEMPTY", "EEXIST")
    rename(holder / "hook/file", holder / "file")  # out of the branch into the folder that holds it
    assert (nested.backing("alpha") / "holder/file").read_bytes() == b"in the inner branch"
    (nested.path / "gamma/d").rmdir()
    assert outcome(lambda: os.rmdir(holder)) == "ENOTEMPTY"
    (holder / "file").unlink()
    assert outcome(lambda: os.rmdir(holder)) == "ENOTEMPTY"


def test_one_file_through_two_branches(nested: Vault) -> None:
    twin, shared = nested.path / "twin", nested.path / "beta/shared/inner"
    (twin / "file").write_bytes(b"one")
    for flags in (0, EXCHANGE):
        assert outcome(lambda: rename(twin / "file", shared / "file", flags)) is None  # noqa: B023
    assert outcome(lambda: rename(twin / "file", shared / "file", NOREPLACE)) == "EEXIST"
    assert (twin / "file").read_bytes() == (shared / "file").read_bytes() == b"one"
    rename(twin / "file", shared / "renamed")
    assert os.listdir(nested.backing("twin")) == ["renamed"]
    assert (shared / "renamed").read_bytes() == b"one"


def test_a_folder_into_itself_through_another_branch(nested: Vault) -> None:
    twin = nested.path / "twin"
    (twin / "file").write_bytes(b"one")
    for flags in (0, NOREPLACE):
        done = outcome(lambda: rename(nested.path / "beta/shared", twin / "new", flags))  # noqa: B023
        assert done == "EINVAL"
        done = outcome(lambda: rename(nested.path / "beta/shared/inner", twin / "new", flags))  # noqa: B023
        assert done == "EINVAL"
    assert os.listdir(twin) == ["file"]
