"""Frozen data that the rooms of the program pass to each other. No behaviour beyond what is derived.

Paths are `str` as `os.fsdecode` gives them: any byte that is not UTF-8 is a lone surrogate. What is
printed or written as text goes through `printable` first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum


class Mode(StrEnum):
    """What a mount lets its user do."""

    RW = "rw"
    RO = "ro"


class Grant(StrEnum):
    """What the policy gives a user of a folder."""

    HIDDEN = "hidden"
    RO = "ro"
    RW = "rw"

    @property
    def rank(self) -> int:
        """The more, the higher."""
        return ("hidden", "ro", "rw").index(self.value)


class MountKind(StrEnum):
    """Where the bytes of a mount come from."""

    LOCAL = "local"  # a bind mount or a file system of this host
    VOLUME = "volume"  # a Docker volume
    RCLONE = "rclone"
    NFS = "nfs"
    CIFS = "cifs"
    FUSE = "fuse"  # any FUSE file system but rclone's

    @property
    def remote(self) -> bool:
        """Whether a call into it can wait for a network or for another program."""
        return self not in (MountKind.LOCAL, MountKind.VOLUME)


class MountState(StrEnum):
    """Whether a mount answers."""

    ALIVE = "alive"
    DEAD = "dead"  # its server is gone: every call fails (ENOTCONN, EIO, ESTALE)
    HUNG = "hung"  # calls into it do not return


@dataclass(frozen=True, slots=True)
class CloudMount:
    """One entry of CLOUD_MOUNTS: a path, and the provider's type in lower case ("" if not given)."""

    path: str
    type: str


@dataclass(frozen=True, slots=True)
class Mount:
    """A kernel mount that holds the user's storage.

    `name` is unique among the mounts of one discovery and does not change between two that see the same
    mounts: the path below the vault, else the last component of `path`, numbered where taken.
    `cloud_type` is what CLOUD_MOUNTS says of it ("s3", "gdrive", …), "" if it says nothing.
    """

    name: str
    path: str
    source: str
    fstype: str
    kind: MountKind
    mode: Mode
    state: MountState
    cloud_type: str = ""
    root: str = "/"  # the folder of its file system that is mounted (mountinfo field 4)
    device: str = ""  # "major:minor" of that file system (mountinfo field 3)


@dataclass(frozen=True, slots=True)
class Branch:
    """A mount as the vault shows it. `name` is its path in the vault, without a leading slash."""

    name: str
    path: str
    mode: Mode
    state: MountState
    kind: MountKind
    cloud_type: str = ""
    root: str = "/"  # with `device`: which folder of which file system this is, as in Mount
    device: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """The sync daemon's unit of collaboration, one per folder. `path` is a branch's in the vault."""

    path: str
    room: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class SessionUser:
    """The user whose desktop this is. `groups` are the supplementary ones, `gid` included or not."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class Session:
    """All that is known of this session once the mounts are discovered."""

    user: SessionUser
    vault: str
    root_branch: str
    state_dir: str
    mounts: tuple[Mount, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Every mount as a branch, in the mounts' order. The root branch is not among them."""
        return tuple(
            Branch(m.name, m.path, m.mode, m.state, m.kind, m.cloud_type, m.root, m.device)
            for m in self.mounts
        )


def printable(path: str) -> str:
    r"""`path` as text that any encoder accepts: bytes that are not UTF-8 become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
