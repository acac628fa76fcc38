"""Operations on names: look up, create, remove, link, rename."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import EBUSY, EEXIST, EINVAL, ENOENT, ENOTEMPTY, ESTALE, EXDEV

from session_agent.fsutil.at import stat_at
from session_agent.fsutil.credentials import Caller
from session_agent.fsutil.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from session_agent.moves.names import RESERVED_PREFIX
from session_agent.overlay import calls, moving
from session_agent.overlay.attributes import status_of
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.handles import Handle
from session_agent.overlay.tree import FolderNode
from session_agent.overlay.vault import Entry, Vault, error


async def lookup(vault: Vault, parent_id: int, name: bytes, caller: Caller) -> Entry:
    """The entry `name`; "." and ".." too. ENOENT for what is reserved."""
    parent = vault.tree.folder(parent_id)
    if vault.moves:
        await vault.settled(parent)
    if parent.mounted is not None and name in parent.mounted:
        node = parent.mounted[name]
        return node, await status_of(vault, node, caller)
    if name.startswith(b"."):
        if name in (b".", b".."):
            folder = parent if name == b"." or parent.parent is None else parent.parent
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


async def _new_name(vault: Vault, parent_id: int, name: bytes) -> tuple[FolderNode, int]:
    """The folder that gets a new entry, and its descriptor."""
    parent = vault.tree.folder(parent_id)
    if vault.moves:
        await vault.settled(parent)
    vault.check_name(name)
    if parent.mounted is not None and name in parent.mounted:
        raise error(EEXIST)
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
    return _found(vault, parent, branch, name, status)


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
        entry = _found(vault, parent, branch, name, status)
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
    if node.branch is not branch:
        raise error(EXDEV)
    if node.fd >= 0:
        status = await branch.call(caller, calls.make_link_again, node.fd, fd, name)
    else:
        assert node.parent is not None
        source = await vault.folder_fd(node.parent)
        status = await branch.call(caller, calls.make_link, source, node.name, fd, name)
    return _found(vault, parent, branch, name, status)


async def unlink(vault: Vault, parent_id: int, name: bytes, caller: Caller) -> None:
    """unlink."""
    parent = vault.tree.folder(parent_id)
    await _remove(vault, parent, name, os.unlink, caller)


async def rmdir(vault: Vault, parent_id: int, name: bytes, caller: Caller) -> None:
    """rmdir. EBUSY for the root of a branch."""
    parent = vault.tree.folder(parent_id)
    if vault.branch_below(parent, name):
        raise error(ENOTEMPTY)
    await _remove(vault, parent, name, os.rmdir, caller)


async def _remove(
    vault: Vault, parent: FolderNode, name: bytes, remover: Callable[..., None], caller: Caller
) -> None:
    if vault.moves:
        await vault.settled(parent)
    if name.startswith(RESERVED_PREFIX):
        raise error(ENOENT)
    if parent.mounted is not None and name in parent.mounted:
        raise error(EBUSY)
    branch = parent.branch
    fd = parent.fd if parent.fd >= 0 else await vault.folder_fd(parent)
    held = await branch.call(caller, calls.remove, fd, name, remover)
    vault.hold(held, branch)


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
    source_fd = source.fd if source.fd >= 0 else await vault.folder_fd(source)
    target_fd = target.fd if target.fd >= 0 else await vault.folder_fd(target)
    branch = source.branch
    if branch is target.branch:
        try:
            done = await branch.call(
                caller, calls.rename, source_fd, source_name, target_fd, target_name, flags
            )
        except OSError as failure:
            if failure.errno != EXDEV:
                raise
        else:
            _renamed(vault, source, source_name, target, target_name, done)
            return
    await moving.move(vault, source, source_name, target, target_name, flags, caller)


def _renamed(
    vault: Vault,
    source: FolderNode,
    source_name: bytes,
    target: FolderNode,
    target_name: bytes,
    done: calls.Renamed,
) -> None:
    """Bring the nodes to where a rename within a branch has taken their files."""
    branch = target.branch
    tree = vault.tree
    moved = tree.find(tree.key(branch, done.moved.st_dev, done.moved.st_ino))
    if done.replaced is not None:
        other = (done.replaced.status.st_dev, done.replaced.status.st_ino)
        if done.exchanged is not None or other == (done.moved.st_dev, done.moved.st_ino):
            branch.close_later(done.replaced.fd)  # it still has a name
        else:
            vault.hold(done.replaced, branch)
    if moved is not None:
        moved.parent, moved.name = target, target_name
    if done.exchanged is not None:
        back = tree.find(tree.key(branch, done.exchanged.st_dev, done.exchanged.st_ino))
        if back is not None:
            back.parent, back.name = source, source_name
