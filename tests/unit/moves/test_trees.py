"""Whole trees: hard links, what is empty, deep, or of no regular kind; and holes."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from session_agent.moves.names import RESERVED_PREFIX
from tests.support.disks import image, picture
from tests.support.moving import Disks, move
from tests.support.storage import tmpfs


def make_tree(top: Path) -> None:
    """A bit of everything that a user can make."""
    (top / "docs/empty").mkdir(parents=True)
    (top / "docs/note.md").write_bytes(b"# note\n")
    (top / "docs/big").write_bytes(os.urandom(1 << 20))
    (top / "dangling").symlink_to("../nowhere")
    (top / "to folder").symlink_to("docs")
    os.mkfifo(top / "pipe")
    os.link(top / "docs/note.md", top / "docs/empty/same")
    os.link(top / "docs/note.md", top / "again")
    os.link(top / "dangling", top / "docs/dangling too")
    os.setxattr(top / "docs", "user.label", b"here")
    (top / "docs/note.md").chmod(0o604)
    (top / "docs").chmod(0o705)
    for name in ("docs/empty", "docs", ""):
        os.utime(top / name, ns=(1_000_000_000_000_000_001, 1_100_000_000_000_000_007))


def test_a_tree_of_everything(disks: Disks) -> None:
    make_tree(disks.source / "tree")
    before = picture(disks.source / "tree")
    outcome = move(disks.source / "tree", disks.target / "moved")
    assert (outcome.strategy, outcome.losses, outcome.kept) == ("copy", (), False)
    assert picture(disks.target / "moved") == before
    assert len(before["again"].links) == 3
    assert before["dangling"].links == ("dangling", "docs/dangling too")
    assert disks.pictures()[0] == {}
    assert disks.reserved == []


def test_an_empty_folder_replaces_an_empty_one(disks: Disks) -> None:
    (disks.source / "tree").mkdir(0o700)
    (disks.target / "moved").mkdir(0o755)
    before = picture(disks.source / "tree")
    move(disks.source / "tree", disks.target / "moved")
    assert picture(disks.target / "moved") == before


def test_every_copy_is_told(disks: Disks) -> None:
    make_tree(disks.source / "tree")
    (copied,) = move(disks.source / "tree", disks.target / "moved").copied
    paths = [(disks.target / "moved", copied)]
    count = 0
    for path, one in paths:
        status = os.lstat(path)
        assert one.copy == (status.st_dev, status.st_ino), path
        assert set(one.entries) == (
            set(os.listdir(os.fsencode(path))) if stat.S_ISDIR(status.st_mode) else set()
        )
        paths += [(path / os.fsdecode(name), entry) for name, entry in one.entries.items()]
        count += 1
    assert count == len(picture(disks.target / "moved"))


def test_links_to_outside_of_the_tree_stay_there(disks: Disks) -> None:
    (disks.source / "tree").mkdir()
    (disks.source / "tree/file").write_bytes(b"content")
    os.link(disks.source / "tree/file", disks.source / "outside")
    assert not move(disks.source / "tree", disks.target / "moved").kept
    assert (disks.source / "outside").read_bytes() == b"content"
    assert os.listdir(disks.source) == ["outside"]


def test_garbage_of_another_move_goes_with_the_old_tree(disks: Disks) -> None:
    """A killed move's stage lies in the tree: not carried over, and no reason to keep the tree."""
    garbage = os.fsdecode(RESERVED_PREFIX) + "0123456789abcdef"
    (disks.source / "tree/below" / garbage / "deep").mkdir(parents=True)
    (disks.source / "tree" / garbage).write_bytes(b"half a copy")
    (disks.source / "tree/file").write_bytes(b"content")
    assert not move(disks.source / "tree", disks.target / "moved").kept
    assert sorted(picture(disks.target / "moved")) == ["", "below", "file"]
    assert disks.pictures()[0] == {}


def test_a_deep_tree(disks: Disks) -> None:
    limit = sys.getrecursionlimit()
    depth = 700  # the overlay sets the limit for this (serve.Overlay.mount)
    sys.setrecursionlimit(20_000)
    try:
        names = "/".join(["d"] * (depth // 2))
        half = disks.source / "tree" / names
        half.mkdir(parents=True)
        folder = os.open(half, os.O_PATH)
        for _ in range(depth // 2):
            os.mkdir("d", dir_fd=folder)
            below = os.open("d", os.O_PATH, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        os.close(folder)
        assert not move(disks.source / "tree", disks.target / "moved").kept
        assert os.listdir(disks.source) == []
        folders = [where for where, _, files in os.walk(disks.target) if files]
        assert [where.count("/d") for where in folders] == [depth + 1]  # and /dev
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.needs_root
def test_another_file_system_in_the_tree(disks: Disks) -> None:
    make_tree(disks.source / "tree")
    (disks.source / "tree/mount").mkdir()
    before = picture(disks.source / "tree")
    with tmpfs(disks.source / "tree/mount"), pytest.raises(OSError, match="busy"):
        move(disks.source / "tree", disks.target / "moved")
    assert picture(disks.source / "tree") == before
    assert os.listdir(disks.target) == []


@pytest.mark.needs_root
@pytest.mark.parametrize(("first", "second"), [("ext4", "xfs"), ("xfs", "ext4"), ("xfs", "xfs")])
def test_between_real_disks(tmp_path: Path, first: str, second: str) -> None:
    with (
        image(tmp_path / "a", first, size="300M") as source,
        image(tmp_path / "b", second, size="300M") as target,
    ):
        make_tree(source / "tree")
        before = picture(source / "tree")
        outcome = move(source / "tree", target / "tree")
        assert (outcome.strategy, outcome.losses, outcome.kept) == ("copy", (), False)
        assert picture(target / "tree") == before
        assert not (source / "tree").exists()
