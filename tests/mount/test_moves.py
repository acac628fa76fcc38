"""rename(2) between branches, as programs see it: what arrives, what is refused, what is left.

How it goes about it is tested in tests/unit/moves; here it is one system call on a mounted vault.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.fsutil.syscalls import renameat2
from tests.support.trees import content, describe, differences, make_tree
from tests.support.vault import Storage, Vault, as_person, drop_caches, outcome, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

# Two mounts of one ext4, ext4 to xfs, xfs to tmpfs, and from and to the root branch.
PAIRS = [("alpha", "beta"), ("alpha", "gamma"), ("gamma", "delta"), ("", "alpha"), ("delta", "")]
NOREPLACE, EXCHANGE = 1, 2
OWNER, OTHER = 4001, 4003


def rename(source: Path, target: Path, flags: int = 0) -> None:
    renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.fixture(autouse=True)
def nothing_reserved_left(vault: Vault) -> Iterator[None]:
    """No test leaves anything of a move, nor of its own, in a branch."""

    def all_names() -> set[str]:
        return {
            f"{branch}:{name}"
            for branch in ("", *vault.branches)
            for name in os.listdir(vault.backing(branch))
        }

    before = all_names()
    yield
    assert all_names() == before


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(name or "root" for name in pair))
def ends(vault: Vault, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A folder in each of two branches."""
    first, second = (vault.path / branch / "folder" for branch in request.param)
    folders = (first, second) if first != second else (first,)
    for folder in folders:
        folder.mkdir()
    yield first, second
    for folder in folders:
        shutil.rmtree(folder)


def behind(vault: Vault, path: Path) -> Path:
    """Where `path` lies behind the vault."""
    first, *rest = path.relative_to(vault.path).parts
    return (
        vault.backing(first).joinpath(*rest)
        if first in vault.branches
        else vault.root / first / Path(*rest)
    )


# What arrives


def test_a_tree_of_everything(vault: Vault, ends: tuple[Path, Path]) -> None:
    source, target = ends[0] / "tree", ends[1] / "moved"
    make_tree(source)
    before = describe(source)
    blocks = os.stat(source / "sparse/hole first").st_blocks
    rename(source, target)
    assert not os.path.lexists(source)
    assert os.listdir(ends[0]) == []
    assert differences(before, target) == []
    assert differences(before, behind(vault, target)) == []
    if drop_caches():
        assert differences(before, target) == []
    assert os.stat(target / "sparse/hole first").st_blocks <= blocks + 64
    # And back, over an empty folder.
    source.mkdir()
    rename(target, source)
    assert differences(before, source) == []


