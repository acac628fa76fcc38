from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from session_agent.errors import UserFileError
from session_agent.fsutil import durable
from tests.support.as_user import NOBODY, as_user, home_of


def listing(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_reads_what_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert durable.read_regular(str(path)) is None
    durable.replace(str(path), b"one")
    durable.replace(str(path), b"")
    assert durable.read_regular(str(path)) == b""
    assert listing(tmp_path) == {"file"}


def test_old_content_stays_readable_to_who_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        durable.replace(str(path), b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_new_file_gets_the_mode_less_the_umask_and_an_old_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        durable.replace(str(path), b"")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o606)
        durable.replace(str(path), b"x", 0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o606
    finally:
        os.umask(before)


@pytest.mark.needs_root
def test_owner_and_group_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    os.chown(path, NOBODY, 4321)
    durable.replace(str(path), b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, 4321)


def test_a_link_to_an_own_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    target = tmp_path / "dotfiles" / "real"
    target.write_bytes(b"old")
    (tmp_path / "file").symlink_to("dotfiles/real")
    durable.replace(str(tmp_path / "file"), b"new")
    assert (tmp_path / "file").is_symlink()
    assert target.read_bytes() == b"new"
    assert listing(tmp_path / "dotfiles") == {"real"}


@pytest.mark.parametrize("target", ["nowhere", "file"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").symlink_to(target)
    with pytest.raises(UserFileError, match="leads nowhere"):
        durable.replace(str(tmp_path / "file"), b"new")
    assert listing(tmp_path) == {"file"}


@pytest.mark.needs_root
def test_a_link_to_the_file_of_another_is_refused() -> None:
    with home_of(1) as theirs, home_of() as home:
        theirs.chmod(0o777)
        target = theirs / "target"
        target.write_bytes(b"theirs")
        os.chown(target, 1, 1)
        target.chmod(0o666)
        (home / "file").symlink_to(target)

        def step() -> None:
            with pytest.raises(UserFileError, match="another user"):
                durable.replace(str(home / "file"), b"mine")

        as_user(step)
        assert target.read_bytes() == b"theirs"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def link_to_folder(path: Path) -> None:
    path.symlink_to(path.parent)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [fifo, folder, link_to_folder, link_to_device, unix_socket])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: object) -> None:
    path = tmp_path / "file"
    assert callable(make)
    make(path)
    before = path.lstat()
    with pytest.raises(UserFileError, match="where a file is expected"):
        durable.read_regular(str(path))
    with pytest.raises(UserFileError):
        durable.replace(str(path), b"new")
    assert path.lstat().st_ino == before.st_ino
    assert listing(tmp_path) == {"file"}


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert durable.read_regular(str(path), limit=5) == b"12345"
    with pytest.raises(UserFileError, match="larger than 4 bytes"):
        durable.read_regular(str(path), limit=4)


@pytest.mark.needs_root
def test_what_the_user_write_protected_is_left_alone() -> None:
    with home_of() as home:
        path = home / "file"
        path.write_bytes(b"old")
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o444)

        def step() -> None:
            with pytest.raises(UserFileError, match="write-protected"):
                durable.replace(str(path), b"new")

        as_user(step)
        assert path.read_bytes() == b"old"


@pytest.mark.needs_root
def test_a_folder_one_may_not_write_to() -> None:
    with home_of(1) as home:
        home.chmod(0o755)
        path = home / "file"
        path.write_bytes(b"old")
        path.chmod(0o666)

        def step() -> None:
            with pytest.raises(PermissionError) as caught:
                durable.replace(str(path), b"new")
            assert caught.value.filename == str(path)

        as_user(step)
        assert path.read_bytes() == b"old"
        assert listing(home) == {"file"}


@pytest.mark.needs_root
def test_no_space_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="No space") as caught:
            durable.replace(str(path), b"x" * 100_000)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert path.read_bytes() == b"old"
        assert listing(tmp_path) == {"file"}
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises((OSError, UserFileError)):
            durable.replace(str(path), b"new")
        with pytest.raises(OSError, match="Read-only") as caught:
            durable.replace(str(tmp_path / "other"), b"new")
        assert listing(tmp_path) == {"file"}
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_only_stale_temporary_files_of_its_own_are_swept(tmp_path: Path) -> None:
    stale = tmp_path / ".session-agent-new-0000"
    recent = tmp_path / ".session-agent-new-1111"
    stage = tmp_path / ".~session-agent-stage"
    for path in (stale, recent, stage):
        path.write_bytes(b"")
    for path in (stale, stage):
        os.utime(path, (time.time() - 7200,) * 2)
    durable.replace(str(tmp_path / "file"), b"")
    assert listing(tmp_path) == {"file", recent.name, stage.name}


def test_a_kill_at_any_time_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    versions = [bytes([65 + i]) * 200_000 for i in range(2)]
    path.write_bytes(versions[0])
    for attempt in range(20):
        pid = os.fork()
        if pid == 0:
            while True:
                for version in versions:
                    durable.replace(str(path), version)
        time.sleep(0.003 + attempt * 0.0007)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert path.read_bytes() in versions
