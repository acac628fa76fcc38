"""Nodes and handles go with a move to another branch: what is open stays open, numbers stay the same.

While the names change over, whatever would open or change what is moved waits (Vault.settled). Between
commit and retire the open handles are put on the new place; then the nodes follow.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from session_agent.fsutil.at import open_at, stat_at
from session_agent.fsutil.credentials import AGENT, assume
from session_agent.moves.engine import OnCommit
from session_agent.moves.plan import Place, Request
from session_agent.moves.snapshot import Copied
from session_agent.overlay import calls
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.handles import FolderHandle, Handle
from session_agent.overlay.nodes import FolderNode, Node

if TYPE_CHECKING:
    from session_agent.overlay.vault import Vault

_NOT_AGAIN = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_APPEND | os.O_DIRECT


@dataclass(frozen=True, slots=True)
class _Switch:
    """A handle to put on the new place: where its file lies below the new name, and how to open it."""

    fd: int
    below: tuple[bytes, ...]
    flags: int


@dataclass(frozen=True, slots=True)
class MoveEnd:
    """One end of the move: the folder, the name in it, and the node that was there, if known."""

    folder: FolderNode
    name: bytes
    node: Node | None
    branch: OpenBranch


async def find_end(vault: Vault, folder: FolderNode, name: bytes) -> MoveEnd:
    """What is at that name now."""
    branch = folder.branch
    fd = await vault.folder_fd(folder)
    try:
        status = await branch.call(AGENT, stat_at, fd, name)
    except FileNotFoundError:
        return MoveEnd(folder, name, None, branch)
    node = vault.tree.find(vault.tree.key(branch, status.st_dev, status.st_ino))
    if node is not None:  # what is known of where it lies may be outdated
        node = vault.tree.found(folder, name, status)
    return MoveEnd(folder, name, node, branch)


@contextmanager
def frozen(vault: Vault, ends: Sequence[MoveEnd]) -> Iterator[trio.Event]:
    """Let whatever would open or change the ends wait for the event that is given."""
    settled = trio.Event()
    nodes = [end.node for end in ends if end.node is not None]
    for node in nodes:
        vault.moves[node] = settled
    try:
        yield settled
    finally:
        for node in nodes:
            vault.moves.pop(node, None)
        settled.set()


def is_below(node: Node, top: Node) -> bool:
    """Whether the node lies below `top`, or is it; by where it lies, not by where it is shown."""
    step: Node | None = node
    while step is not None:
        if step is top:
            return True
        step = step.parent
    return False


async def idle(vault: Vault, ends: Sequence[MoveEnd]) -> None:
    """Wait until the writes under way in the ends have been carried out."""
    for end in ends:
        if end.node is None or not end.branch.remote:
            continue
        for handle in vault.handles.files():
            if handle.writing and is_below(handle.node, end.node):
                handle.idle = trio.Event()
                await handle.idle.wait()


async def find_lost(vault: Vault, ends: Sequence[MoveEnd]) -> None:
    """Find the open files that have lost the name by which they were known, but have another in an end."""
    for end in ends:
        if not isinstance(end.node, FolderNode):
            continue
        lost: set[tuple[int, int]] = set()
        for handle in vault.handles.files():
            if handle.node.fd >= 0 and handle.node.branch is end.branch:
                status = await end.branch.call(AGENT, os.fstat, handle.node.fd)
                if status.st_nlink:
                    lost.add((status.st_dev, status.st_ino))
        if not lost:
            continue
        folder_fd = await vault.folder_fd(end.node)
        for steps in await end.branch.call_slowly(AGENT, calls.find_below, folder_fd, lost):
            folder = end.node
            for name, status in steps:
                node = vault.tree.found(folder, name, status)
                if isinstance(node, FolderNode):
                    folder = node


class ChangeOver:
    """What goes over with a move. To be made while the ends are frozen.

    `ways`: each old end and the new one that it comes to; two of them for an exchange. `show`: shows the new
    names plainly, once the nodes have followed.
    """

    def __init__(
        self,
        vault: Vault,
        ways: list[tuple[MoveEnd, MoveEnd]],
        request: Request,
        settled: trio.Event,
        show: Callable[[], None] = lambda: None,
    ) -> None:
        self._vault = vault
        self._ways = ways
        self._request = request
        self._switches = [_switches(vault, old.node, settled) for old, _ in ways]
        self._show = show
        self.followed = False

    def follow(self, copied: tuple[Copied, ...]) -> None:
        """The nodes, in the trio thread."""
        self.followed = True
        for (old, new), one in zip(self._ways, copied, strict=True):
            if old.node is not None:
                _follow(self._vault, old.node, old.branch, new)
                _rekey_copied(self._vault, one, old.node, old.branch, new.branch)
        self._show()

    @property
    def on_commit(self) -> OnCommit:
        """The handles, and then the nodes."""

        def change_over(copied: tuple[Copied, ...]) -> None:
            try:
                places = (self._request.target, self._request.source)
                for place, handles in zip(places, self._switches, strict=False):
                    _switch(place, handles)
            finally:
                # Before the old files go: their inode numbers can be those of new files at once.
                trio.from_thread.run_sync(self.follow, copied)

        return change_over

    async def follow_renamed(self) -> None:
        """After a rename that copied nothing: the files are the same ones, only the branch has changed."""
        for old, new in self._ways:
            if old.node is not None:
                below = _follow(self._vault, old.node, old.branch, new)
                if old.branch is not new.branch:
                    await _rekey_renamed(self._vault, below, new.branch)


def _switches(vault: Vault, top: Node | None, settled: trio.Event) -> list[_Switch]:
    """The open handles at or below `top`, with their places below it. They stay open until `settled`."""
    switches: list[_Switch] = []
    if top is None:
        return switches
    handles: list[Handle | FolderHandle] = [*vault.handles.files(), *vault.handles.folders()]
    for handle in handles:
        node = handle.node
        unnamed = node.fd >= 0 and not isinstance(node, FolderNode)
        if unnamed or not is_below(node, top):
            continue
        below: list[bytes] = []
        step: Node = node
        while step is not top:
            below.append(step.name)
            assert step.parent is not None
            step = step.parent
        flags = os.O_DIRECTORY if isinstance(handle, FolderHandle) else handle.flags & ~_NOT_AGAIN
        handle.moving = settled
        switches.append(_Switch(handle.fd, tuple(reversed(below)), flags))
    return switches


def _switch(place: Place, switches: list[_Switch]) -> None:
    """In the move's thread: put the handles' descriptors on the files below `place`, same numbers."""
    assume(AGENT)
    for switch in switches:
        *above, last = (place.name, *switch.below)
        opened = calls.open_folders(place.folder, above)
        try:
            fd = open_at(opened[-1].fd if opened else place.folder, last, switch.flags)
        finally:
            for folder in opened:
                os.close(folder.fd)
        os.dup2(fd, switch.fd, inheritable=False)
        os.close(fd)


def _follow(vault: Vault, node: Node, old: OpenBranch, new: MoveEnd) -> list[Node]:
    """Bring the node, and those below it, to where their files are now. Answers them all."""
    node.parent, node.name = new.folder, new.name
    node.cached_version = None
    below = _relocate(vault, node, old, new.branch)
    for handle in vault.handles.folders():
        if is_below(handle.node, node):
            handle.restart()
    return below


def _relocate(vault: Vault, top: Node, old: OpenBranch, new: OpenBranch) -> list[Node]:
    """All folders below `top` lie in another branch now, and their descriptors lead to the old place.

    Answers `top` and all nodes below it, a folder before what is in it.
    """
    depths: dict[Node, int] = {}
    for node in [*vault.tree.nodes(), top]:
        steps: list[Node] = []
        step: Node | None = node
        while step is not None and step is not top:
            steps.append(step)
            step = step.parent
        if step is None:
            continue
        steps.append(top)  # those that only a child still knows are among the steps
        for depth, found in enumerate(reversed(steps)):
            depths[found] = depth
    for node in depths:
        if isinstance(node, FolderNode):
            vault.tree.detach(node, old)
            node.transfer(new)
    for handle in vault.handles.files():
        if handle.node in depths:
            handle.branch = new
    below = sorted(depths, key=depths.__getitem__)
    vault.foreign.relocated(below)
    return below


def _rekey_copied(
    vault: Vault, copied: Copied, top: Node, old: OpenBranch, new: OpenBranch
) -> None:
    """Give the nodes the identities of the copies."""
    everything = list(copied.everything())
    moved = Counter(one.source.identity for one in everything)
    for one in everything:
        node = vault.tree.find(vault.tree.key(old, *one.source.identity))
        if node is None or not is_below(node, top):
            continue
        if one.source.links > moved[one.source.identity] and not node.handles:
            vault.tree.disown(node)
            # What the kernel remembers of it would be shown for the link that stays.
            vault.foreign.expiry.attributes(node.id)
        else:
            vault.tree.rekey(node, new, *one.copy)


async def _rekey_renamed(vault: Vault, nodes: list[Node], new: OpenBranch) -> None:
    """Both branches lie on one mount, so the files are the same ones: only the branch has changed."""
    for node in nodes:
        if node.parent is None or (node.fd >= 0 and not isinstance(node, FolderNode)):
            continue  # it has no name any more
        try:
            folder = await vault.folder_fd(node.parent)
            status = await new.call(AGENT, stat_at, folder, node.name)
        except OSError:
            continue  # the kernel looks it up anew
        if status.st_nlink > 1 and not isinstance(node, FolderNode) and not node.handles:
            # Another of its names may be in the old branch still, and the kernel takes it for this node's.
            vault.tree.disown(node)
            vault.foreign.expiry.attributes(node.id)
            continue
        vault.tree.rekey(node, new, status.st_dev, status.st_ino)
