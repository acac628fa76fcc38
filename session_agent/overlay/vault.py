"""The vault's state, and how an operation gets from a node to a descriptor it can work with.

The operations themselves are in names, attributes, files, folders and moving. Each is called with the
caller's identity and raises OSError with the errno that the program is to see.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from errno import ENOTCONN, EPERM, ESTALE
from typing import TYPE_CHECKING, TypeAlias

import trio

from session_agent.fsutil.at import Opened
from session_agent.fsutil.credentials import AGENT, Caller, CallerCache, assume
from session_agent.model import MountState
from session_agent.moves.journal import Journal
from session_agent.moves.names import RESERVED_PREFIX
from session_agent.overlay import calls
from session_agent.overlay.accepted import MoveOptions
from session_agent.overlay.background import Background
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.foreign import Foreign
from session_agent.overlay.handles import HandleTable
from session_agent.overlay.nodes import FolderNode, Node, Place
from session_agent.overlay.tree import Tree

if TYPE_CHECKING:
    from session_agent.overlay.limits import Limits

log = logging.getLogger(__name__)

Entry: TypeAlias = tuple[Node, os.stat_result]
"""What the kernel is told of a node. A plain tuple: one is made for every request."""


def error(number: int) -> OSError:
    """The OSError of that errno, to be raised."""
    return OSError(number, os.strerror(number))


def _is_of(node: Node, place: Place, held: Opened) -> bool:
    """Whether the file found there is the node's, and none that has got the number of one that is gone."""
    elsewhere = (node.parent, node.name) != place
    return not node.is_other(held.status, held.fd, b"", elsewhere=elsewhere)


