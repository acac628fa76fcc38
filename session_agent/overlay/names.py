"""Operations on names: look up, create, remove, link, rename."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from errno import EBUSY, EEXIST, EINVAL, ENOENT, ENOTEMPTY, ESTALE, EXDEV

from session_agent.fsutil.at import by_descriptor, stat_at
from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from session_agent.moves.names import RESERVED_PREFIX
from session_agent.overlay import calls
from session_agent.overlay import moving as moves
from session_agent.overlay.accepted import Moving
from session_agent.overlay.attributes import status_of
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.handles import Handle
from session_agent.overlay.inotify import CREATE, DELETE, MOVED_FROM, MOVED_TO
from session_agent.overlay.nodes import FolderNode, Node, Place, version_of
from session_agent.overlay.vault import Entry, Vault, error


async def lookup(vault: Vault, parent_id: int, name: bytes, caller: Caller) -> Entry:
    """The entry `name`; "." and ".." too. ENOENT for what is reserved."""
    parent = vault.tree.folder(parent_id)
    if vault.moves:
        await vault.settled(parent)
    if parent.mounted is not None and name in parent.mounted:
        node = parent.mounted[name]
        return node, await status_of(vault, node, caller)
    while parent.shifted is not None and (moving := parent.shifted.arrivals.get(name)):
        shown = await vault.background.entry(moving, caller)
        if shown is not None:
            return shown
    if parent.shifted is not None and name in parent.shifted.departures:
        raise error(ENOENT)
    if name.startswith(b"."):
        if name in (b".", b".."):
            folder = parent if name == b"." else vault.background.shown_parent(parent)
            return folder, await status_of(vault, folder, caller)
        if name.startswith(RESERVED_PREFIX):
            raise error(ENOENT)
    branch = parent.branch
    folder_fd = parent.fd if parent.fd >= 0 else await vault.folder_fd(parent)
    status = await branch.call(caller, stat_at, folder_fd, name)
    return _found(vault, parent, branch, name, status)


def _found(
    vault: Vault, parent: FolderNode, branch: OpenBranch, name: bytes, status: os.stat_result
) -> Entry:
    if parent.branch is not branch:
        vault.same_branch(parent, branch)
    return vault.tree.found(parent, name, status), status


def _made_node(
    vault: Vault, parent: FolderNode, branch: OpenBranch, name: bytes, status: os.stat_result
) -> Entry:
    if parent.watch is not None:
        parent.watch.expect(name, CREATE)
    vault.same_branch(parent, branch)
    node = vault.tree.made(parent, name, status)
    node.announced = version_of(status)
    return node, status


async def _new_name(vault: Vault, parent_id: int, name: bytes) -> tuple[FolderNode, int]:
    """The folder that gets a new entry, and its descriptor."""
    parent = vault.tree.folder(parent_id)
    if vault.moves:
        await vault.settled(parent)
    vault.check_name(name)
    if parent.mounted is not None and name in parent.mounted:
        raise error(EEXIST)
    if parent.shifted is not None:
        if name in parent.shifted.arrivals:
            raise error(EEXIST)
        departing = parent.shifted.departures.get(name)
        if departing is not None:  # what had that name is still there, behind the vault
            await vault.background.vacated(departing)
    return parent, parent.fd if parent.fd >= 0 else await vault.folder_fd(parent)


async def _made(
    vault: Vault,
    parent_id: int,
    name: bytes,
    caller: Caller,
    maker: Callable[..., os.stat_result],
    *arguments: object,
) -> Entry:
    """The new entry that `maker` makes in the branch."""
    parent, fd = await _new_name(vault, parent_id, name)
    branch = parent.branch
    status = await branch.call(caller, maker, fd, name, *arguments)
    return _made_node(vault, parent, branch, name, status)


async def make_folder(
    vault: Vault, parent_id: int, name: bytes, mode: int, caller: Caller
) -> Entry:
    """mkdir."""
    return await _made(vault, parent_id, name, caller, calls.make_folder, mode)


async def make_node(
    vault: Vault, parent_id: int, name: bytes, mode: int, device: int, caller: Caller
) -> Entry:
    """mknod."""
    return await _made(vault, parent_id, name, caller, calls.make_node, mode, device)


async def make_symlink(
    vault: Vault, parent_id: int, name: bytes, target: bytes, caller: Caller
) -> Entry:
    """symlink."""
    return await _made(vault, parent_id, name, caller, calls.make_symlink, target)


async def create(
    vault: Vault, parent_id: int, name: bytes, flags: int, mode: int, caller: Caller
) -> tuple[int, Entry]:
    """open with O_CREAT: the handle's number, and the entry."""
    parent, fd = await _new_name(vault, parent_id, name)
    branch = parent.branch
    file_fd, status = await branch.call(
        caller, calls.open_file, fd, name, _backing_flags(flags) | os.O_CREAT, stat.S_IMODE(mode)
    )
    try:
        entry = _made_node(vault, parent, branch, name, status)
    except OSError:
        await branch.release(caller, file_fd)
        raise
    return vault.handles.add(Handle(file_fd, flags, entry[0], caller, branch)), entry


