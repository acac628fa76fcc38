"""What a source was when it was copied, and by what a change of it is noticed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import msgspec


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """By what a change of a source file is noticed."""

    identity: tuple[int, int]
    mode: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    ctime_ns: int
    links: int  # 1 for a folder

    @classmethod
    def of(cls, status: os.stat_result) -> Snapshot:
        """The snapshot of a file with that status."""
        return cls(
            (status.st_dev, status.st_ino),
            status.st_mode,
            (status.st_uid, status.st_gid),
            _size(status),
            status.st_mtime_ns,
            status.st_ctime_ns,
            _links(status),
        )

    @property
    def format(self) -> int:
        """The kind of file: the S_IFMT part of its mode."""
        return stat.S_IFMT(self.mode)

    def still_holds(
        self, status: os.stat_result, renamed: bool = False, below_renamed: bool = False
    ) -> bool:
        """Whether a file with that status is the same, unchanged but for being `renamed`.

        A rename changes the ctime; so does, with several links, removing another name. Below a renamed folder
        the number may be another one: rclone makes it from the path.
        """
        return (
            self.still_holds_but_for_times(status, below_renamed)
            and status.st_mtime_ns == self.mtime_ns
            and (
                renamed
                or self.links > 1
                or _links(status) > 1
                or status.st_ctime_ns == self.ctime_ns
            )
        )

    def still_holds_but_for_times(
        self, status: os.stat_result, below_renamed: bool = False
    ) -> bool:
        """Whether a file with that status has the same number, mode, owner and size."""
        return (
            (below_renamed or (status.st_dev, status.st_ino) == self.identity)
            and status.st_mode == self.mode
            and (status.st_uid, status.st_gid) == self.owner
            and _size(status) == self.size
        )


def _size(status: os.stat_result) -> int:
    return 0 if stat.S_ISDIR(status.st_mode) else status.st_size


def _links(status: os.stat_result) -> int:
    return 1 if stat.S_ISDIR(status.st_mode) else status.st_nlink


NEVER = Snapshot((0, 0), 0, (0, 0), -1, -1, -1, 1)
"""What no file ever is."""


class Copied(msgspec.Struct, array_like=True):
    """A source file as it was copied, where its copy is, and the same of a folder's entries."""

    source: Snapshot
    copy: tuple[int, int]
    entries: dict[bytes, Copied] = msgspec.field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many there are, this one and all below it."""
        return 1 + sum(one.count for one in self.entries.values())

    def everything(self) -> Iterator[Copied]:
        """This one and all below it."""
        stack = [self]
        while stack:
            one = stack.pop()
            yield one
            stack.extend(one.entries.values())
