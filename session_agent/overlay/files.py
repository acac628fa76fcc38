"""Operations on open files: open, read, write, flush, fsync, release."""

from __future__ import annotations

import contextlib
import os
import time
from errno import ESTALE

from session_agent.fsutil.at import Opened
from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.overlay import calls
from session_agent.overlay.handles import Handle
from session_agent.overlay.looking import saved
from session_agent.overlay.nodes import Node, version_of
from session_agent.overlay.vault import Vault, error

# Set in the flags when the file is opened to be executed: reading is then no right that the caller needs
# (the kernel's __FMODE_EXEC; include/linux/fs.h).
_EXECUTE = 0x20

_TICK = 10_000_000  # ns; the longest that a kernel is built with

_NOT_FOR_BACKING = os.O_APPEND | os.O_DIRECT | os.O_NOCTTY | os.O_CREAT | os.O_EXCL | _EXECUTE


async def open_file(vault: Vault, node_id: int, flags: int, caller: Caller) -> tuple[int, bool]:
    """open: the handle's number, and whether the pages that the kernel has of the file are still right."""
    node = vault.tree[node_id]
    opener = AGENT if flags & _EXECUTE else caller
    while True:
        if vault.moves:
            await vault.settled(node)
        fd, status = await _open(vault, node, flags & ~_NOT_FOR_BACKING, opener)
        if not vault.moves or not vault.is_moving(node):
            break
        # A move has begun meanwhile (in a remote branch), and does not know of this descriptor.
        await node.branch.release(opener, fd)
    version = version_of(status)
    if flags & os.O_TRUNC:
        node.announced = version
    keep = node.cached_version == version
    # Within a tick of the clock it may be written to again and be of the same version.
    node.cached_version = None if abs(time.time_ns() - version[1]) < _TICK else version
    if node.told != hash((status.st_mtime_ns, status.st_size)):
        # Else the kernel would end the new contents where the old ones did.
        node.told = hash((status.st_mtime_ns, status.st_size))
        node.seen = status.st_ctime_ns
        vault.foreign.expiry.attributes(node_id)
    return vault.handles.add(Handle(fd, flags & ~_EXECUTE, node, caller, node.branch)), keep


async def _open(vault: Vault, node: Node, flags: int, opener: Caller) -> Opened:
    branch = node.branch
    if node.fd >= 0:  # it has no name any more
        return await branch.call(opener, calls.open_again, node.fd, flags)
    parent = node.parent
    assert parent is not None
    folder = parent.fd if parent.fd >= 0 else await vault.folder_fd(parent)
    try:
        found = await branch.call(opener, calls.open_file, folder, node.name, flags)
    except FileNotFoundError:
        raise error(ESTALE) from None
    try:
        vault.check(node, branch, found.status, found.fd, b"")
    except OSError:
        await branch.release(opener, found.fd)
        raise
    return found


async def read(vault: Vault, handle_id: int, offset: int, size: int) -> bytes:
    """pread."""
    handle = vault.handles.file(handle_id)
    return await handle.branch.call(handle.caller, os.pread, handle.fd, size, offset)


async def write(vault: Vault, handle_id: int, offset: int, data: bytes) -> int:
    """pwrite, at the file's true end where the program asked for appending."""
    handle = vault.handles.file(handle_id)
    if vault.moves:
        await vault.settled(handle.node)
        await handle.settled()
    handle.node.cached_version = None
    append = handle.append and handle.appends_only
    handle.writing += 1
    branch = handle.branch
    try:
        count = await branch.call(handle.caller, calls.write, handle.fd, data, offset, append)
    finally:
        handle.written()
    if not branch.remote:
        handle.node.announced = version_of(os.fstat(handle.fd))
    return count


async def flush(vault: Vault, handle_id: int) -> None:
    """close of one of the program's descriptors: a remote branch reports failed saves here."""
    handle = vault.handles.file(handle_id)
    if handle.branch.remote and handle.writable:
        size = await handle.branch.call(handle.caller, calls.close_twin, handle.fd)
        saved(handle.node, size)


async def fsync(vault: Vault, handle_id: int, data_only: bool) -> None:
    """fsync, in a thread: it takes as long as the disk does. What is being moved has to arrive first."""
    handle = vault.handles.file(handle_id)
    moving = vault.background.above(handle.node)
    if moving is not None:
        await vault.background.finished(moving)
    if vault.moves:
        await vault.settled(handle.node)
    function = os.fdatasync if data_only else os.fsync
    await handle.branch.call_slowly(handle.caller, function, handle.fd)


async def release(vault: Vault, handle_id: int) -> None:
    """The last descriptor is closed. For a remote branch that may take its time, so in a thread."""
    handle = vault.handles.file(handle_id)
    await handle.settled()  # its descriptor may be about to be put on the file's new place
    vault.handles.remove(handle_id)
    await _note_saved(handle)
    await handle.branch.release(handle.caller, handle.fd)


async def _note_saved(handle: Handle) -> None:
    """What was written is no news where folders are looked at, though the kernel may not ask for `flush`."""
    if handle.branch.remote and handle.writable:
        with contextlib.suppress(OSError):
            status = await handle.branch.call(handle.caller, os.fstat, handle.fd)
            saved(handle.node, status.st_size)