def _backing_flags(flags: int) -> int:
    # Appending is done write by write (see Handle.appends_only); O_DIRECT would make demands on the
    # alignment of our buffers, which the program has met only in its own.
    return flags & ~(os.O_APPEND | os.O_DIRECT | os.O_NOCTTY)


async def link(vault: Vault, node_id: int, parent_id: int, name: bytes, caller: Caller) -> Entry:
    """link: another name for a file, in the branch it lies in. EXDEV across branches."""
    node = vault.tree[node_id]
    parent, fd = await _new_name(vault, parent_id, name)
    branch = parent.branch
    if node.key < 0:
        raise error(ESTALE)
    if node.branch is not branch or vault.background.above(node) is not vault.background.above(
        parent
    ):
        raise error(EXDEV)
    if node.fd >= 0:
        status = await branch.call(caller, calls.make_link_again, node.fd, fd, name)
    else:
        assert node.parent is not None
        source = await vault.folder_fd(node.parent)
        status = await branch.call(caller, calls.make_link, source, node.name, fd, name)
    return _made_node(vault, parent, branch, name, status)


async def unlink(vault: Vault, parent_id: int, name: bytes, caller: Caller) -> None:
    """unlink."""
    parent = vault.tree.folder(parent_id)
    await _remove(vault, parent, name, os.unlink, caller)


async def rmdir(vault: Vault, parent_id: int, name: bytes, caller: Caller) -> None:
    """rmdir. EBUSY for the root of a branch, and for a folder that something is being moved out of."""
    parent = vault.tree.folder(parent_id)
    if vault.branch_below(parent, name):
        raise error(ENOTEMPTY)
    moving = vault.background.holds(parent, name)
    arriving = moving is not None and not moving.arrived.is_set()
    if moving is not None and arriving and _leads_into(moving.target.folder, parent, name):
        raise error(ENOTEMPTY)
    if moving is not None:
        await vault.background.vacated(moving)
    await _remove(vault, parent, name, os.rmdir, caller)


def _leads_into(folder: FolderNode, parent: FolderNode, name: bytes) -> bool:
    """Whether `folder` is the entry `name` of `parent`, or lies below it."""
    step: FolderNode | None = folder
    while step is not None and step.parent is not None:
        if step.parent is parent and step.name == name:
            return True
        step = step.parent
    return False


async def _remove(
    vault: Vault, parent: FolderNode, name: bytes, remover: Callable[..., None], caller: Caller
) -> None:
    if vault.moves:
        await vault.settled(parent)
    if name.startswith(RESERVED_PREFIX):
        raise error(ENOENT)
    if parent.mounted is not None and name in parent.mounted:
        raise error(EBUSY)
    if parent.shifted is not None:
        moving = parent.shifted.arrivals.get(name)
        if moving is not None:
            await _remove_moving(vault, moving, remover, caller)
            return
        if name in parent.shifted.departures:
            raise error(ENOENT)
    branch = parent.branch
    fd = parent.fd if parent.fd >= 0 else await vault.folder_fd(parent)
    if remover is os.rmdir:
        await _check_folder(vault, parent, name, fd, caller)
    held = await branch.call(caller, calls.remove, fd, name, remover)
    if parent.watch is not None:
        parent.watch.expect(name, DELETE)
    vault.hold(held, branch, (parent, name))


async def _check_folder(
    vault: Vault, parent: FolderNode, name: bytes, fd: int, caller: Caller
) -> None:
    """ESTALE if a folder is there that the kernel does not know by that name: it then looks the name up anew.

    It would take the folder that it remembers there for removed, or for renamed, wherever that is by now. And
    what it has once taken for removed it shows as empty for as long as it knows it.
    """
    try:
        status = await parent.branch.call(caller, stat_at, fd, name)
    except OSError:
        return  # the call itself will say so
    if stat.S_ISDIR(status.st_mode):
        node = vault.tree.find(vault.tree.key(parent.branch, status.st_dev, status.st_ino))
        if node is None or node.lookups <= 0 or (node.parent, node.name) != (parent, name):
            raise error(ESTALE)


async def _remove_moving(
    vault: Vault, moving: Moving, remover: Callable[..., None], caller: Caller
) -> None:
    """Remove what a move under way shows: the move is taken back, and the file removed where it lies."""
    source, target = moving.source, moving.target
    if remover is os.rmdir and not await _is_empty(vault, source.node):
        raise error(ENOTEMPTY)
    if not await vault.background.withdraw(moving):
        await _remove(vault, target.folder, target.name, remover, caller)
        return
    async with _accepted_again_if_it_fails(vault, moving):
        await _remove(vault, source.folder, source.name, remover, caller)
    await vault.background.drop_replaced(moving)


