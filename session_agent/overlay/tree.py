"""The nodes: what the kernel knows of the vault by number, and where each lies in its branch.

A folder's node holds an O_PATH descriptor, a file's node its parent and its name there. So every backing
call resolves one name in one folder that the kernel has pinned, and the rename of a folder changes its own
node only, whatever lies below.

A node's number is its `st_ino`. It is made from the backing inode number, so that it is the same after the
kernel has forgotten the node and looked it up again, and from a number for each pair of branch and device,
so that two branches' files never look like hard links of each other.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from session_agent.overlay.accepted import Moving
    from session_agent.overlay.branches import OpenBranch
    from session_agent.overlay.handles import Handle
    from session_agent.overlay.inotify import Watch
    from session_agent.overlay.looking import Looked

# Plain numbers, not NewTypes: converting to those costs a tenth of a microsecond, several times a request.
NodeId: TypeAlias = int
Key: TypeAlias = int

Version: TypeAlias = tuple[int, int, int]
"""(mtime, ctime, size) of a file, times in nanoseconds: what differs after a change."""
ROOT_ID = 1

# Up to 31 pairs of branch and device give numbers below 2**53, which programs that keep numbers as
# floating point (Electron's fs.Stats) still tell apart.
_INODE_BITS = 48
_HASHED = 1 << 62


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
        # The version up to which programs have been told of changes by events; None: unknown
        self.announced: Version | None = None

    def is_alive(self, status: os.stat_result) -> bool:
        """Whether a file with its number is surely the node's, having been open or linked all the time."""
        return bool(self.handles) or self.fd >= 0 or status.st_nlink > 1

    def may_be(self, status: os.stat_result) -> bool:
        """Whether what is at another name now can be the node's: it looks as if renamed behind the vault."""
        if self.format == stat.S_IFDIR or self.told is None or self.is_alive(status):
            return True
        seen = (self.told, self.told if self.announced is None else hash(self.announced[::2]))
        return hash((status.st_mtime_ns, status.st_size)) in seen

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


