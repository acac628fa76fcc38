"""What the kernel remembers for long, made to run out when it is not true any more.

Attributes run out by a message to the connection, which never waits. A name cannot be made to run out in
that way: the kernel would wait for the lock of its folder, which a program may hold that waits for us; a
process that is killed while one of its threads waits so never ends, and the vault with it. But the kernel
asks for a file's attributes whenever it resolves a name to it. If something else is at the name by now, it is
answered with ESTALE, and looks the name up anew. What is left, names of nothing and of what is open or is a
folder, the herald has looked up (`Telling`).

The structures are those of include/uapi/linux/fuse.h (fuse_out_header, fuse_notify_inval_inode_out).
"""

from __future__ import annotations

import contextlib
import os
import struct
import time

_INVAL_INODE = 2  # FUSE_NOTIFY_INVAL_INODE
_INODE = struct.Struct("=IiQ Qqq")  # header: length, code, 0; node, offset, length


class Expiry:
    """The messages to one connection, once there is one.

    None of them raises: a kernel that is gone, or has just forgotten the node, remembers nothing of it.
    """

    def __init__(self) -> None:
        self.connection = -1

    def attributes(self, node_id: int) -> None:
        """The attributes of a node. An offset below 0 leaves its pages alone, for which it would wait."""
        with contextlib.suppress(OSError):
            message = _INODE.pack(_INODE.size, _INVAL_INODE, 0, node_id, -1, 0)
            os.write(self.connection, message)


class Absent:
    """Names of nothing that the kernel was told to remember as such for long, with the folders' numbers."""

    LIMIT = 20_000

    def __init__(self) -> None:
        self._until: dict[tuple[int, bytes], float] = {}  # in this order

    def add(self, folder_id: int, name: bytes, seconds: float) -> bool:
        """Remember that it is remembered so long; False if there is no room for that."""
        now = time.monotonic()
        while self._until and next(iter(self._until.values())) < now:
            del self._until[next(iter(self._until))]
        if len(self._until) >= self.LIMIT:
            return False
        self._until.pop((folder_id, name), None)
        self._until[folder_id, name] = now + seconds
        return True

    def pop(self, folder_id: int, name: bytes) -> bool:
        """Whether the kernel may remember that there is no such name; not any more, from now on."""
        return self._until.pop((folder_id, name), None) is not None

    def names_in(self, folder_id: int) -> list[bytes]:
        """Such names in the folder."""
        return [name for folder, name in self._until if folder == folder_id]
