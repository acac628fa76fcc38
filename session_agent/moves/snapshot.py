"""What a source was when it was copied, and whether it still is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from session_agent.fsutil.at import LISTING, open_at, stat_at
from session_agent.moves.data import SourceChangedError
from session_agent.moves.names import plain_names


@dataclass(frozen=True, slots=True)
class Snapshot:
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
        folder = stat.S_ISDIR(status.st_mode)
        return cls(
            (status.st_dev, status.st_ino),
            status.st_mode,
            (status.st_uid, status.st_gid),
            0 if folder else status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            1 if folder else status.st_nlink,
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
        now = Snapshot.of(status)
        return (
            self.still_holds_but_for_times(status, below_renamed)
            and now.mtime_ns == self.mtime_ns
            and (renamed or self.links > 1 or now.links > 1 or now.ctime_ns == self.ctime_ns)
        )

    def still_holds_but_for_times(
        self, status: os.stat_result, below_renamed: bool = False
    ) -> bool:
        """Whether a file with that status has the same number, mode, owner and size."""
        now = Snapshot.of(status)
        return (below_renamed or now.identity == self.identity) and (
            (now.mode, now.owner, now.size) == (self.mode, self.owner, self.size)
        )


NEVER = Snapshot((0, 0), 0, (0, 0), -1, -1, -1, 1)
"""What no file ever is."""


@dataclass(slots=True)
class Copied:
    """A source file as it was copied, where its copy is, and the same of a folder's entries."""

    source: Snapshot
    copy: tuple[int, int]
    entries: dict[bytes, Copied] = field(default_factory=dict)

    def everything(self) -> Iterator[Copied]:
        """This one and all below it."""
        stack = [self]
        while stack:
            one = stack.pop()
            yield one
            stack.extend(one.entries.values())


def verify(folder: int, name: bytes, copied: Copied, renamed: bool = False) -> None:
    """SourceChangedError unless the source and all below it is what it was when it was copied.

    `renamed`: it lies under another name by now.
    """
    try:
        status = stat_at(folder, name)
        unchanged = copied.source.still_holds(status, renamed)
        if copied.source.format != stat.S_IFDIR or not stat.S_ISDIR(status.st_mode):
            if not unchanged:
                raise SourceChangedError
            return
        below = open_at(folder, name, LISTING)
    except FileNotFoundError:
        raise SourceChangedError from None
    try:
        # rclone's folders change their times by themselves.
        if not unchanged and not (
            copied.source.still_holds_but_for_times(status)
            and set(plain_names(below)) == set(copied.entries)
        ):
            raise SourceChangedError
        for entry_name, entry in copied.entries.items():
            verify(below, entry_name, entry)
    finally:
        os.close(below)
