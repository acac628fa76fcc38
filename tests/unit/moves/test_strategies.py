"""Which way a move is done: asked of the file systems, best first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EROFS
from pathlib import Path

import pytest

from session_agent.fsutil.credentials import Caller
from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from session_agent.lifecycle.journals import mount_points
from session_agent.moves.strategy import Options
from tests.support.disks import image
from tests.support.moving import move
from tests.support.storage import bind, run

pytestmark = pytest.mark.needs_root

USER = Caller(1000, 1000)
BY_COVER = Options(handle_rename=False, mounts=mount_points)
BY_COPY = Options(handle_rename=False)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two bind mounts of one file system; what is mounted at tmp_path shows both folders."""
    for name in ("here", "there"):
        (tmp_path / f"real/{name}").mkdir(parents=True)
    with (
        bind(tmp_path / "real/here", tmp_path / "a") as source,
        bind(tmp_path / "real/there", tmp_path / "b") as target,
    ):
        yield source, target


def _file_with_two_links(folder: Path) -> int:
    (folder / "file").write_bytes(b"content")
    os.link(folder / "file", folder / "other")
    return os.stat(folder / "file").st_ino


@pytest.mark.parametrize(
    ("options", "strategy"),
    [(Options(), "handle-rename"), (BY_COVER, "rename-covered"), (BY_COPY, "copy")],
    ids=["by handle", "by cover", "by copy"],
)
def test_two_mounts_of_one_file_system(
    folders: tuple[Path, Path], options: Options, strategy: str
) -> None:
    source, target = folders
    inode = _file_with_two_links(source)
    assert move(source / "file", target / "new", options=options).strategy == strategy
    status = os.stat(target / "new")
    assert (target / "new").read_bytes() == b"content"
    assert (status.st_ino == inode) is (strategy != "copy")
    assert (status.st_nlink == 2) is (strategy != "copy")
    assert os.listdir(source) == ["other"]


@pytest.mark.parametrize("options", [Options(), BY_COVER], ids=["by handle", "by cover"])
def test_an_exchange_in_one_step(folders: tuple[Path, Path], options: Options) -> None:
    source, target = folders
    (source / "x").write_bytes(b"x")
    (target / "y").mkdir()
    assert move(source / "x", target / "y", RENAME_EXCHANGE, options=options).copied == ()
    assert (target / "y").read_bytes() == b"x"
    assert (source / "x").is_dir()


@pytest.mark.parametrize("options", [Options(), BY_COVER, BY_COPY], ids=["handle", "cover", "copy"])
def test_a_read_only_mount_stays_so(tmp_path: Path, options: Options) -> None:
    """Its own flag counts, though the file system below it can be written to in another way."""
    (tmp_path / "real/here").mkdir(parents=True)
    (tmp_path / "real/there").mkdir()
    (tmp_path / "real/here/file").write_bytes(b"x")
    with (
        bind(tmp_path / "real/here", tmp_path / "a") as source,
        bind(tmp_path / "real/there", tmp_path / "b", read_only=True) as target,
    ):
        for one, other in ((source / "file", target / "new"), (target / "gone", source / "new")):
            with pytest.raises(OSError, match=r"Read-only|No such file") as refusal:
                move(one, other, options=options)
            assert refusal.value.errno in (EROFS, 2)
    assert os.listdir(tmp_path / "real/there") == []


def test_no_cover_that_the_caller_cannot_reach(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = folders
    for folder in (source, target):
        os.chmod(folder, 0o777)
    (source / "file").write_bytes(b"x")
    os.chown(source / "file", 1000, 1000)
    os.chmod(tmp_path, 0o700)  # the way to what covers both
    outcome = move(source / "file", target / "new", caller=USER, options=BY_COVER)
    assert outcome.strategy == "copy"
    assert (target / "new").read_bytes() == b"x"


@pytest.mark.parametrize(("fstype", "strategy"), [("xfs", "clone"), ("ext4", "copy")])
def test_extents_are_shared_where_that_can_be(tmp_path: Path, fstype: str, strategy: str) -> None:
    with image(tmp_path / "disk", fstype, size="300M") as disk:
        for name in ("here", "there"):
            (disk / name).mkdir()
        content = os.urandom(3_000_000)
        with (
            bind(disk / "here", tmp_path / "a") as source,
            bind(disk / "there", tmp_path / "b") as target,
        ):
            (source / "file").write_bytes(content)
            run("sync", "-f", str(disk))
            outcome = move(source / "file", target / "new", options=BY_COPY)
            assert outcome.strategy == strategy
            assert (target / "new").read_bytes() == content
            (source / "tree").mkdir()
            (source / "tree/file").write_bytes(content)
            assert move(source / "tree", target / "tree", options=BY_COPY).strategy == strategy
            assert (target / "tree/file").read_bytes() == content
