"""Where the bytes of a mount come from. Pure."""

from __future__ import annotations

import re

from session_agent.model import MountKind
from session_agent.mounts.mountinfo import MountEntry

# Docker's and Podman's local volumes: <their data root>/volumes/<name>/_data. The data root itself
# is not in the field where it is a file system of its own.
_VOLUME = re.compile(r"(?:^|/)volumes/[^/]+/_data(?:/|$)")

_CIFS = frozenset({"cifs", "smb3", "smbfs"})
# The kernel's clients of other servers count as NFS: they wait for a network just like it.
_NFS = frozenset(
    {"nfs", "nfs4", "9p", "afs", "ceph", "coda", "gfs2", "lustre", "ocfs2", "orangefs"}
)
# virtiofs and the Docker Desktop file systems speak FUSE with a server outside of the machine.
_FUSE = frozenset({"fuse", "fuseblk", "virtiofs"})


def kind_of(entry: MountEntry) -> MountKind:
    """The kind of a mount that holds user storage."""
    if entry.fstype == "fuse.rclone":
        return MountKind.RCLONE
    if entry.fstype in _NFS:
        return MountKind.NFS
    if entry.fstype in _CIFS:
        return MountKind.CIFS
    if entry.fstype in _FUSE or entry.fstype.startswith("fuse."):
        return MountKind.FUSE
    return MountKind.VOLUME if _VOLUME.search(entry.root) else MountKind.LOCAL


def rclone_remote(source: str) -> str:
    """The remote's name out of an rclone mount's source, such as "drive" of "drive{AbC1}:sub".

    "" for a remote without a name (":webdav:"). The braces hold a hash of options given besides.
    """
    return source.partition(":")[0].partition("{")[0]