async def _is_empty(vault: Vault, folder: Node | None) -> bool:
    if not isinstance(folder, FolderNode):
        return True
    fd = await vault.folder_fd(folder)
    return not await folder.branch.call(AGENT, os.listdir, by_descriptor(fd))


@asynccontextmanager
async def _accepted_again_if_it_fails(vault: Vault, moving: Moving) -> AsyncIterator[None]:
    """What is done to a move that was taken back; if that fails the move is to go on, being what is shown."""
    try:
        yield
    except OSError:
        source, target = moving.source, moving.target
        request = moving.job.request
        await moves.move(
            vault,
            source.folder,
            source.name,
            target.folder,
            target.name,
            request.flags,
            request.caller,
        )
        raise


async def rename(
    vault: Vault,
    source_parent_id: int,
    source_name: bytes,
    target_parent_id: int,
    target_name: bytes,
    flags: int,
    caller: Caller,
) -> None:
    """rename and renameat2, within a branch or across: across, it becomes a move."""
    source = vault.tree.folder(source_parent_id)
    target = vault.tree.folder(target_parent_id)
    if vault.moves:
        await vault.settled(source)
        await vault.settled(target)
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == 3:
        raise error(EINVAL)
    if source_name.startswith(RESERVED_PREFIX):
        raise error(ENOENT)
    vault.check_name(target_name)
    for folder, name in ((source, source_name), (target, target_name)):
        if folder.mounted is not None and name in folder.mounted:
            raise error(EBUSY)
    if source.shifted is not None or target.shifted is not None:
        moving = await _shifted_rename(vault, source, source_name, target, target_name, flags)
        if moving is not None:
            async with _accepted_again_if_it_fails(vault, moving):
                here = moving.source
                await _rename(vault, here.folder, here.name, target, target_name, flags, caller)
            await vault.background.drop_replaced(moving)
            return
    await _rename(vault, source, source_name, target, target_name, flags, caller)


async def _shifted_rename(
    vault: Vault,
    source: FolderNode,
    source_name: bytes,
    target: FolderNode,
    target_name: bytes,
    flags: int,
) -> Moving | None:
    """Where moves show other names than there are. Answers a move that was taken back for this rename."""
    while target.shifted is not None and (arrival := target.shifted.arrivals.get(target_name)):
        if flags & RENAME_NOREPLACE:
            raise error(EEXIST)
        await vault.background.over(arrival)
    shifted = source.shifted
    moving = None if shifted is None else shifted.arrivals.get(source_name)
    if shifted is not None and moving is None and source_name in shifted.departures:
        raise error(ENOENT)
    occupied = None if target.shifted is None else target.shifted.departures.get(target_name)
    if occupied is not None and occupied is not moving:
        await vault.background.vacated(occupied)
    if moving is None:
        return None
    if flags & RENAME_EXCHANGE:
        await vault.background.over(moving)
        return None
    return moving if await vault.background.withdraw(moving) else None


async def _rename(
    vault: Vault,
    source: FolderNode,
    source_name: bytes,
    target: FolderNode,
    target_name: bytes,
    flags: int,
    caller: Caller,
) -> None:
    source_fd = source.fd if source.fd >= 0 else await vault.folder_fd(source)
    target_fd = target.fd if target.fd >= 0 else await vault.folder_fd(target)
    await _check_folder(vault, source, source_name, source_fd, caller)
    branch = source.branch
    held = vault.background.holds(target, target_name) if vault.background.live else None
    if held is not None:
        raise error(ENOTEMPTY)
    if branch is target.branch:
        try:
            done = await branch.call(
                caller, calls.rename, source_fd, source_name, target_fd, target_name, flags
            )
        except OSError as failure:
            if failure.errno != EXDEV:
                raise
        else:
            _expect_renamed(source, source_name, target, target_name)
            if done.exchanged is not None:
                _expect_renamed(target, target_name, source, source_name)
            _renamed(vault, (source, source_name), (target, target_name), done)
            if vault.background.live:
                await vault.background.relocated()
            return
    await moves.move(vault, source, source_name, target, target_name, flags, caller)


def _expect_renamed(
    source: FolderNode, source_name: bytes, target: FolderNode, target_name: bytes
) -> None:
    if source.watch is not None:
        source.watch.expect(source_name, MOVED_FROM)
    if target.watch is not None:
        target.watch.expect(target_name, MOVED_TO)


def _renamed(vault: Vault, source: Place, target: Place, done: calls.Renamed) -> None:
    """Bring the nodes to where a rename within a branch has taken their files."""
    branch = target[0].branch
    if done.replaced is not None:
        other = (done.replaced.status.st_dev, done.replaced.status.st_ino)
        if done.exchanged is not None or other == (done.moved.st_dev, done.moved.st_ino):
            branch.close_later(done.replaced.fd)  # it still has a name
        else:
            vault.hold(done.replaced, branch, target)
    vault.tree.renamed(source, target, done.moved)
    if done.exchanged is not None:
        vault.tree.renamed(target, source, done.exchanged)
