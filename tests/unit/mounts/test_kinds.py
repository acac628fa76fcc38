from __future__ import annotations

import pytest

from session_agent.model import MountKind
from session_agent.mounts.kinds import kind_of, rclone_remote
from session_agent.mounts.mountinfo import parse


@pytest.mark.parametrize(
    ("fstype", "root", "kind"),
    [
        ("ext4", "/srv/shared/wiki", MountKind.LOCAL),
        ("tmpfs", "/", MountKind.LOCAL),
        ("overlay", "/", MountKind.LOCAL),
        ("ext4", "/var/lib/docker/volumes/pers/_data", MountKind.VOLUME),
        ("xfs", "/volumes/pers/_data/sub", MountKind.VOLUME),  # the data root is its own mount
        ("btrfs", "/@/docker/volumes/x/_data", MountKind.VOLUME),
        ("ext4", "/srv/volumes/pers/_database", MountKind.LOCAL),
        ("ext4", "/srv/myvolumes/pers/_data", MountKind.LOCAL),
        ("fuse.rclone", "/", MountKind.RCLONE),
        ("nfs4", "/var/lib/docker/volumes/pers/_data", MountKind.NFS),
        ("nfs", "/", MountKind.NFS),
        ("ceph", "/", MountKind.NFS),
        ("cifs", "/", MountKind.CIFS),
        ("smb3", "/", MountKind.CIFS),
        ("fuse", "/", MountKind.FUSE),
        ("fuse.sshfs", "/", MountKind.FUSE),
        ("fuse.rclonefs", "/", MountKind.FUSE),
        ("virtiofs", "/", MountKind.FUSE),
        ("fusectl", "/", MountKind.LOCAL),
    ],
)
def test_kind(fstype: str, root: str, kind: MountKind) -> None:
    (entry,) = parse(f"1 0 0:1 {root} /x rw - {fstype} none rw".encode())
    assert kind_of(entry) is kind


@pytest.mark.parametrize(
    ("source", "remote"),
    [
        ("nextcloud:", "nextcloud"),
        ("drive:folder/sub:x", "drive"),
        ("drive{Ab3-_}:sub", "drive"),
        (":webdav:", ""),
        ("none", "none"),
    ],
)
def test_rclone_remote(source: str, remote: str) -> None:
    assert rclone_remote(source) == remote
