"""Targets that are full, or cannot hold what they are given: nothing is left there, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOTSUP
from pathlib import Path

import pytest

from session_agent.fsutil import credentials
from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from tests.support.as_user import NOBODY, as_user, home_of
from tests.support.disks import contents, image, picture
from tests.support.failpoints import steps
from tests.support.moving import Disks, move
from tests.support.storage import rclone, tmpfs


def _files(top: Path, count: int, size: int) -> None:
    top.mkdir()
    for number in range(count):
        (top / f"file {number}").write_bytes(os.urandom(size))


@pytest.mark.needs_root
@pytest.mark.parametrize("flags", [0, RENAME_EXCHANGE])
def test_a_tree_that_fills_the_target(tmp_path: Path, flags: int) -> None:
    with tmpfs(tmp_path / "a") as a, tmpfs(tmp_path / "b", size="1m") as b:
        _files(a / "here", 10, 300_000)
        if flags:
            (b / "there").write_bytes(b"old")
        both = Disks(a, b)
        before = both.pictures()
        with pytest.raises(OSError, match="No space left"):
            move(a / "here", b / "there", flags)
        assert both.pictures() == before
        assert both.reserved == []
        room = os.statvfs(b)
        assert room.f_bavail * room.f_frsize >= 1_000_000


@pytest.mark.needs_root
def test_an_exchange_that_fills_the_source(tmp_path: Path) -> None:
    """The first side is staged by then."""
    with tmpfs(tmp_path / "a", size="1m") as a, tmpfs(tmp_path / "b") as b:
        (a / "here").write_bytes(b"small")
        _files(b / "there", 10, 300_000)
        both = Disks(a, b)
        before = both.pictures()
        with pytest.raises(OSError, match="No space left"):
            move(a / "here", b / "there", RENAME_EXCHANGE)
        assert both.pictures() == before
        assert both.reserved == []


@pytest.mark.needs_root
def test_a_disk_of_which_the_file_would_fill_every_block(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "a") as a, image(tmp_path / "b", "ext4", size="8M") as b:
        (a / "here").write_bytes(os.urandom(9 << 20))
        with pytest.raises(OSError, match="No space left"):
            move(a / "here", b / "there")
        assert os.listdir(b) == ["lost+found"]


@contextmanager
def _ramfs(path: Path) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "test", str(path)], check=True, timeout=20)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=20)


@pytest.mark.needs_root
def test_attributes_that_the_target_does_not_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with tmpfs(tmp_path / "a") as a, _ramfs(tmp_path / "b") as b:
        (a / "here").mkdir()
        for name in ("here/one", "here/two"):
            (a / name).write_bytes(b"content")
            os.setxattr(a / name, "user.note", b"x")
        os.setxattr(a / "here", "user.\udcff", b"x")
        outcome = move(a / "here", b / "there")
        assert outcome.losses == ("attribute user.\\xff", "attribute user.note")
        assert not outcome.kept
        assert contents(b) == {"there/one": b"content", "there/two": b"content"}
    assert "user.note" in caplog.text


@pytest.mark.needs_root
@pytest.mark.parametrize("flag", ["i", "a"])
def test_what_may_not_be_removed_is_shown_under_its_old_name(tmp_path: Path, flag: str) -> None:
    """An immutable file in a tree, met when half of the tree is gone."""
    with tmpfs(tmp_path / "a") as target, image(tmp_path / "b", "ext4") as source:
        _files(source / "here", 5, 1000)
        (source / "here/locked").mkdir()
        (source / "here/locked/file").write_bytes(b"x")
        (source / "lone").write_bytes(b"x")
        before = picture(source / "here")
        locked = [source / "here/locked/file", source / "lone"]
        for path in locked:
            subprocess.run(["chattr", f"+{flag}", str(path)], check=True)
        try:
            assert move(source / "here", target / "there").kept
            assert move(source / "lone", target / "lone").kept
        finally:
            for path in locked:
                subprocess.run(["chattr", f"-{flag}", str(path)], check=False)
        assert contents(source) == {"here/locked/file": b"x", "lone": b"x"}
        assert picture(target / "there") == before
        assert Disks(source, target).reserved == []


def _move_as_nobody(source: Path, target: Path, losses: tuple[str, ...] = ()) -> None:
    """As an agent does that was started by that user."""

    def step() -> None:
        credentials._CAN_SWITCH = False  # as it is found out at the start
        outcome = move(source, target)
        assert (outcome.kept, outcome.losses) == (False, losses)

    as_user(step)


def _make_read_only(top: Path) -> None:
    """As Go's module cache, or what was copied from a CD."""
    (top / "below/deep").mkdir(parents=True)
    (top / "below/deep/file").write_bytes(b"x")
    for name in ("below/deep/file", "below/deep", "below"):
        (top / name).chmod(0o555)
    for path in (top, *top.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


@pytest.mark.needs_root
def test_read_only_folders_move_for_their_owner(tmp_path: Path) -> None:
    with home_of() as home, tmpfs(home / "disk") as disk:
        os.chmod(disk, 0o777)
        _make_read_only(home / "here")
        before = picture(home / "here")
        _move_as_nobody(home / "here", disk / "there")
        assert picture(disk / "there") == before
        assert sorted(os.listdir(home)) == ["disk"]


@pytest.mark.needs_root
def test_a_stage_with_read_only_folders_is_removed_by_its_owner(tmp_path: Path) -> None:
    with home_of() as home, tmpfs(home / "disk", size="100k") as disk:
        os.chmod(disk, 0o777)
        _make_read_only(home / "here")
        (home / "here/z").write_bytes(bytes(200_000))
        # The order of entries is the file system's: both orders have to leave nothing.
        (home / "here/a").write_bytes(bytes(200_000))

        def step() -> None:
            credentials._CAN_SWITCH = False
            with pytest.raises(OSError, match="No space left"):
                move(home / "here", disk / "there")

        as_user(step)
        assert os.listdir(disk) == []


@pytest.mark.needs_root
def test_set_uid_is_not_kept_with_another_owner(tmp_path: Path) -> None:
    with home_of() as home, tmpfs(home / "disk") as disk:
        os.chmod(disk, 0o777)
        (home / "here").write_bytes(b"#!")
        os.chown(home / "here", 1234, 1234)
        (home / "here").chmod(0o6755)
        _move_as_nobody(home / "here", disk / "there", losses=("owner",))
        seen = picture(disk / "there")[""]
        assert (seen.uid, seen.mode) == (NOBODY, 0o755)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.needs_rclone
def test_onto_rclone(tmp_path: Path) -> None:
    """It holds neither owners, modes, attributes nor links; and what it does not hold it makes a file of."""
    with tmpfs(tmp_path / "a") as a, rclone(tmp_path / "behind", tmp_path / "b") as mounted:
        b = mounted.path
        (a / "file").write_bytes(b"content" * 1000)
        os.setxattr(a / "file", "user.note", b"x")
        os.chown(a / "file", 1234, 1234)
        (a / "link").symlink_to("file")
        os.mkfifo(a / "pipe")
        (a / "tree").mkdir()
        (a / "tree/file").write_bytes(b"content")
        os.link(a / "tree/file", a / "tree/same")
        for name in ("link", "pipe"):
            with pytest.raises(OSError, match="not supported") as refusal:
                move(a / name, b / name)
            assert refusal.value.errno == ENOTSUP
        assert os.listdir(b) == []
        assert sorted(os.listdir(a)) == ["file", "link", "pipe", "tree"]
        outcome = move(a / "file", b / "file")
        assert {"owner", "attribute user.note"} <= set(outcome.losses)
        assert not outcome.kept
        outcome = move(a / "tree", b / "tree")
        assert "hard link" in outcome.losses
        behind = {"file": b"content" * 1000, "tree/file": b"content", "tree/same": b"content"}
        assert contents(b) == contents(mounted.behind) == behind
        assert sorted(os.listdir(a)) == ["link", "pipe"]
        # Its files' numbers come from their paths: once the kernel looks the renamed tree up anew, which it
        # does after a second, it sees other ones.
        calls: list[str] = []

        def slow(called: str) -> None:
            if called == "open" and calls.count("rename") == 3:  # the tree's own was the last one
                time.sleep(1.2)
            calls.append(called)

        with steps(slow):
            assert not move(b / "tree", a / "back").kept
        assert contents(mounted.behind) == {"file": b"content" * 1000}
