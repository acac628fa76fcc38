"""A rename from one branch to another, as the overlay sees it: the move, and the nodes and handles with it.

The move itself (session_agent.moves) runs in a thread and knows neither nodes nor handles. Meanwhile
whatever would change what is moved, or open it, waits (Vault.settled). Between commit and retire the open
handles are put on the new place; afterwards the nodes follow, and keep their numbers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EBUSY, ENOTEMPTY

import pyfuse3
import trio

from session_agent.fsutil.at import Opened, open_at, stat_at
from session_agent.fsutil.credentials import AGENT, Caller, assume
from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from session_agent.moves.engine import Outcome
from session_agent.moves.engine import move as run_move
from session_agent.moves.plan import Place, Request
from session_agent.moves.snapshot import Copied
from session_agent.overlay import calls
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.handles import FolderHandle, Handle
from session_agent.overlay.polling import elsewhere
from session_agent.overlay.tree import FolderNode, Node, open_folders
from session_agent.overlay.vault import Vault, error

_NOT_AGAIN = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_APPEND | os.O_DIRECT


@dataclass(frozen=True, slots=True)
class _Switch:
    """A handle to put on the new place: where its file lies below the new name, and how to open it."""

    fd: int
    below: tuple[bytes, ...]
    flags: int


@dataclass(frozen=True, slots=True)
class _End:
    """One end of the move: the folder, the name in it, and the node that was there, if known."""

    folder: FolderNode
    name: bytes
    node: Node | None
    branch: OpenBranch


async def move(
    vault: Vault,
    source_folder: FolderNode,
    source_name: bytes,
    target_folder: FolderNode,
    target_name: bytes,
    flags: int,
    caller: Caller,
) -> None:
    """Rename across branches. OSError as rename(2) gives it; EBUSY if a branch hangs below the source."""
    if vault.branch_below(source_folder, source_name):
        raise error(EBUSY)
    if vault.branch_below(target_folder, target_name):
        raise error(EBUSY if flags & RENAME_EXCHANGE else ENOTEMPTY)
    source = await _end(vault, source_folder, source_name)
    target = await _end(vault, target_folder, target_name)
    ends = (source, target) if flags & RENAME_EXCHANGE else (source,)
    replaced = await _hold(vault, target)
    # Descriptors of our own: those of the nodes may be closed while the thread is at work.
    fds = [os.dup(await vault.folder_fd(end.folder)) for end in (source, target)]
    places = [
        Place(fd, end.name, path_of(end.folder, end.name))
        for fd, end in zip(fds, (source, target), strict=True)
    ]
    try:
        with _frozen(vault, ends) as settled:
            await _idle(vault, ends)
            await _find_lost(vault, ends)
            request = Request(places[0], places[1], flags, caller)
            outcome = await _carry_out(vault, source, target, request, settled)
    except OSError:
        if replaced is not None:
            target.branch.close_later(replaced.fd)
        raise
    finally:
        for fd in fds:
            os.close(fd)
    if replaced is None:
        return
    if outcome.strategy == "none" or flags & RENAME_EXCHANGE:
        target.branch.close_later(replaced.fd)
    else:
        vault.hold(replaced, target.branch)


async def _carry_out(
    vault: Vault, source: _End, target: _End, request: Request, settled: trio.Event
) -> Outcome:
    """The move itself, in a thread. Between commit and retire the handles and the nodes go over."""
    ways = [(source, target)]
    if request.flags & RENAME_EXCHANGE:
        ways.append((target, source))
    switches = [_switches(vault, old.node, settled) for old, _ in ways]
    followed = False

    def follow(copied: tuple[Copied, ...]) -> None:
        nonlocal followed
        followed = True
        for (old, new), one in zip(ways, copied, strict=True):
            if old.node is not None:
                _follow(vault, old.node, old.branch, new)
                _rekey_copied(vault, one, old.node, old.branch, new.branch)

    def on_commit(copied: tuple[Copied, ...]) -> None:
        try:
            for place, handles in zip((request.target, request.source), switches, strict=False):
                _switch(place, handles)
        finally:
            # Before the old files go: their inode numbers can be those of new files at once.
            trio.from_thread.run_sync(follow, copied)

    with elsewhere:
        outcome = await trio.to_thread.run_sync(run_move, request, on_commit)
    if outcome.copied and not followed:
        follow(outcome.copied)
    elif outcome.strategy != "none" and not outcome.copied:
        await _follow_renamed(vault, ways)
    return outcome


async def _end(vault: Vault, folder: FolderNode, name: bytes) -> _End:
    branch = folder.branch
    fd = await vault.folder_fd(folder)
    try:
        status = await branch.call(AGENT, stat_at, fd, name)
    except FileNotFoundError:
        return _End(folder, name, None, branch)
    node = vault.tree.find(vault.tree.key(branch, status.st_dev, status.st_ino))
    if node is not None:  # what is known of where it lies may be outdated
        node = vault.tree.found(folder, name, status)
    return _End(folder, name, node, branch)


async def _hold(vault: Vault, target: _End) -> Opened | None:
    try:
        fd = await vault.folder_fd(target.folder)
        return await target.branch.call(AGENT, calls.reference, fd, target.name)
    except FileNotFoundError:
        return None


def path_of(folder: FolderNode | None, name: bytes) -> str:
    """The path in the vault, for messages."""
    parts = [name]
    while folder is not None and folder.parent is not None:
        parts.append(folder.name)
        folder = folder.parent
    return "/".join(os.fsdecode(part) for part in reversed(parts))


@contextmanager
def _frozen(vault: Vault, ends: tuple[_End, ...]) -> Iterator[trio.Event]:
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


def _is_below(node: Node, top: Node) -> bool:
    step: Node | None = node
    while step is not None:
        if step is top:
            return True
        step = step.parent
    return False


async def _idle(vault: Vault, ends: tuple[_End, ...]) -> None:
    """Wait until the writes under way in the ends have been carried out."""
    for end in ends:
        if end.node is None or not end.branch.remote:
            continue
        for handle in vault.handles.files():
            if handle.writing and _is_below(handle.node, end.node):
                handle.idle = trio.Event()
                await handle.idle.wait()


async def _find_lost(vault: Vault, ends: tuple[_End, ...]) -> None:
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


def _switches(vault: Vault, top: Node | None, settled: trio.Event) -> list[_Switch]:
    """The open handles at or below `top`, with their places below it. They stay open until `settled`."""
    switches: list[_Switch] = []
    if top is None:
        return switches
    handles: list[Handle | FolderHandle] = [*vault.handles.files(), *vault.handles.folders()]
    for handle in handles:
        node = handle.node
        unnamed = node.fd >= 0 and not isinstance(node, FolderNode)
        if unnamed or not _is_below(node, top):
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
        opened = open_folders(place.folder, above)
        try:
            fd = open_at(opened[-1].fd if opened else place.folder, last, switch.flags)
        finally:
            for folder in opened:
                os.close(folder.fd)
        os.dup2(fd, switch.fd, inheritable=False)
        os.close(fd)


def _follow(vault: Vault, node: Node, old: OpenBranch, new: _End) -> list[Node]:
    """Bring the node, and those below it, to where their files are now. Answers them all."""
    node.parent, node.name = new.folder, new.name
    node.cached_version = None
    below = _relocate(vault, node, old, new.branch)
    for handle in vault.handles.folders():
        if _is_below(handle.node, node):
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
    return sorted(depths, key=depths.__getitem__)


def _rekey_copied(
    vault: Vault, copied: Copied, top: Node, old: OpenBranch, new: OpenBranch
) -> None:
    """Give the nodes the identities of the copies."""
    everything = list(copied.everything())
    moved = Counter(one.source.identity for one in everything)
    for one in everything:
        node = vault.tree.find(vault.tree.key(old, *one.source.identity))
        if node is None or not _is_below(node, top):
            continue
        if one.source.links > moved[one.source.identity] and not node.handles:
            vault.tree.disown(node)
            # What the kernel remembers of it would be shown for the link that stays.
            pyfuse3.invalidate_inode(pyfuse3.InodeT(node.id), attr_only=True)
        else:
            vault.tree.rekey(node, new, *one.copy)


async def _follow_renamed(vault: Vault, ways: list[tuple[_End, _End]]) -> None:
    for old, new in ways:
        if old.node is not None:
            below = _follow(vault, old.node, old.branch, new)
            if old.branch is not new.branch:
                await _rekey_renamed(vault, below, new.branch)


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
        vault.tree.rekey(node, new, status.st_dev, status.st_ino)
