"""A single file of every kind, from one file system to another."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from session_agent.fsutil.credentials import Caller
from tests.support.disks import Seen, image, picture
from tests.support.moving import Disks, move

BEFORE_1970 = -1_500_000_001  # ns


def _moved(disks: Disks) -> tuple[Seen, Seen]:
    """Move "file", and answer what it was and what it is."""
    before = picture(disks.source / "file")[""]
    outcome = move(disks.source / "file", disks.target / "moved")
    assert (outcome.strategy, outcome.losses, outcome.kept) == ("copy", (), False)
    assert disks.pictures()[0] == {}
    assert os.listdir(disks.target) == ["moved"]
    return before, picture(disks.target / "moved")[""]


@pytest.mark.parametrize("size", [0, 1, 4096, (8 << 20) - 1, (16 << 20) + 17])
def test_bytes_mode_and_times(disks: Disks, size: int) -> None:
    path = disks.source / "file"
    path.write_bytes(os.urandom(4096) * (size // 4096) + b"x" * (size % 4096))
    path.chmod(0o640)
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    before, after = _moved(disks)
    assert after == before
    assert len(after.content) == size
    atime = os.stat(disks.target / "moved").st_atime_ns
    assert atime >= 1_234_567_890_123_456_789  # the picture itself has read it since


def test_a_time_before_1970(disks: Disks) -> None:
    (disks.source / "file").touch()
    os.utime(disks.source / "file", ns=(BEFORE_1970, BEFORE_1970))
    before, after = _moved(disks)
    assert after == before
    assert after.mtime_ns == BEFORE_1970


@pytest.mark.parametrize("name", [b"\xff\xfe", b"-rf", b" \n\t", b"x" * 255])
def test_names_of_any_bytes(disks: Disks, name: bytes) -> None:
    source, target = (Path(folder, os.fsdecode(name)) for folder in (disks.source, disks.target))
    source.write_bytes(b"content")
    move(source, target)
    assert os.listdir(os.fsencode(disks.target)) == [name]
    assert target.read_bytes() == b"content"


def test_attributes(disks: Disks) -> None:
    (disks.source / "file").write_bytes(b"content")
    os.setxattr(disks.source / "file", "user.note", b"\0\xff" * 100)
    os.setxattr(disks.source / "file", "user.empty", b"")
    before, after = _moved(disks)
    assert after == before
    assert dict(after.attributes) == {"user.note": b"\0\xff" * 100, "user.empty": b""}


@pytest.mark.parametrize("content", [b"relative/../gone", b"\xff \n", b"/" + b"x" * 4000])
def test_a_symbolic_link_moves_itself(disks: Disks, content: bytes) -> None:
    os.symlink(content, os.fsencode(disks.source / "file"))
    os.utime(disks.source / "file", ns=(5, 7), follow_symlinks=False)
    before, after = _moved(disks)
    assert after == before
    assert (after.format, after.content) == (stat.S_IFLNK, content)


def test_what_a_symbolic_link_leads_to_stays(disks: Disks) -> None:
    (disks.source / "aim").write_bytes(b"aim")
    (disks.source / "file").symlink_to("aim")
    aim = picture(disks.source / "aim")
    move(disks.source / "file", disks.target / "moved")
    assert picture(disks.source / "aim") == aim
    assert os.listdir(disks.source) == ["aim"]


def test_a_fifo(disks: Disks) -> None:
    os.mkfifo(disks.source / "file", 0o622)
    os.chmod(disks.source / "file", 0o622)
    before, after = _moved(disks)
    assert after == before
    assert after.format == stat.S_IFIFO


def test_a_socket(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(disks.source)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("file")
    before, after = _moved(disks)
    assert after == before
    assert after.format == stat.S_IFSOCK


@pytest.mark.needs_root
def test_a_device(disks: Disks) -> None:
    os.mknod(disks.source / "file", stat.S_IFCHR | 0o620, os.makedev(1, 3))
    os.chmod(disks.source / "file", 0o620)
    before, after = _moved(disks)
    assert after == before
    assert after.device == os.makedev(1, 3)


@pytest.mark.needs_root
def test_owner_set_uid_and_capabilities(disks: Disks) -> None:
    path = disks.source / "file"
    path.write_bytes(b"#!")
    os.chown(path, 1234, 4321)
    path.chmod(0o6755)
    # cap_net_raw+ep, revision 2: chown takes it away, so it has to come after the owner.
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(path, "security.capability", capability)
    before, after = _moved(disks)
    assert after == before
    assert (after.uid, after.gid, after.mode) == (1234, 4321, 0o6755)
    assert dict(after.attributes)["security.capability"] == capability


@pytest.mark.needs_root
def test_the_owner_is_kept_when_another_moves_it(disks: Disks) -> None:
    (disks.source / "file").write_bytes(b"theirs")
    os.chown(disks.source / "file", 1234, 1234)
    (disks.source / "file").chmod(0o600)
    for folder in (disks.source, disks.target):
        os.chmod(folder, 0o777)
    for folder in disks.target.parents:
        if not os.stat(folder).st_mode & 0o001:
            os.chmod(folder, 0o711)
    before = picture(disks.source / "file")
    move(disks.source / "file", disks.target / "moved", caller=Caller(4321, 4321))
    assert picture(disks.target / "moved") == before


def test_one_of_several_links_becomes_a_file_of_its_own(disks: Disks) -> None:
    (disks.source / "file").write_bytes(b"content")
    os.link(disks.source / "file", disks.source / "other")
    outcome = move(disks.source / "file", disks.target / "moved")
    assert (outcome.strategy, outcome.kept) == ("copy", False)
    assert os.listdir(disks.source) == ["other"]
    assert (disks.source / "other").read_bytes() == b"content"
    assert (disks.target / "moved").read_bytes() == b"content"


def test_what_is_replaced_keeps_its_other_links(disks: Disks) -> None:
    """Copying into the file itself, as shutil.move does, would change all of them."""
    (disks.source / "file").write_bytes(b"new")
    (disks.target / "moved").write_bytes(b"old")
    os.link(disks.target / "moved", disks.target / "other")
    with open(disks.target / "moved", "rb") as reader:
        move(disks.source / "file", disks.target / "moved")
        assert reader.read() == b"old"
    assert (disks.target / "other").read_bytes() == b"old"
    assert (disks.target / "moved").read_bytes() == b"new"
    assert os.stat(disks.target / "other").st_nlink == 1


def test_a_symbolic_link_at_the_target_is_replaced(disks: Disks) -> None:
    (disks.source / "file").write_bytes(b"new")
    (disks.target / "aim").write_bytes(b"aim")
    (disks.target / "moved").symlink_to("aim")
    move(disks.source / "file", disks.target / "moved")
    assert not (disks.target / "moved").is_symlink()
    assert (disks.target / "aim").read_bytes() == b"aim"


def test_the_copy_is_the_one_that_is_told(disks: Disks) -> None:
    (disks.source / "file").write_bytes(b"content")
    source = os.lstat(disks.source / "file")
    (copied,) = move(disks.source / "file", disks.target / "moved").copied
    target = os.lstat(disks.target / "moved")
    assert copied.copy == (target.st_dev, target.st_ino)
    assert copied.source.identity == (source.st_dev, source.st_ino)
    assert copied.entries == {}


@pytest.mark.needs_root
def test_no_rights_come_from_the_target_folders_default_acl(tmp_path: Path) -> None:
    """A rename gives nobody new rights; a file that is made there gets those of the folder's ACL."""
    with image(tmp_path / "a", "ext4") as source, image(tmp_path / "b", "ext4") as target:
        (source / "secret").write_bytes(b"for my group only")
        (source / "secret").chmod(0o640)
        (source / "folder").mkdir(0o750)
        (source / "folder/below").touch(0o640)
        os.setxattr(target, "system.posix_acl_default", _acl(user=1234))
        before = [picture(source / name) for name in ("secret", "folder")]
        for name in ("secret", "folder"):
            move(source / name, target / name)
        assert [picture(target / name) for name in ("secret", "folder")] == before