class Tree:
    """All nodes that the kernel knows, by number, and the open descriptors of folders among them."""

    def __init__(self, root_branch: OpenBranch, folder_limit: int) -> None:
        self._serial: dict[tuple[int, int], int] = {}
        self._by_id: dict[NodeId, Node] = {}
        # Numbers that differ from the key: nodes that a move took to another inode, and clashes.
        self._elsewhere: dict[Key, Node] = {}
        self._spare = _HASHED
        # By object: a folder that the kernel has forgotten may be reached through a child it knows.
        self._open_folders: OrderedDict[FolderNode, None] = OrderedDict()
        self._folder_limit = folder_limit
        self.on_forget: Callable[[Node], None] = lambda _: None
        self.on_leave: Callable[[FolderNode], None] = lambda _: None
        self.catch_up: Callable[[FolderNode, int], None] = lambda _folder, _changed: None
        self.root = FolderNode(ROOT_ID, ROOT_ID, None, b"", root_branch)
        self.root.fd = root_branch.fd
        self.root.lookups = 1
        self._by_id[ROOT_ID] = self.root

    def __len__(self) -> int:
        return len(self._by_id)

    def __getitem__(self, node_id: int) -> Node:
        return self._by_id[node_id]

    def folder(self, node_id: int) -> FolderNode:
        """The folder with that number. NotADirectoryError if it is something else."""
        node = self._by_id[node_id]
        if type(node) is not FolderNode:
            raise NotADirectoryError(20, os.strerror(20))
        return node

    def nodes(self) -> Iterable[Node]:
        """All nodes, for the rare cases that must look at each."""
        return self._by_id.values()

    def key(self, branch: OpenBranch, device: int, inode: int) -> Key:
        """The identity of a backing file, as one number."""
        serial = branch.serials.get(device)
        if serial is None:
            serial = self._serial.setdefault((branch.index, device), len(self._serial) + 1)
            branch.serials[device] = serial
        if inode >> _INODE_BITS == 0:
            return serial << _INODE_BITS | inode
        # Inode numbers of 64 bits (CIFS, some FUSE servers): spread over the upper range. A clash of two
        # is found and resolved when the second node is made.
        digest = blake2b(b"%d %d" % (serial, inode), digest_size=8).digest()
        return _HASHED | int.from_bytes(digest, "big") >> 2

    def add_branch_root(self, branch: OpenBranch, parent: FolderNode, name: bytes) -> FolderNode:
        """Show `branch` as the entry `name` of `parent`. Its node is never forgotten."""
        # No file has inode number 0. A remote branch may be dead, so its device is not asked for.
        key = self.key(branch, -1 if branch.remote else os.fstat(branch.fd).st_dev, 0)
        node = FolderNode(key, key, parent, name, branch)
        node.fd = branch.fd
        node.lookups = 1
        self._by_id[node.id] = node
        if parent.mounted is None:
            parent.mounted = {}
        parent.mounted[name] = node
        return node

    def find(self, key: Key) -> Node | None:
        """The node of a backing file, if the kernel knows it."""
        node = self._by_id.get(key)
        if node is not None and node.key == key:
            return node
        return self._elsewhere.get(key)

    def found(self, parent: FolderNode, name: bytes, status: os.stat_result) -> Node:
        """The node for what a backing call found at `name` in `parent`: the known one, or a new one.

        The caller adds to `lookups` once the kernel is told of it.
        """
        key = self.key(parent.branch, status.st_dev, status.st_ino)
        node = self._by_id.get(key)
        if node is None or node.key != key:
            node = self._elsewhere.get(key)
            if node is None:
                return self._new(key, parent, name, status)
        file_format = status.st_mode & 0o170000
        elsewhere = node.parent is not parent or node.name != name
        if file_format != node.format or (elsewhere and not node.may_be(status)):
            # Another file got the inode number of one that went behind our back. It gets its own: a changed
            # type is an I/O error for good, a new generation one for calls that are under way.
            self._close(node)
            self.disown(node)
            return self._new(key, parent, name, status)
        if node.fd >= 0 and file_format != stat.S_IFDIR:
            node.parent.branch.close_later(node.fd)  # type: ignore[union-attr]  # it has a name again
            node.fd = -1
        if type(node) is FolderNode and node.watch is not None:
            self.catch_up(node, status.st_ctime_ns)
            if node.key != key:  # removed
                return self._new(key, parent, name, status)
        if elsewhere:
            self._put(node, parent, name)
        return node

    def _put(self, node: Node, parent: FolderNode, name: bytes) -> None:
        if node.parent is not parent and isinstance(node, FolderNode):
            if _leads_up(parent, node):
                return
            if node.branch is not parent.branch:
                # It went along with a folder that was moved to another branch, and is back already.
                self.detach(node, node.branch)
                node.transfer(parent.branch)
        node.parent, node.name = parent, name

    def made(self, parent: FolderNode, name: bytes, status: os.stat_result) -> Node:
        """The node for what was just made: none that the kernel knows, but for a file with another name.

        It may have the number of one that is gone. Such a folder the kernel would move here: ESTALE while its
        place is locked (d_splice_alias), then mkdir(2) tries again: EEXIST.
        """
        node = self.find(self.key(parent.branch, status.st_dev, status.st_ino))
        if node is not None and (node.format == stat.S_IFDIR or not node.is_alive(status)):
            self.disown(node)
        return self.found(parent, name, status)

    def _new(self, key: Key, parent: FolderNode, name: bytes, status: os.stat_result) -> Node:
        if key not in self._by_id:
            return self._add(key, key, parent, name, status)
        self._spare += 1  # the number is still one's that is gone, or was taken elsewhere by a move
        return self._add(self._spare, key, parent, name, status)

    def _add(
        self, node_id: NodeId, key: Key, parent: FolderNode, name: bytes, status: os.stat_result
    ) -> Node:
        node: Node
        if status.st_mode & 0o170000 == stat.S_IFDIR:
            node = FolderNode(node_id, key, parent, name, parent.branch)
        else:
            node = Node(node_id, key, parent, name)
            node.format = status.st_mode & 0o170000
        self._by_id[node_id] = node
        if node_id != key:
            self._elsewhere[key] = node
        return node

    def stand_in(self, parent: FolderNode, name: bytes, status: os.stat_result) -> Node:
        """A node for a file that is gone and was not known, for as long as it takes to say so."""
        self._spare += 1
        return self._add(self._spare, -self._spare, parent, name, status)

    def rekey(self, node: Node, branch: OpenBranch, device: int, inode: int) -> None:
        """The node's file has become another backing file (after a move). It keeps its number."""
        self._elsewhere.pop(node.key, None)
        key = self.key(branch, device, inode)
        other = self.find(key)
        if other is not None and other is not node:
            # Of a file that was deleted behind our back, and whose inode number was used again.
            self.disown(other)
        node.key = key
        if node.id != key:
            self._elsewhere[key] = node

    def disown(self, node: Node) -> None:
        """The node is no file's any more: whatever name leads the kernel to it has to be looked up anew.

        For a removed folder, whose inode number may be another one's soon; and for a file with several links
        of which one was moved to another branch: its other names would go on to lead to the moved file.
        """
        self._elsewhere.pop(node.key, None)
        node.key = -node.id

    def forget(self, node_id: int, count: int) -> None:
        """The kernel forgets `count` lookups; a node with none left is dropped and its descriptor closed."""
        node = self._by_id.get(node_id)
        if node is None:
            return
        node.lookups -= count
        if node.lookups > 0 or node is self.root:
            return
        if type(node) is FolderNode and node.is_branch_root:
            node.lookups = 0
            return
        if node.key > 0 and node.announced is not REMOVED:
            self.on_forget(node)
        self._close(node)
        del self._by_id[node.id]
        self._elsewhere.pop(node.key, None)

    def drop_unused(self, node: Node) -> None:
        """Drop a node that the kernel was not told of after all."""
        if node.lookups <= 0:
            self.forget(node.id, 0)

    def detach(self, node: FolderNode, branch: OpenBranch) -> None:
        """Close the folder's descriptor, which leads into `branch`; it is opened anew when needed."""
        self._open_folders.pop(node, None)
        self.on_leave(node)
        if node.fd >= 0:
            fd, node.fd = node.fd, -1
            branch.close_later(fd)

    def _close(self, node: Node) -> None:
        if isinstance(node, FolderNode):
            self._open_folders.pop(node, None)
            if node.watch is not None:
                self.on_leave(node)
        if node.fd >= 0:
            fd, node.fd = node.fd, -1
            node.branch.close_later(fd)

    def opened(self, node: FolderNode, fd: int) -> None:
        """Keep `fd` as the folder's descriptor; the one longest unused is closed when there are too many."""
        if node.fd >= 0:
            node.branch.close_later(fd)
            return
        node.fd = fd
        self._open_folders[node] = None
        while len(self._open_folders) > self._folder_limit:
            oldest, _ = self._open_folders.popitem(last=False)
            oldest_fd, oldest.fd = oldest.fd, -1
            oldest.branch.close_later(oldest_fd)

    def close_all(self) -> None:
        """Close every descriptor that a node holds."""
        for node in [*self._by_id.values(), *self._open_folders]:
            if node is not self.root and not (type(node) is FolderNode and node.is_branch_root):
                self._close(node)


def _leads_up(folder: FolderNode, top: Node) -> bool:
    """Whether `top` is `folder` or above it.

    A folder that is found in itself (a mount of it below it, a junction on a Windows share) must not be
    taken for having moved there: the way up from it would have no end. The kernel answers ELOOP for it.
    """
    step: FolderNode | None = folder
    while step is not None:
        if step is top:
            return True
        step = step.parent
    return False
