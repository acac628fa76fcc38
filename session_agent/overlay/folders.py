"""Operations on open folders: list the entries, with the status of each; and the file system's figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EINVAL

from session_agent.fsutil.at import stat_at
from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.model import MountState
from session_agent.moves.names import RESERVED_PREFIX
from session_agent.overlay import calls
from session_agent.overlay.attributes import status_of
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.handles import FolderHandle
from session_agent.overlay.looking import Looked
from session_agent.overlay.nodes import FolderNode, Node
from session_agent.overlay.vault import Vault, error

# How many names are read from the backing folder, or asked of a remote branch, at a time.
_BATCH = 64

Reply = Callable[[bytes, Node, os.stat_result, int], bool]
"""Gives an entry to the kernel: name, node, status, position after it. False when it has no room."""


async def open_folder(vault: Vault, node_id: int, caller: Caller) -> int:
    """opendir: the handle's number."""
    folder = vault.tree.folder(node_id)
    if vault.moves:
        await vault.settled(folder)
    fd = folder.fd if folder.fd >= 0 else await vault.folder_fd(folder)
    if folder.watch is not None and not folder.watch.lasting:
        vault.foreign.used(folder)
    found = await folder.branch.call(caller, calls.open_listing, fd)
    return vault.handles.add_folder(FolderHandle(found.fd, folder, caller))


async def read_folder(vault: Vault, handle_id: int, start: int, reply: Reply) -> None:
    """readdirplus from position `start` on, until the kernel's buffer is full.

    Positions count the entries in the order in which this handle has met them. Entries that come or go
    meanwhile appear or not as the backing file system decides; none is left out or given twice for it.
    """
    handle = vault.handles.folder(handle_id)
    if start == 0:
        await _rewind(vault, handle)
    position = start
    while position < handle.virtual:
        if not await _reply_virtual(vault, handle, position, reply):
            return
        position += 1
    folder = handle.node
    branch = folder.branch
    while True:
        names = handle.names[position : position + _BATCH]
        if not names:
            if not await _read_more(vault, handle):
                return
            continue
        try:
            statuses = await _statuses(handle, branch, names)
            vault.same_branch(folder, branch)
        except OSError:
            if position > start:
                return  # the error is met again, and reported, by the next call
            raise
        handle.note(names, statuses)
        if not _reply_plain(vault, folder, names, statuses, position, reply):
            return
        position += len(names)


async def _statuses(
    handle: FolderHandle, branch: OpenBranch, names: list[bytes]
) -> list[os.stat_result | None]:
    """The status of each name. Who may only list the folder is told no more than the names by the kernel."""
    try:
        return await branch.call(handle.caller, calls.stat_all, handle.fd, names)
    except PermissionError:
        return await branch.call(AGENT, calls.stat_all, handle.fd, names)


async def _reply_virtual(vault: Vault, handle: FolderHandle, position: int, reply: Reply) -> bool:
    """Give ".", ".." or a branch to the kernel; False when it has no room for it."""
    folder = handle.node
    name = handle.names[position]
    if name == b".":
        node = folder
    elif name == b"..":
        node = vault.background.shown_parent(folder)
    elif folder.mounted is not None and name in folder.mounted:
        node = folder.mounted[name]
    else:
        return await _reply_arrival(vault, handle, name, position, reply)
    status = await status_of(vault, node, handle.caller)
    if not reply(name, node, status, position + 1):
        return False
    if position >= 2:
        node.lookups += 1
    return True


async def _reply_arrival(
    vault: Vault, handle: FolderHandle, name: bytes, position: int, reply: Reply
) -> bool:
    """Give what a move under way shows to the kernel; False when it has no room for it."""
    shifted = handle.node.shifted
    moving = None if shifted is None else shifted.arrivals.get(name)
    try:
        found = None if moving is None else await vault.background.entry(moving, handle.caller)
        if found is None:  # it has arrived
            branch = handle.node.branch
            status = await branch.call(handle.caller, stat_at, handle.fd, name)
            found = vault.tree.found(handle.node, name, status), status
    except OSError:
        return True  # it has gone
    node, status = found
    if not reply(name, node, status, position + 1):
        vault.tree.drop_unused(node)
        return False
    node.lookups += 1
    return True