@pytest.mark.needs_root
def test_acls_move_with_the_file(tmp_path: Path) -> None:
    with (
        image(tmp_path / "a", "ext4") as ext4,
        image(tmp_path / "b", "xfs", size="300M") as xfs,
        image(tmp_path / "c", "ext4") as other,
    ):
        (ext4 / "folder").mkdir()
        (ext4 / "folder/file").touch()
        os.setxattr(ext4 / "folder/file", "system.posix_acl_access", _acl(user=1234))
        os.setxattr(ext4 / "folder", "system.posix_acl_access", _acl(user=1235))
        os.setxattr(ext4 / "folder", "system.posix_acl_default", _acl(user=1236))
        before = picture(ext4 / "folder")
        assert len(before[""].attributes) == 2
        for source, target in ((ext4, xfs), (xfs, other)):
            assert move(source / "folder", target / "folder").losses == ()
        # xfs shows its own form of an ACL besides, which would come back to it out of date.
        assert picture(other / "folder") == before


def _acl(user: int) -> bytes:
    """user::rwx user:`user`:rwx group::r-x mask::rwx other::--- (linux/posix_acl_xattr.h)."""
    none = 0xFFFFFFFF
    entries = [(0x01, 7, none), (0x02, 7, user), (0x04, 5, none), (0x10, 7, none), (0x20, 0, none)]
    return (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, rights, who in entries
    )
