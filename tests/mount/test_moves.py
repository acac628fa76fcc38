"""rename(2) between branches, as programs see it: what arrives, what is refused, what is left.

How it goes about it is tested in tests/unit/moves; here it is one system call on a mounted vault.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cases import rename
from tests.support.ends import behind, remove
from tests.support.trees import content, describe, differences, make_tree
from tests.support.vault import Vault, drop_caches, outcome

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.usefixtures("nothing_left_in_branches"),
]

EXCHANGE = 2


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
