"""All nodes that the kernel knows, found by their number or their file, and the folders' open descriptors.

A node's number is its `st_ino`. It is made from the backing inode number, so that it is the same after the
kernel has forgotten the node and looked it up again, and from a number for each pair of branch and device,
so that two branches' files never look like hard links of each other.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

from session_agent.overlay.nodes import REMOVED, FolderNode, Key, Node, NodeId, Place

if TYPE_CHECKING:
    from session_agent.overlay.branches import OpenBranch

ROOT_ID = 1

# Up to 31 pairs of branch and device give numbers below 2**53, which programs that keep numbers as
# floating point (Electron's fs.Stats) still tell apart.
_INODE_BITS = 48
_HASHED = 1 << 62
_SPARE = 31 << _INODE_BITS  # the first number that is made from no inode's


class Tree:
    """All nodes that the kernel knows, by number, and the open descriptors of folders among them."""

    def __init__(self, root_branch: OpenBranch, folder_limit: int) -> None:
        self._serial: dict[tuple[int, int], int] = {}
        self._by_id: dict[NodeId, Node] = {}
        # Numbers that differ from the key: nodes that a move took to another inode, and clashes.
        self._elsewhere: dict[Key, Node] = {}
        self._spare = _SPARE
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
        doubtful = elsewhere or file_format != node.format or node.is_changed(status)
        if doubtful and node.is_other(status, parent.fd, name, elsewhere=elsewhere):
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
        if node is not None:
            linked = status.st_nlink > 1 or node.handles or node.fd >= 0
            if node.format == stat.S_IFDIR or not linked:
                self.disown(node)
        return self.found(parent, name, status)

    def renamed(self, source: Place, target: Place, status: os.stat_result) -> None:
        """What is at `target` now was at `source`; the kernel has brought what it knew there along."""
        node = self.find(self.key(target[0].branch, status.st_dev, status.st_ino))
        if node is None:
            return
        elsewhere = (node.parent, node.name) != source
        if node.is_other(status, target[0].fd, target[1], elsewhere=elsewhere):
            self.disown(node)
        else:
            node.parent, node.name = target

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
        node.seen = time.time_ns()
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

    def hold(self, node: Node, branch: OpenBranch, fd: int) -> None:
        """Keep a descriptor of what has no name any more until it is forgotten: nothing else leads to it."""
        if node.fd >= 0:
            branch.close_later(fd)
        else:
            node.fd = fd
        if isinstance(node, FolderNode):
            self._open_folders.pop(node, None)

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
