"""What is known of a move, as the journal keeps it and `session-agent moves` shows it."""

from __future__ import annotations

import os
import re
import stat
import urllib.parse
from enum import StrEnum

import msgspec

from session_agent.moves.snapshot import Snapshot


class State(StrEnum):
    """How far a move is. docs/moves.md says who sets each, and what recovery makes of it."""

    ACCEPTED = "accepted"  # to be done in the background; the vault shows the new name already
    STAGING = "staging"  # a copy is being built under a reserved name
    COMMITTING = (
        "committing"  # the copy is complete and durable; it is about to get the target's name
    )
    RETIRING = "retiring"  # the target is in place and durable; the source is being removed
    DONE = "done"
    FAILED = "failed"  # both sides are as they were; shown until somebody acknowledges it
    CANCELLED = "cancelled"  # the same, because somebody wanted it so


LIVE = frozenset({State.ACCEPTED, State.STAGING, State.COMMITTING, State.RETIRING})
"""States that recovery has to do something about."""


class End(msgspec.Struct, frozen=True):
    """A name in a folder of a branch. `folder` is the path below the branch, "" for its own folder.

    Each is percent-encoded, see `encode`: any bytes survive JSON that way. `branch` is the branch's name in
    the vault, "" for the root branch.
    """

    branch: str
    folder: str
    name: str

    @property
    def steps(self) -> list[bytes]:
        """The folders on the way from the branch."""
        return [decode(step) for step in self.folder.split("/")] if self.folder else []

    @property
    def shown(self) -> str:
        """The path in the vault, for people."""
        parts = [self.branch, self.folder, self.name]
        return "/".join(urllib.parse.unquote(part) for part in parts if part)


class Identity(msgspec.Struct, frozen=True):
    """By what a file is known again after a restart. No device: its number may be another one by then."""

    inode: int
    kind: int  # the S_IFMT part of its mode
    size: int  # 0 for a folder
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """The identity of a file with that status."""
        kind = stat.S_IFMT(status.st_mode)
        size = 0 if kind == stat.S_IFDIR else status.st_size
        return cls(status.st_ino, kind, size, status.st_mtime_ns)


class Record(msgspec.Struct, frozen=True):
    """One move. Times are in seconds since 1970. `flags` are renameat2's, `error` is an errno or 0.

    `stages`: inode numbers of the complete copies, in COMMITTING and later; an exchange has two. `copied`:
    what each was copied of. `boot` tells which start of the machine the stage was written under. Totals
    are 0 until known.
    """

    id: str
    created: float
    source: End
    target: End
    source_was: Identity
    target_was: Identity | None = None
    flags: int = 0
    background: bool = False
    state: State = State.STAGING
    strategy: str = "copy"
    stages: tuple[int, ...] = ()
    copied: tuple[Snapshot, ...] = ()
    boot: str = ""
    total_bytes: int = 0
    total_files: int = 0
    losses: tuple[str, ...] = ()
    kept: bool = False
    leftover: bool = False  # it has failed or was taken back, and its copy is still to be removed
    error: int = 0
    ended: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether the names in it can be names. The journal is the user's file: anything may be in it."""
        names = [self.source.name, self.target.name]
        steps = [step for end in (self.source, self.target) for step in end.folder.split("/")]
        return (
            re.fullmatch(r"[0-9a-f]{12}", self.id) is not None
            and all(map(_is_name, names))
            and all(step == "" or _is_name(step) for step in steps)
        )

    @property
    def acknowledged(self) -> bool:
        """Whether it failed, and nobody has to know of it any more; it may have left a copy all the same."""
        return self.state is State.CANCELLED and self.error != 0

    @property
    def live(self) -> bool:
        """Whether recovery would have to do something about it."""
        return self.state in LIVE


def _is_name(text: str) -> bool:
    name = decode(text)
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name


def encode(name: bytes) -> str:
    """`name` as ASCII that `decode` makes the same bytes of; readable where the name is."""
    return urllib.parse.quote_from_bytes(name, safe=" !$&'()+,;=@~#[]{}")


def decode(text: str) -> bytes:
    """The name that `encode` made `text` of."""
    return urllib.parse.unquote_to_bytes(text)


def boot_id() -> str:
    """What is the same until the machine starts anew (random(4)); "" where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