class Vault:
    """All that the operations share."""

    def __init__(
        self,
        root_branch: OpenBranch,
        branches: Sequence[OpenBranch],
        folder_limit: int,
        *,
        move_options: MoveOptions | None = None,
        journal: Journal | None = None,
    ) -> None:
        """Without a `journal`, every move is carried out while its caller waits."""
        self.branches = (root_branch, *branches)
        self.tree = Tree(root_branch, folder_limit)
        self.handles = HandleTable()
        self.callers = CallerCache()
        self.moves: dict[Node, trio.Event] = {}  # what is being moved to another branch just now
        self.move_options = move_options or MoveOptions()
        self.journal = journal
        self.limits: Limits | None = None  # where a policy holds
        self.background = Background(self)
        self.branch_roots: list[FolderNode] = []
        for branch in sorted(branches, key=lambda branch: branch.info.name.count("/")):
            self._hang(branch)
        self.foreign = Foreign(self)

    def _hang(self, branch: OpenBranch) -> None:
        """Show the branch at its name, or, if it cannot be there, at the top."""
        *above, last = [os.fsencode(part) for part in branch.info.name.split("/")]
        try:
            folder = self._folder(above)
        except OSError as failure:
            last = b"-".join((*above, last))
            folder = self.tree.root
            log.warning(
                "%s is shown as %s: %s", branch.info.name, os.fsdecode(last), failure.strerror
            )
        self.branch_roots.append(self.tree.add_branch_root(branch, folder, last))

    def add(self, branch: OpenBranch) -> None:
        """A branch that has come while the vault is served."""
        assume(AGENT)
        self.branches = (*self.branches, branch)
        self._hang(branch)
        self.foreign.plugged(self.branch_roots[-1])

    def renew(self, branch: OpenBranch, fd: int) -> None:
        """The branch has been mounted anew: `fd` is its root from now on.

        What is known of the files in it stays, and is found to be out of date when it is used: they lie on
        another device now.
        """
        for node in list(self.tree.nodes()):
            if isinstance(node, FolderNode) and node.branch is branch and not node.is_branch_root:
                self.tree.detach(node, branch)
        branch.renew(fd)
        for root in self.branch_roots:
            if root.branch is branch:
                root.fd = fd
                self.foreign.plugged(root)

    def unplugged(self, branch: OpenBranch) -> None:
        """The mount of the branch is gone."""
        for root in self.branch_roots:
            if root.branch is branch:
                self.foreign.unplugged(root)

    def _folder(self, names: list[bytes]) -> FolderNode:
        """The folder that a branch hangs in, made if it is not there. It is never forgotten."""
        folder = self.tree.root
        for name in names:
            if folder.mounted is not None and name in folder.mounted:
                folder = folder.mounted[name]
                if folder.branch.state is not MountState.ALIVE:
                    raise error(ENOTCONN)
                continue
            try:
                found = calls.open_folders(folder.fd, [name])[0]
            except FileNotFoundError:
                os.mkdir(name, 0o755, dir_fd=folder.fd)
                found = calls.open_folders(folder.fd, [name])[0]
            node = self.tree.found(folder, name, found.status)
            assert isinstance(node, FolderNode)
            node.lookups += 1
            if node.fd < 0:
                node.fd = found.fd
            else:
                os.close(found.fd)
            folder = node
        return folder

    def branch_below(self, parent: FolderNode, name: bytes) -> bool:
        """Whether a branch hangs somewhere below the entry `name`, which then is no empty folder."""
        for root in self.branch_roots:
            folder: Node | None = root.parent
            while folder is not None and folder.parent is not None:
                if folder.parent is parent and folder.name == name:
                    return True
                folder = folder.parent
        return False

    # From nodes to descriptors

    async def folder_fd(self, folder: FolderNode) -> int:
        """The folder's O_PATH descriptor, opened again from the nearest open folder above if need be.

        ESTALE if it is not there any more, or something else has taken its place.
        """
        if folder.fd >= 0:
            return folder.fd
        chain = [folder]
        while (above := chain[-1].parent) is not None and above.fd < 0:
            if chain[-1].is_branch_root:  # dead since the start
                break
            chain.append(above)
        if above is None or chain[-1].is_branch_root:
            raise await self._unavailable(folder.branch)
        chain.reverse()
        branch = folder.branch
        names = [node.name for node in chain]
        try:
            found = await branch.call(AGENT, calls.open_folders, above.fd, names)
        except (FileNotFoundError, NotADirectoryError):  # also of a symbolic link
            raise error(ESTALE) from None
        for node, (fd, status) in zip(chain, found, strict=True):
            if self.tree.key(branch, status.st_dev, status.st_ino) == node.key:
                self.tree.opened(node, fd)
            else:
                branch.close_later(fd)
        if folder.fd < 0:
            raise error(ESTALE)
        return folder.fd

    async def _unavailable(self, branch: OpenBranch) -> OSError:
        try:
            await branch.call(AGENT, os.fstat, branch.fd)
        except OSError as failure:
            return failure
        return error(ESTALE)

    def check(
        self, node: Node, branch: OpenBranch, status: os.stat_result, folder_fd: int, name: bytes
    ) -> None:
        """ESTALE unless what was found there is the node's: the kernel then looks the name up anew.

        Without a name it is what the descriptor leads to.
        """
        if self.tree.key(branch, status.st_dev, status.st_ino) != node.key:
            raise error(ESTALE)
        # Another file may have got the number of one that is gone. If it is of another kind, that would be an
        # I/O error under this node; looked up anew it gets a node of its own.
        doubtful = status.st_mode & 0o170000 != node.format or node.is_changed(status)
        if doubtful and node.is_other(status, folder_fd, name, elsewhere=False):
            raise error(ESTALE)

    async def reference(self, node: Node, caller: Caller) -> tuple[int, bool]:
        """A descriptor of the node, O_PATH perhaps, and whether the caller is to close it."""
        if node.fd >= 0:
            return node.fd, False
        if node.handles:
            return node.handles[0].fd, False
        if isinstance(node, FolderNode):
            return await self.folder_fd(node), False
        assert node.parent is not None
        branch = node.branch
        folder = await self.folder_fd(node.parent)
        try:
            fd, status = await branch.call(caller, calls.reference, folder, node.name)
        except FileNotFoundError:
            raise error(ESTALE) from None
        try:
            self.check(node, branch, status, fd, b"")
        except OSError:
            branch.close_later(fd)
            raise
        return fd, True

    # What every operation on a name must observe

    def check_name(self, name: bytes) -> None:
        """EPERM for a reserved name."""
        if name.startswith(RESERVED_PREFIX):
            raise error(EPERM)

    async def settled(self, node: Node | None) -> None:
        """Wait while the node, or a folder that it lies in, is being moved to another branch."""
        while node is not None:
            event = self.moves.get(node)
            if event is not None:
                await event.wait()
            node = node.parent

    def is_moving(self, node: Node | None) -> bool:
        """Whether the node, or a folder that it lies in, is being moved to another branch."""
        while node is not None:
            if node in self.moves:
                return True
            node = node.parent
        return False

    def same_branch(self, node: Node, branch: OpenBranch) -> None:
        """ESTALE if the node has come to another branch while a call was under way."""
        if node.branch is not branch:
            raise error(ESTALE)

    def hold(self, held: Opened, branch: OpenBranch, place: Place) -> None:
        """Keep what has just lost its name there reachable for as long as the kernel knows it."""
        status = held.status
        node = self.tree.find(self.tree.key(branch, status.st_dev, status.st_ino))
        if node is None or node.lookups <= 0:
            branch.close_later(held.fd)
        elif node.fd < 0 and not _is_of(node, place, held):
            self.tree.disown(node)
            branch.close_later(held.fd)
        else:
            self.tree.hold(node, branch, held.fd)

    def close(self) -> None:
        """Close every descriptor."""
        self.foreign.close()
        for fd in self.handles.drain():
            os.close(fd)
        self.tree.close_all()
        for branch in self.branches:
            branch.close()
