"""Operations on attributes: status, owner, mode, times, size, extended attributes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import EINVAL, EIO, ENODATA, ENOSYS, ENOTSUP, ESTALE
from typing import TypeAlias, TypeVar

from session_agent.fsutil.at import by_descriptor, stat_at
from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.model import MountState
from session_agent.overlay import calls
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.looking import saved
from session_agent.overlay.nodes import FolderNode, Node, version_of
from session_agent.overlay.vault import Vault, error

T = TypeVar("T")

# A branch that has never answered. Its inode number says that the kernel is not to keep this.
_UNKNOWN = os.stat_result(
    (stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0),
    {
        **dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), 0),
        "st_blksize": 4096,
        "st_blocks": 0,
        "st_rdev": 0,
    },
)

MOVE_XATTR = b"user.session_agent.move"
"""What a file or folder has while it is moved in the background: JSON that tells how far the move is."""

XattrPath: TypeAlias = bytes | str | int
"""By what an xattr call reaches a file: a name in a folder, which must not be followed if it is a symbolic
link; procfs's link to an O_PATH descriptor, which must be followed; or a descriptor of an open file."""


async def status_of(vault: Vault, node: Node, caller: Caller) -> os.stat_result:
    """fstat of the node's file.

    ESTALE if another file has come to its name behind the vault: the kernel then looks the name up anew.
    """
    branch = node.branch
    if node.fd >= 0 and node.fd != branch.fd:
        return await branch.call(caller, os.fstat, node.fd)
    if isinstance(node, FolderNode) and node.is_branch_root:
        return await _status_of_root(branch, caller)
    if node.handles:
        return await branch.call(caller, os.fstat, node.handles[0].fd)
    parent = node.parent
    assert parent is not None
    fd = parent.fd if parent.fd >= 0 else await vault.folder_fd(parent)
    try:
        status = await branch.call(caller, stat_at, fd, node.name)
    except FileNotFoundError:
        raise error(ESTALE) from None
    vault.check(node, branch, status, fd, node.name)
    return status


async def _status_of_root(branch: OpenBranch, caller: Caller) -> os.stat_result:
    """fstat of the branch's root. It stays a folder while the branch does not answer: what is in it has not

    been deleted, and a file manager can show that something is wrong with it. Using it is an error.
    """
    try:
        status = await branch.call(caller, os.fstat, branch.fd)
    except OSError:
        if branch.state is MountState.ALIVE:
            raise
        return branch.last_status or _UNKNOWN
    branch.last_status = status
    return status


async def get_status(vault: Vault, node_id: int, caller: Caller) -> os.stat_result:
    """fstat."""
    node = vault.tree[node_id]
    if vault.moves:
        await vault.settled(node.parent)
    return await status_of(vault, node, caller)


async def set_attributes(
    vault: Vault, node_id: int, changes: calls.Changes, handle_id: int | None, caller: Caller
) -> os.stat_result:
    """chmod, chown, utimensat, truncate; through the handle if the program had the file open."""
    node = vault.tree[node_id]
    if vault.moves:
        await vault.settled(node)
    branch = node.branch
    node.cached_version = None
    if handle_id is not None:
        handle = vault.handles.file(handle_id)
        size_fd = handle.fd if handle.writable else -1
        status = await branch.call(caller, calls.change, handle.fd, size_fd, changes)
        node.announced = version_of(status)
        return status
    fd, ours = await vault.reference(node, caller)
    try:
        status = await branch.call(caller, calls.change, fd, -1, changes)
    finally:
        if ours:
            branch.close_later(fd)
    node.announced = version_of(status)
    if branch.remote and changes.size is not None:
        saved(node, status.st_size)
    return status


async def read_link(vault: Vault, node_id: int, caller: Caller) -> bytes:
    """The target of a symbolic link, to the byte."""
    node = vault.tree[node_id]
    if vault.moves:
        await vault.settled(node)
    if node.key < 0:
        raise error(ESTALE)
    if node.fd >= 0:
        return await node.branch.call(caller, calls.read_link, node.fd, b"")
    assert node.parent is not None
    folder = await vault.folder_fd(node.parent)
    try:
        return await node.branch.call(caller, calls.read_link, folder, node.name)
    except OSError as failure:
        if failure.errno == EINVAL:  # something else has taken its name behind the vault
            raise error(ESTALE) from None
        raise


async def _xattr_path(vault: Vault, node: Node) -> XattrPath:
    if vault.moves:
        await vault.settled(node)
    if isinstance(node, FolderNode):
        return by_descriptor(await vault.folder_fd(node))
    if node.fd >= 0:
        return by_descriptor(node.fd)
    if node.handles:
        return node.handles[0].fd
    if node.key < 0:
        raise error(ESTALE)
    assert node.parent is not None
    return calls.xattr_path(await vault.folder_fd(node.parent), node.name)


def _follows(path: XattrPath) -> bool:
    return not isinstance(path, bytes)


def _get(path: XattrPath, name: bytes) -> bytes:
    return os.getxattr(path, name, follow_symlinks=_follows(path))


def _set(path: XattrPath, name: bytes, value: bytes) -> None:
    os.setxattr(path, name, value, follow_symlinks=_follows(path))


def _list(path: XattrPath) -> list[bytes]:
    return [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=_follows(path))]


def _remove(path: XattrPath, name: bytes) -> None:
    os.removexattr(path, name, follow_symlinks=_follows(path))


async def _call_xattr(
    vault: Vault, node_id: int, caller: Caller, function: Callable[..., T], *arguments: bytes
) -> T:
    """Make one of the xattr calls above. ENOTSUP where the branch has no extended attributes."""
    node = vault.tree[node_id]
    branch = node.branch
    try:
        return await branch.call(caller, function, await _xattr_path(vault, node), *arguments)
    except OSError as failure:
        # rclone answers EIO to what it does not know.
        if branch.remote and failure.errno in (EIO, ENOSYS):
            raise error(ENOTSUP) from None
        raise


async def get_xattr(vault: Vault, node_id: int, name: bytes, caller: Caller) -> bytes:
    """getxattr. ENODATA if there is none by that name."""
    if name == MOVE_XATTR and (moving := vault.background.above(vault.tree[node_id])):
        return moving.told()
    try:
        return await _call_xattr(vault, node_id, caller, _get, name)
    except OSError as failure:
        # The kernel asks for ACLs by itself, to check permissions, and takes any other error for a refusal.
        # A branch without extended attributes has no ACLs.
        if failure.errno == ENOTSUP and name.startswith(b"system.posix_acl_"):
            raise error(ENODATA) from None
        raise


async def set_xattr(vault: Vault, node_id: int, name: bytes, value: bytes, caller: Caller) -> None:
    """setxattr, whether or not it is there. EPERM where only the system may set it."""
    await _call_xattr(vault, node_id, caller, _set, name, value)
    await _note_own(vault, node_id)


async def list_xattr(vault: Vault, node_id: int, caller: Caller) -> list[bytes]:
    """listxattr."""
    shown = [MOVE_XATTR] if vault.background.above(vault.tree[node_id]) else []
    return shown + await _call_xattr(vault, node_id, caller, _list)


async def remove_xattr(vault: Vault, node_id: int, name: bytes, caller: Caller) -> None:
    """removexattr."""
    await _call_xattr(vault, node_id, caller, _remove, name)
    await _note_own(vault, node_id)


async def _note_own(vault: Vault, node_id: int) -> None:
    """What was changed is the vault's own doing, and no news to the programs in it."""
    node = vault.tree[node_id]
    if not node.branch.remote:
        node.announced = version_of(await status_of(vault, node, AGENT))
