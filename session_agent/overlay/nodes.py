"""A node: what the kernel knows of the vault by number, and where it lies in its branch.

A folder's node holds an O_PATH descriptor, a file's node its parent and its name there. So every backing
call resolves one name in one folder that the kernel has pinned, and the rename of a folder changes its own
node only, whatever lies below.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, TypeAlias

from session_agent.fsutil.syscalls import born_at

if TYPE_CHECKING:
    from session_agent.overlay.accepted import Moving
    from session_agent.overlay.branches import OpenBranch
    from session_agent.overlay.handles import Handle
    from session_agent.overlay.inotify import Watch
    from session_agent.overlay.looking import Looked

# Plain numbers, not NewTypes: converting to those costs a tenth of a microsecond, several times a request.
NodeId: TypeAlias = int
Key: TypeAlias = int

Place: TypeAlias = "tuple[FolderNode, bytes]"
"""A name in a folder."""

Version: TypeAlias = tuple[int, int, int]
"""(mtime, ctime, size) of a file, times in nanoseconds: what differs after a change."""


def version_of(status: os.stat_result) -> Version:
    """The version of the file that has this status."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


REMOVED: Version = (0, 0, -1)
"""Of a node of which programs were told that it is gone."""


class Node:
    """Something the kernel knows. `lookups` counts how often it was told of it and has not forgotten."""

    __slots__ = (
        "announced",
        "cached_version",
        "fd",
        "format",
        "handles",
        "id",
        "key",
        "lookups",
        "name",
        "parent",
        "seen",
        "told",
    )

    def __init__(self, node_id: NodeId, key: Key, parent: FolderNode | None, name: bytes) -> None:
        self.id = node_id
        self.key = key
        # Where it was last seen. None only for the root.
        self.parent = parent
        self.name = name
        self.format = 0  # the S_IFMT part of its mode, which never changes
        self.lookups = 0
        # A folder: its O_PATH descriptor, -1 while closed. A file: an O_PATH descriptor once it has lost
        # the name above, since nothing else leads to it any more; -1 before.
        self.fd = -1
        self.handles: list[Handle] | None = None  # open handles, None for none
        # (mtime, ctime, size) that the kernel's cached pages belong to; None: unknown
        self.cached_version: Version | None = None
        self.told: int | None = None  # hash of (mtime, size) that the kernel was told last
        self.seen = 0  # its ctime then, in ns: it was there already
        # The version up to which programs have been told of changes by events; None: unknown
        self.announced: Version | None = None

    def is_changed(self, status: os.stat_result) -> bool:
        """Whether that is not what the kernel was told last: another file's, perhaps (`is_other`)."""
        return self.told != hash((status.st_mtime_ns, status.st_size))

    def is_other(
        self, status: os.stat_result, folder_fd: int, name: bytes, *, elsewhere: bool
    ) -> bool:
        """Whether what is found there is another file, with the number of this one, which is gone.

        Else it is this one: it was not made after this one was seen last. `elsewhere`: it is not where this
        one was, so it was renamed behind the vault, and has to look the same as well.
        """
        if status.st_mode & 0o170000 != self.format:
            return True
        if self.handles or self.fd >= 0 or self.told is None:
            return False  # its number cannot have become another one's; or nobody has seen it
        seen, looks_the_same = self.seen, not self.is_changed(status)
        if self.announced is not None:
            seen = max(seen, self.announced[1])
            looks_the_same |= self.announced[::2] == (status.st_mtime_ns, status.st_size)
        if not elsewhere and looks_the_same:
            return False
        single = self.format != stat.S_IFDIR and status.st_nlink == 1
        if elsewhere and single and not looks_the_same:
            return True
        try:
            return not self.branch.remote and born_at(folder_fd, name) > seen
        except OSError:
            return True

    @property
    def branch(self) -> OpenBranch:
        """The branch that it lies in."""
        assert self.parent is not None
        return self.parent.branch


class Shifted:
    """A folder's names that background moves show (`arrivals`) or hide (`departures`)."""

    __slots__ = ("arrivals", "departures")

    def __init__(self) -> None:
        self.arrivals: dict[bytes, Moving] = {}
        self.departures: dict[bytes, Moving] = {}


class FolderNode(Node):
    """A folder. `mounted` are the branches that are shown as entries of it.

    `shifted`: what is shown in it otherwise than it lies, while it is moved in the background; None for
    nothing.
    """

    __slots__ = ("_branch", "mounted", "shifted", "watch")

    def __init__(
        self,
        node_id: NodeId,
        key: Key,
        parent: FolderNode | None,
        name: bytes,
        branch: OpenBranch,
    ) -> None:
        super().__init__(node_id, key, parent, name)
        self.format = stat.S_IFDIR
        self._branch = branch
        self.mounted: dict[bytes, FolderNode] | None = None
        self.shifted: Shifted | None = None
        self.watch: Watch | Looked | None = None  # what hears of foreign changes in it

    @property
    def branch(self) -> OpenBranch:
        """The branch that its entries lie in, be it the root of that branch."""
        return self._branch

    @property
    def is_branch_root(self) -> bool:
        """Whether it is the place where a branch begins: it can be neither moved nor removed."""
        return self.parent is None or self.parent.branch is not self._branch

    def transfer(self, branch: OpenBranch) -> None:
        """It lies in another branch now (after a move)."""
        self._branch = branch
