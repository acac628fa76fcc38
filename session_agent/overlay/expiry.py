"""Telling the kernel that what it remembers may not be true any more.

The messages are written to the connection here, and not through pyfuse3, because its library cannot let a
name merely expire: invalidating drops it, with all that is known below it, and with a mount that somebody
made on it. An expired name is asked for again when it is used next. Kernels before 6.2 drop it all the same.

The structures are those of include/uapi/linux/fuse.h (fuse_out_header, fuse_notify_inval_inode_out,
fuse_notify_inval_entry_out).
"""

from __future__ import annotations

import os
import struct
from errno import ENOENT

_INVAL_INODE = 2  # FUSE_NOTIFY_INVAL_INODE
_INVAL_ENTRY = 3  # FUSE_NOTIFY_INVAL_ENTRY
_EXPIRE_ONLY = 1  # FUSE_EXPIRE_ONLY

_INODE = struct.Struct("=IiQ Qqq")  # header: length, code, 0; node, offset, length
_ENTRY = struct.Struct("=IiQ QII")  # header; folder, length of the name, flags


class Expiry:
    """The messages to one connection. None of them raises: a kernel that is gone remembers nothing."""

    def __init__(self) -> None:
        self.connection = -1

    def attributes(self, node_id: int) -> None:
        """The attributes of a node. Never waits."""
        self._inode(node_id, -1)

    def pages(self, node_id: int) -> None:
        """What was read of a file, and its attributes. May wait for requests that the vault has to answer."""
        self._inode(node_id, 0)

    def name(self, folder_id: int, name: bytes) -> bool:
        """A name, be it of nothing. May wait for a request in that folder. False if it is not remembered."""
        return self._entry(folder_id, name, _EXPIRE_ONLY)

    def everything_below(self, folder_id: int, name: bytes) -> None:
        """A name and all that nobody uses just now below it. May wait as `name` does."""
        self._entry(folder_id, name, 0)

    def _inode(self, node_id: int, offset: int) -> None:
        self._write(_INODE.pack(_INODE.size, _INVAL_INODE, 0, node_id, offset, 0))

    def _entry(self, folder_id: int, name: bytes, flags: int) -> bool:
        length = _ENTRY.size + len(name) + 1
        head = _ENTRY.pack(length, _INVAL_ENTRY, 0, folder_id, len(name), flags)
        return self._write(head + name + b"\0")

    def _write(self, message: bytes) -> bool:
        try:
            os.write(self.connection, message)
        except OSError as error:
            return error.errno != ENOENT
        return True