def _reply_plain(
    vault: Vault,
    folder: FolderNode,
    names: list[bytes],
    statuses: list[os.stat_result | None],
    position: int,
    reply: Reply,
) -> bool:
    """Give entries to the kernel, the first one at `position`; False when it has no room for more."""
    found = vault.tree.found
    for name, status in zip(names, statuses, strict=True):
        position += 1
        if status is None:  # it has vanished
            continue
        node = found(folder, name, status)
        if not reply(name, node, status, position):
            vault.tree.drop_unused(node)
            return False
        node.lookups += 1
    return True


async def _rewind(vault: Vault, handle: FolderHandle) -> None:
    if handle.entries is not None:
        handle.entries.close()  # type: ignore[attr-defined]  # an os.scandir iterator
        handle.entries = None
    branch = handle.node.branch
    await branch.call(handle.caller, os.lseek, handle.fd, 0, os.SEEK_SET)
    handle.entries = await branch.call(handle.caller, os.scandir, handle.fd)
    handle.restarted = False
    # Where it is only looked at now and then what happens in the folder, a listing is as good as a look.
    handle.found = {} if isinstance(handle.node.watch, Looked) else None
    shifted = handle.node.shifted
    arrivals = () if shifted is None else tuple(shifted.arrivals)
    handle.names = [b".", b"..", *(handle.node.mounted or ()), *arrivals]
    if vault.limits is not None:
        handle.names = vault.limits.shown(handle.node, handle.names)
    handle.virtual = len(handle.names)


async def _read_more(vault: Vault, handle: FolderHandle) -> bool:
    """Add the next names to the handle's; False at the end."""
    if handle.entries is None:
        return False
    while True:
        names = await handle.node.branch.call(handle.caller, calls.take, handle.entries, _BATCH)
        if not names:
            if handle.found is not None:
                vault.foreign.listed(handle.node, handle.found)
                handle.found = None
            return False
        if vault.limits is not None:
            names = vault.limits.shown(handle.node, names)
        virtual = handle.names[: handle.virtual]
        departures = () if handle.node.shifted is None else handle.node.shifted.departures
        shown = [
            name
            for name in names
            if name not in virtual
            and name not in departures
            and not name.startswith(RESERVED_PREFIX)
        ]
        if handle.restarted:
            shown = [name for name in shown if name not in handle.names]
        if shown:
            handle.names += shown
            return True


async def fsync_folder(vault: Vault, handle_id: int) -> None:
    """fsync of a folder, and of what is being moved into it. What a file system cannot do counts as done."""
    handle = vault.handles.folder(handle_id)
    moving = vault.background.above(handle.node)
    arriving = () if handle.node.shifted is None else handle.node.shifted.arrivals.values()
    for one in (*arriving, *(() if moving is None else (moving,))):
        await vault.background.finished(one)
    try:
        await handle.node.branch.call_slowly(AGENT, os.fsync, handle.fd)
    except OSError as failure:
        if failure.errno != EINVAL:
            raise


async def release_folder(vault: Vault, handle_id: int) -> None:
    """closedir."""
    handle = vault.handles.folder(handle_id)
    await handle.settled()  # its descriptor may be about to be put on the folder's new place
    vault.handles.remove_folder(handle_id)
    if handle.entries is not None:
        handle.entries.close()  # type: ignore[attr-defined]  # an os.scandir iterator
    await handle.node.branch.release(AGENT, handle.fd)


async def figures(vault: Vault) -> os.statvfs_result:
    """statvfs of the vault: the sums over its file systems, each counted once, in units of the root's."""
    root = vault.branches[0]
    total = await root.call(AGENT, os.fstatvfs, root.fd)
    unit = total.f_frsize or 4096
    blocks, free, available = total.f_blocks, total.f_bfree, total.f_bavail
    files, files_free, files_available = total.f_files, total.f_ffree, total.f_favail
    seen = {total.f_fsid or vault.tree.root.key}
    for branch in vault.branches[1:]:
        if branch.state is not MountState.ALIVE:
            continue
        try:
            one = await branch.call(AGENT, os.fstatvfs, branch.fd)
        except OSError:
            continue
        if one.f_fsid in seen:
            continue
        if one.f_fsid:
            seen.add(one.f_fsid)
        blocks += one.f_blocks * one.f_frsize // unit
        free += one.f_bfree * one.f_frsize // unit
        available += one.f_bavail * one.f_frsize // unit
        files += one.f_files
        files_free += one.f_ffree
        files_available += one.f_favail
    if not blocks:
        raise error(EINVAL)
    counts = (blocks, free, available, files, files_free, files_available)
    return os.statvfs_result((total.f_bsize, unit, *counts, total.f_flag, total.f_namemax))
