"""Calls on a name in a folder: whatever lies there, they stay in the folder."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.fsutil import at
from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.as_user import as_user, home_of


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """An O_PATH descriptor of tmp_path."""
    fd = os.open(tmp_path, at.FOLDER)
    yield fd
    os.close(fd)


def test_a_link_is_looked_at_and_not_followed(tmp_path: Path, folder: int) -> None:
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert stat.S_ISLNK(at.stat_at(folder, b"link").st_mode)
    assert at.exists_at(folder, b"dangling")
    assert not at.exists_at(folder, b"nowhere")
    for flags in (os.O_RDONLY, at.LISTING, at.FOLDER, os.O_WRONLY | os.O_CREAT):
        with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
            os.close(at.open_at(folder, b"link", flags))
        with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
            os.close(at.open_at(folder, b"dangling", flags))
    assert not (tmp_path / "nowhere").exists()


def test_a_reference_is_the_link_itself(tmp_path: Path, folder: int) -> None:
    os.symlink(b"/\xff", os.fsencode(tmp_path / "link"))
    fd = at.open_at(folder, b"link", at.REFERENCE)
    try:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        assert os.readlink(b"", dir_fd=fd) == b"/\xff"
        os.setxattr(tmp_path, "user.note", b"the folder's")
        assert os.listxattr(at.by_descriptor(fd)) == []  # not those of what it leads to
    finally:
        os.close(fd)


def test_descriptors_are_not_inherited(tmp_path: Path, folder: int) -> None:
    (tmp_path / "file").touch()
    fds = [at.open_at(folder, b"file", os.O_RDWR), at.open_listing(folder)]
    assert [os.get_inheritable(fd) for fd in fds] == [False, False]
    for fd in fds:
        os.close(fd)


def test_a_descriptor_leads_to_the_file_whatever_its_name_is(tmp_path: Path, folder: int) -> None:
    (tmp_path / "file").write_bytes(b"content")
    fd = at.open_at(folder, b"file", os.O_PATH)
    (tmp_path / "file").rename(tmp_path / "new")
    (tmp_path / "file").write_bytes(b"another")
    assert Path(at.by_descriptor(fd)).read_bytes() == b"content"
    (tmp_path / "new").unlink()
    assert Path(at.by_descriptor(fd)).read_bytes() == b"content"
    os.chmod(at.by_descriptor(fd), 0o604)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o604
    os.close(fd)


def test_fsync_of_a_folder_by_any_descriptor(tmp_path: Path, folder: int) -> None:
    before = os.listdir("/proc/self/fd")
    at.fsync_folder(folder)
    proc = os.open("/proc", at.FOLDER)  # it cannot fsync: EINVAL
    at.fsync_folder(proc)
    os.close(proc)
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(NotADirectoryError):
        at.fsync_folder(file)
    os.close(file)
    assert os.listdir("/proc/self/fd") == before


def test_rename_with_and_without_flags(tmp_path: Path, folder: int) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    at.rename_at(folder, b"a", folder, b"b", RENAME_EXCHANGE)
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"b", b"a")
    with pytest.raises(FileExistsError):
        at.rename_at(folder, b"a", folder, b"b", RENAME_NOREPLACE)
    at.rename_at(folder, b"a", folder, b"b")
    assert (tmp_path / "b").read_bytes() == b"b"
    with pytest.raises(FileNotFoundError):
        at.rename_at(folder, b"a", folder, b"c", RENAME_NOREPLACE)


def test_remove_tree(tmp_path: Path, folder: int) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").touch()
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/link").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "tree/pipe")
    os.symlink("outside", tmp_path / "link")
    (tmp_path / "file").touch()
    for name in (b"tree", b"link", b"file", b"never there"):
        at.remove_tree(folder, name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "outside"]


def test_remove_tree_of_read_only_folders() -> None:
    with home_of() as home:
        (home / "tree/below").mkdir(parents=True)
        (home / "tree/below/file").touch()
        for path in (home / "tree/below", home / "tree"):
            path.chmod(0o500)
        if os.geteuid() == 0:
            for path in (home / "tree", *home.rglob("*")):
                os.chown(path, 65534, 65534)

        def step() -> None:
            fd = os.open(home, at.FOLDER)
            at.remove_tree(fd, b"tree")

        as_user(step) if os.geteuid() == 0 else step()
        assert os.listdir(home) == []


def test_two_that_remove_the_same_tree(tmp_path: Path, folder: int) -> None:
    """What vanishes meanwhile is no error."""
    errors: list[OSError] = []

    def remove() -> None:
        try:
            at.remove_tree(folder, b"tree")
        except OSError as error:
            errors.append(error)

    for _ in range(20):
        for number in range(60):
            (tmp_path / f"tree/{number}/below").mkdir(parents=True)
        threads = [threading.Thread(target=remove) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert not (tmp_path / "tree").exists()


def test_remove_tree_says_what_it_cannot_remove(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    proc = os.open(f"/proc/{os.getpid()}", at.FOLDER)
    with pytest.raises(OSError, match=r"not permitted|denied"):
        at.remove_tree(proc, b"status")
    os.close(proc)
    assert os.listdir("/proc/self/fd") == before