def test_access_times_and_a_file_alone(ends: tuple[Path, Path]) -> None:
    source, target = ends[0] / "file", ends[1] / "file"
    source.write_bytes(content(1, 300_001))
    os.utime(source, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    rename(source, target)
    status = os.stat(target)
    assert (status.st_atime_ns, status.st_mtime_ns) == (
        1_234_567_890_123_456_789,
        987_654_321_987_654_321,
    )
    assert target.read_bytes() == content(1, 300_001)


def test_the_number_of_a_file_stays(ends: tuple[Path, Path]) -> None:
    """As natively: programs that watch a file by its number go on."""
    (ends[0] / "d").mkdir()
    (ends[0] / "d/file").write_bytes(b"1")
    numbers = [os.stat(ends[0] / name).st_ino for name in ("d", "d/file")]
    rename(ends[0] / "d", ends[1] / "d")
    assert [os.stat(ends[1] / name).st_ino for name in ("d", "d/file")] == numbers


def test_a_deep_tree(ends: tuple[Path, Path]) -> None:
    depth = 300
    here = os.getcwd()
    (ends[0] / "top").mkdir()
    try:
        os.chdir(ends[0] / "top")
        for _ in range(depth):
            os.mkdir("d" * 20)  # together longer than a path may be
            os.chdir("d" * 20)
        Path("bottom").write_bytes(b"deep")
        rename(ends[0] / "top", ends[1] / "top")
        assert Path("bottom").read_bytes() == b"deep"  # the working folder has come along
        Path("another").write_bytes(b"new")
        os.chdir(ends[1] / "top")
        for _ in range(depth):
            os.chdir("d" * 20)
        assert sorted(os.listdir()) == ["another", "bottom"]
    finally:
        os.chdir(here)


def test_many_files(ends: tuple[Path, Path]) -> None:
    source, target = ends[0] / "many", ends[1] / "many"
    for number in range(2000):
        folder = source / str(number % 20)
        if number < 20:
            folder.mkdir(parents=True)
        (folder / f"{number}.md").write_bytes(content(number, number))
    start = time.monotonic()
    rename(source, target)
    assert time.monotonic() - start < 20
    for number in range(2000):
        assert (target / str(number % 20) / f"{number}.md").read_bytes() == content(number, number)
    assert not source.exists()


@pytest.mark.parametrize("length", [1, 254, 255])
def test_long_names(ends: tuple[Path, Path], length: int) -> None:
    """The stage's own name and an exchange's have to fit, too."""
    name = "ä" * (length // 2) + "x" * (length % 2)
    source, target = ends[0] / name, ends[1] / name
    source.write_bytes(b"1")
    rename(source, target)
    source.write_bytes(b"2")
    rename(source, target, EXCHANGE)
    assert (source.read_bytes(), target.read_bytes()) == (b"1", b"2")
    assert outcome(lambda: rename(source, ends[1] / ("x" * 256))) == "ENAMETOOLONG"
    assert source.read_bytes() == b"1"


def test_watchers_see_a_move(ends: tuple[Path, Path]) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    moved_from, moved_to = 0x40, 0x80
    fd = library.inotify_init1(os.O_NONBLOCK)
    for folder in ends:
        assert library.inotify_add_watch(fd, os.fsencode(folder), 0xFFF) > 0
    (ends[0] / "file").write_bytes(b"1")
    os.read(fd, 65536)
    rename(ends[0] / "file", ends[1] / "new")
    data = os.read(fd, 65536)
    os.close(fd)
    events = []
    while data:
        _, mask, cookie, length = struct.unpack_from("iIII", data)
        events.append((mask, cookie, data[16 : 16 + length].rstrip(b"\0")))
        data = data[16 + length :]
    moves = [event for event in events if event[0] & (moved_from | moved_to)]
    assert [(mask, name) for mask, _, name in moves] == [(moved_from, b"file"), (moved_to, b"new")]
    assert moves[0][1] == moves[1][1] != 0
    assert len(events) == 2, events  # and nothing of the copying


# Hard links


def test_a_link_that_stays_is_another_file(ends: tuple[Path, Path]) -> None:
    """Nothing can have names on two file systems, so what moves is split from what stays."""
    one, other, target = ends[0] / "one", ends[0] / "other", ends[1] / "moved"
    one.write_bytes(b"content")
    os.link(one, other)
    rename(one, target)
    assert (other.read_bytes(), target.read_bytes()) == (b"content", b"content")
    os.truncate(other, 3)
    os.setxattr(other, "user.stays", b"1")
    with open(target, "ab") as file:
        file.write(b" moved")
    assert other.read_bytes() == b"con"
    assert target.read_bytes() == b"content moved"
    assert os.listxattr(target) == []
    assert [os.stat(path).st_nlink for path in (other, target)] == [1, 1]
    assert os.stat(other).st_ino != os.stat(target).st_ino


def test_the_new_link_moves(ends: tuple[Path, Path]) -> None:
    """The name that the kernel has known for longer, as one of the only link, is not mistaken."""
    one, new, target = ends[0] / "one", ends[0] / "new", ends[1] / "moved"
    one.write_bytes(b"content")
    os.stat(one)
    os.link(one, new)
    rename(new, target)
    os.chmod(one, 0o600)
    os.utime(one, ns=(5, 5))
    assert os.listxattr(one) == []
    os.setxattr(one, "user.stays", b"1")
    os.link(one, ends[0] / "third")
    with open(one, "r+b") as file:
        file.write(b"C")
    assert one.read_bytes() == (ends[0] / "third").read_bytes() == b"Content"
    assert target.read_bytes() == b"content"
    assert os.listxattr(target) == []
    assert oct(os.stat(target).st_mode) == "0o100644"


def test_links_within_a_tree_and_out_of_it(ends: tuple[Path, Path]) -> None:
    tree, outside, target = ends[0] / "tree", ends[0] / "outside", ends[1] / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(b"inside")
    os.link(tree / "a", tree / "b")
    outside.write_bytes(b"both")
    os.link(outside, tree / "c")
    os.link(outside, tree / "d")
    rename(tree, target)
    inside = {name: os.stat(target / name) for name in "abcd"}
    assert {name: status.st_nlink for name, status in inside.items()} == dict.fromkeys("abcd", 2)
    assert inside["a"].st_ino == inside["b"].st_ino != inside["c"].st_ino == inside["d"].st_ino
    assert os.stat(outside).st_nlink == 1
    os.truncate(outside, 1)
    (target / "d").write_bytes(b"changed")
    assert [(target / "c").read_bytes(), outside.read_bytes()] == [b"changed", b"b"]


def test_a_handle_on_a_file_that_had_another_link(ends: tuple[Path, Path]) -> None:
    """The link by which the overlay saw it last is gone: it has to find the other one."""
    for first, second in (("d/x", "d/y"), ("d/y", "d/x")):
        for moved in ("d", "d/x"):
            (ends[0] / "d").mkdir()
            (ends[0] / first).write_bytes(b"start ")
            with open(ends[0] / first, "ab", buffering=0) as file:
                if first == "d/x":
                    os.link(ends[0] / first, ends[0] / second)
                    os.unlink(ends[0] / second)
                else:
                    os.link(ends[0] / first, ends[0] / second)
                    os.unlink(ends[0] / first)
                rename(ends[0] / moved, ends[1] / moved.rpartition("/")[2])
                file.write(b"end")
                assert os.fstat(file.fileno()).st_size == 9
                arrived = ends[1] / ("d/x" if moved == "d" else "x")
                assert arrived.read_bytes() == b"start end"
                assert os.path.samestat(os.stat(arrived), os.fstat(file.fileno()))
            remove(ends[1] / moved.rpartition("/")[2])
            if moved != "d":
                remove(ends[0] / "d")


# What is refused, as within one branch


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


# Nothing is used up


def test_descriptors_do_not_pile_up(vault: Vault, ends: tuple[Path, Path]) -> None:
    def round_trip(number: int) -> None:
        tree = ends[0] / "tree"
        (tree / "below").mkdir(parents=True)
        (tree / "below/file").write_bytes(b"x")
        with open(tree / "below/file", "ab") as file:
            rename(tree, ends[1] / "tree")
            file.write(b"y")
        (ends[0] / "tree").mkdir()
        rename(ends[1] / "tree", ends[0] / "tree", EXCHANGE)
        outcome(lambda: rename(ends[1] / "tree", ends[0] / "tree"))
        shutil.rmtree(ends[0] / "tree")
        os.rmdir(ends[1] / "tree")

    if not drop_caches():
        pytest.skip("the kernel's caches cannot be dropped here")
    round_trip(0)
    drop_caches()
    before = vault.open_files()
    for number in range(20):
        round_trip(number)
    deadline = time.monotonic() + 5
    while vault.open_files() > before and time.monotonic() < deadline:
        drop_caches()
        time.sleep(0.1)
    assert vault.open_files() <= before


def test_mv_and_getfacl_agree(ends: tuple[Path, Path]) -> None:
    """The program that everybody uses has no cause to copy anything itself."""
    (ends[0] / "x").write_bytes(b"1")
    subprocess.run(["setfacl", "-m", "u:4001:rw", ends[0] / "x"], check=True)
    subprocess.run(["mv", "--no-copy", ends[0] / "x", ends[1] / "x"], check=False)
    if not (ends[1] / "x").exists():  # an older mv
        subprocess.run(["mv", ends[0] / "x", ends[1] / "x"], check=True)
    listed = subprocess.run(["getfacl", "-n", ends[1] / "x"], check=True, capture_output=True)
    assert b"user:4001:rw-" in listed.stdout
