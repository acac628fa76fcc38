"""The requests of the kernel where a policy holds: each is asked of the limits first.

Nothing of it is loaded, and nothing costs anything, where there is no policy.
"""

from __future__ import annotations

import os
import stat
from errno import ENOENT
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, RequestContext

from session_agent.overlay.limits import Limits
from session_agent.overlay.nodes import Node
from session_agent.overlay.operations import VaultOperations, answered
from session_agent.overlay.vault import Vault, error

_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class LimitedOperations(VaultOperations):
    """As without a policy, but for what it refuses."""

    def __init__(self, vault: Vault, cache_seconds: float, announcer: int = 0) -> None:
        super().__init__(vault, cache_seconds, announcer)
        assert vault.limits is not None

    @property
    def _limits(self) -> Limits:
        assert self._vault.limits is not None
        return self._vault.limits

    def _node(self, inode: int) -> Node:
        try:
            return self._vault.tree[inode]
        except KeyError:
            raise error(ENOENT) from None

    # Names

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> Any:
        self._limits.see_entry(self._vault.tree.folder(parent_inode), name, ctx.uid)
        return await super().lookup(parent_inode, name, ctx)

    def _make(self, parent_inode: int, name: bytes, operation: str, ctx: RequestContext) -> None:
        if self._is_own_thread(ctx):
            return  # it announces only what may be seen, and changes nothing
        self._limits.make(self._vault.tree.folder(parent_inode), name, operation, ctx.uid)

    def _displace(
        self, parent_inode: int, name: bytes, operation: str, ctx: RequestContext
    ) -> None:
        if self._is_own_thread(ctx):
            return
        self._limits.displace(self._vault.tree.folder(parent_inode), name, operation, ctx.uid)

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> Any:
        self._make(parent_inode, name, "mkdir", ctx)
        return await super().mkdir(parent_inode, name, mode, ctx)

    @answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> Any:
        self._make(parent_inode, name, "mknod", ctx)
        return await super().mknod(parent_inode, name, mode, rdev, ctx)

    @answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> Any:
        self._make(parent_inode, name, "symlink", ctx)
        return await super().symlink(parent_inode, name, target, ctx)

    @answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> Any:
        # A second name elsewhere would be the same file under other limits.
        self._limits.change(self._node(inode), "link", ctx.uid)
        self._make(new_parent_inode, new_name, "link", ctx)
        return await super().link(inode, new_parent_inode, new_name, ctx)

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._displace(parent_inode, name, "unlink", ctx)
        await super().unlink(parent_inode, name, ctx)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._displace(parent_inode, name, "rmdir", ctx)
        await super().rmdir(parent_inode, name, ctx)

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self._displace(parent_inode_old, name_old, "rename", ctx)
        self._displace(parent_inode_new, name_new, "rename", ctx)
        old, new = (parent_inode_old, name_old), (parent_inode_new, name_new)
        await super().rename(*old, *new, flags, ctx)

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> Any:
        self._make(parent_inode, name, "create", ctx)
        return await super().create(parent_inode, name, mode, flags, ctx)

    # Attributes

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> Any:
        self._limits.see(self._node(inode), "getattr", ctx.uid)
        return await super().getattr(inode, ctx)

    @answered
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> Any:
        node = self._node(inode)
        if not self._announces(node, fields, ctx):
            self._limits.change(node, "setattr", ctx.uid)
        return await super().setattr(inode, attr, fields, fh, ctx)

    @answered
    async def readlink(self, inode: int, ctx: RequestContext) -> Any:
        self._limits.see(self._node(inode), "readlink", ctx.uid)
        return await super().readlink(inode, ctx)

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> Any:
        self._limits.see(self._node(inode), "getxattr", ctx.uid)
        return await super().getxattr(inode, name, ctx)

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> Any:
        self._limits.see(self._node(inode), "listxattr", ctx.uid)
        return await super().listxattr(inode, ctx)

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._limits.change(self._node(inode), "setxattr", ctx.uid)
        await super().setxattr(inode, name, value, ctx)

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._limits.change(self._node(inode), "removexattr", ctx.uid)
        await super().removexattr(inode, name, ctx)

    # Files and folders

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> Any:
        node = self._node(inode)
        self._limits.see(node, "open", ctx.uid)
        changing = flags & _CHANGING and stat.S_ISREG(node.format)
        if changing and not self._is_own_thread(ctx):
            self._limits.change(node, "open", ctx.uid)
        return await super().open(inode, flags, ctx)

    @answered
    async def read(self, fh: int, off: int, size: int) -> Any:
        handle = self._vault.handles.file(fh)
        self._limits.see(handle.node, "read", handle.caller.uid)
        return await super().read(fh, off, size)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> Any:
        handle = self._vault.handles.file(fh)
        self._limits.change(handle.node, "write", handle.caller.uid)
        return await super().write(fh, off, buf)

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> Any:
        self._limits.see(self._node(inode), "opendir", ctx.uid)
        return await super().opendir(inode, ctx)

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self._vault.handles.folder(fh)
        self._limits.see(handle.node, "readdir", handle.caller.uid)
        await super().readdir(fh, start_id, token)
