"""The thin layer between pyfuse3 and the operations: numbers and errors in, attributes out."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from errno import EIO, ENOSYS, EPERM
from typing import Any, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from session_agent.fsutil.credentials import Caller
from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from session_agent.overlay import attributes, files, folders, names
from session_agent.overlay.announcing import HANDLE
from session_agent.overlay.calls import Changes
from session_agent.overlay.expected import Expected
from session_agent.overlay.lifetimes import Lifetimes
from session_agent.overlay.nodes import FolderNode, Node, version_of
from session_agent.overlay.vault import Entry, Vault

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def answered(handler: Callable[P, Awaitable[T]]) -> Callable[P, Any]:
    """Turn what a handler raises into the errno for the program: the one place where that is done.

    What nobody expected is logged with its traceback and becomes EIO.
    """

    @functools.wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except OSError as failure:
            raise FUSEError(failure.errno or EIO) from None
        except FUSEError:
            raise
        except Exception:
            log.exception("%s failed unexpectedly", handler.__name__)
            raise FUSEError(EIO) from None

    return wrapper


class VaultOperations(pyfuse3.Operations):
    """The requests of the kernel, each passed on to the room it belongs to."""

    supports_dot_lookup = True
    enable_acl = True
    enable_writeback_cache = False  # it would hide other sessions' changes (docs/overlay.md)

    def __init__(self, vault: Vault, cache_seconds: float, announcer: int = 0) -> None:
        super().__init__()
        self._vault = vault
        self._foreign = vault.foreign
        self._expected_of = vault.foreign.expected
        self._announcer = announcer  # see OverlayOptions
        self._lifetimes = Lifetimes(vault, cache_seconds)
        self._flushes = any(branch.remote for branch in vault.branches)

    def _caller(self, ctx: RequestContext) -> Caller:
        return self._vault.callers.caller(ctx.pid, ctx.uid, ctx.gid)

    def _attributes(self, node: Node, status: os.stat_result) -> EntryAttributes:
        out = EntryAttributes()
        out.st_ino = node.id
        out.entry_timeout, out.attr_timeout = self._lifetimes.of(node, status)
        out.st_mode = status.st_mode
        out.st_nlink = status.st_nlink
        out.st_uid = status.st_uid
        out.st_gid = status.st_gid
        out.st_rdev = status.st_rdev
        out.st_size = status.st_size
        out.st_blksize = status.st_blksize
        out.st_blocks = status.st_blocks
        out.st_atime_ns = status.st_atime_ns
        out.st_mtime_ns = status.st_mtime_ns
        out.st_ctime_ns = status.st_ctime_ns
        node.told = hash((status.st_mtime_ns, status.st_size))
        node.seen = status.st_ctime_ns
        return out

    def _told(self, entry: Entry) -> EntryAttributes:
        """The attributes of an entry that the kernel counts as looked up from now on."""
        node, status = entry
        node.lookups += 1
        if type(node) is FolderNode and node.watch is None:
            self._foreign.watch(node)
        return self._attributes(node, status)

    def _announced(self, entry: Entry) -> EntryAttributes:
        """As `_told`, for the herald's call alone: others look up what is there.

        Else the kernel would keep a name that no program has asked for, and show it after it was removed
        behind the vault.
        """
        out = self._told(entry)
        out.entry_timeout = out.attr_timeout = 0
        return out

    def _is_own_thread(self, ctx: RequestContext) -> bool:
        """Whether it is one of the herald's threads, which announces a foreign change."""
        return ctx.pid in self._expected_of

    def _expected(self, ctx: RequestContext) -> Expected | None:
        """What is expected of the thread that asks, if it is one of these."""
        return self._expected_of.get(ctx.pid)

    async def _answer(
        self, expected: Expected, verb: str, parent_inode: int, name: bytes
    ) -> EntryAttributes:
        entry = await expected.answer(verb, parent_inode, name)
        self._heard(parent_inode, name, True)
        return self._announced(entry)

    def _made(self, parent_inode: int, name: bytes, entry: Entry) -> EntryAttributes:
        self._heard(parent_inode, name, True)
        return self._told(entry)

    def _heard(self, parent_inode: int, name: bytes, there: bool) -> None:
        """Once this is answered the kernel tells programs that something is at the name, or has gone."""
        self._foreign.heard(self._vault.tree.folder(parent_inode), name, there)

    def _misplaced(self, parent_inode: int, name: bytes) -> None:
        """A name has come, from where it may be kept for long, to where it may not."""
        folder = self._vault.tree.folder(parent_inode)
        if not self._lifetimes.is_lasting(folder):
            self._foreign.uncertain(folder, name)

    # Names

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        expected = self._expected(ctx)
        try:
            if expected is not None:
                seen = await expected.lookup(parent_inode, name)
                if seen is not None:
                    return self._announced(seen)
                found = await names.lookup(self._vault, parent_inode, name, self._caller(ctx))
                known = (
                    type(found[0]) is FolderNode and found[0].lookups > 0
                )  # it leads to the folder
                return self._told(found) if known else self._announced(found)
            return self._told(
                await names.lookup(self._vault, parent_inode, name, self._caller(ctx))
            )
        except FileNotFoundError:
            if expected is not None:
                raise  # nor is this to be kept: no program has asked for it
            absent = EntryAttributes()
            absent.st_ino = pyfuse3.InodeT(0)
            folder = self._vault.tree.folder(parent_inode)
            absent.entry_timeout = self._lifetimes.absent(folder, name)
            return absent

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for node_id, count in inode_list:
            self._vault.tree.forget(node_id, count)

    @answered
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        if (expected := self._expected(ctx)) is not None:
            return await self._answer(expected, "make", parent_inode, name)
        caller = self._caller(ctx)
        made = await names.make_folder(self._vault, parent_inode, name, mode & 0o7777, caller)
        return self._made(parent_inode, name, made)

    @answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        if (expected := self._expected(ctx)) is not None:
            return await self._answer(expected, "make", parent_inode, name)
        caller = self._caller(ctx)
        made = await names.make_node(self._vault, parent_inode, name, mode, rdev, caller)
        return self._made(parent_inode, name, made)

    @answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        if (expected := self._expected(ctx)) is not None:
            return await self._answer(expected, "make", parent_inode, name)
        caller = self._caller(ctx)
        made = await names.make_symlink(self._vault, parent_inode, name, target, caller)
        return self._made(parent_inode, name, made)

    @answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        caller = self._caller(ctx)
        node = self._vault.tree[inode]
        if node.parent is not None:  # of a file with several names none is kept
            self._foreign.uncertain(node.parent, node.name)
        made = await names.link(self._vault, inode, new_parent_inode, new_name, caller)
        return self._made(new_parent_inode, new_name, made)

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if (expected := self._expected(ctx)) is not None:
            await expected.answer("remove", parent_inode, name)
        else:
            await names.unlink(self._vault, parent_inode, name, self._caller(ctx))
        self._heard(parent_inode, name, False)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if (expected := self._expected(ctx)) is not None:
            await expected.answer("remove", parent_inode, name)
        else:
            await names.rmdir(self._vault, parent_inode, name, self._caller(ctx))
        self._heard(parent_inode, name, False)

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
        if (expected := self._expected(ctx)) is not None:
            await expected.answer("rename", parent_inode_new, name_new)
        else:
            old, new = (parent_inode_old, name_old), (parent_inode_new, name_new)
            await names.rename(self._vault, *old, *new, flags, self._caller(ctx))
            self._misplaced(*new)
            if flags & RENAME_EXCHANGE:
                self._misplaced(*old)
        self._heard(parent_inode_old, name_old, bool(flags & RENAME_EXCHANGE))
        self._heard(parent_inode_new, name_new, True)

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        if (expected := self._expected(ctx)) is not None:
            answer = await self._answer(expected, "make", parent_inode, name)
            return FileInfo(fh=pyfuse3.FileHandleT(HANDLE)), answer
        caller = self._caller(ctx)
        handle, entry = await names.create(self._vault, parent_inode, name, flags, mode, caller)
        made = self._made(parent_inode, name, entry)
        return FileInfo(fh=pyfuse3.FileHandleT(handle)), made

    # Attributes

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        status = await attributes.get_status(self._vault, inode, self._caller(ctx))
        return self._attributes(self._vault.tree[inode], status)

    @answered
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if self._announces(self._vault.tree[inode], fields, ctx):
            # The kernel tells whoever watches the folder; that is all that is wanted.
            status = await attributes.get_status(self._vault, inode, self._caller(ctx))
            out = self._attributes(self._vault.tree[inode], status)
            if self._is_own_thread(ctx):
                self._vault.tree[inode].announced = version_of(status)
                out.attr_timeout = 0  # it may arrive after what a program was told later
            return out
        changes = Changes(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        caller = self._caller(ctx)
        status = await attributes.set_attributes(self._vault, inode, changes, fh, caller)
        return self._attributes(self._vault.tree[inode], status)

    def _announces(self, node: Node, fields: pyfuse3.SetattrFields, ctx: RequestContext) -> bool:
        """Whether this is a touch that announces something, and no other change."""
        if (expected := self._expected(ctx)) is not None:
            if not expected.concerns("touch", node):
                raise FUSEError(EPERM)
            return True
        if ctx.pid != self._announcer or node not in self._vault.branch_roots:
            return False
        others = (fields.update_size, fields.update_mode, fields.update_uid, fields.update_gid)
        return not any(others)

    @answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await attributes.read_link(self._vault, inode, self._caller(ctx))

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await attributes.get_xattr(self._vault, inode, name, self._caller(ctx))

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await attributes.set_xattr(self._vault, inode, name, value, self._caller(ctx))

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        return await attributes.list_xattr(self._vault, inode, self._caller(ctx))

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await attributes.remove_xattr(self._vault, inode, name, self._caller(ctx))

    # Files

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if (expected := self._expected(ctx)) is not None:
            if not expected.concerns("open", self._vault.tree[inode]):
                raise FUSEError(EPERM)
            return FileInfo(fh=pyfuse3.FileHandleT(HANDLE), keep_cache=False)
        handle, keep = await files.open_file(self._vault, inode, flags, self._caller(ctx))
        return FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=keep)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await files.read(self._vault, fh, off, size)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await files.write(self._vault, fh, off, buf)

    @answered
    async def flush(self, fh: int) -> None:
        if not self._flushes:
            raise FUSEError(ENOSYS)  # the kernel asks no more: a third less for an open-read-close
        if fh == HANDLE:
            return
        await files.flush(self._vault, fh)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await files.fsync(self._vault, fh, datasync)

    @answered
    async def release(self, fh: int) -> None:
        if fh == HANDLE:
            return
        await files.release(self._vault, fh)

    # Folders

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return await folders.open_folder(self._vault, inode, self._caller(ctx))

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        def reply(name: bytes, node: Node, status: os.stat_result, position: int) -> bool:
            if type(node) is FolderNode and node.watch is None:
                self._foreign.watch_soon(node)
            return pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(name), self._attributes(node, status), position
            )

        await folders.read_folder(self._vault, fh, start_id, reply)

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await folders.fsync_folder(self._vault, fh)

    @answered
    async def releasedir(self, fh: int) -> None:
        await folders.release_folder(self._vault, fh)

    @answered
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        figures = await folders.figures(self._vault)
        out = pyfuse3.StatvfsData()
        for field in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail"):
            setattr(out, f"f_{field}", getattr(figures, f"f_{field}"))
        out.f_namemax = figures.f_namemax
        return out
