"""Who answers a mount whose server is gone, so that an ordinary user can mount over it.

fusermount3 looks at the folder that it mounts at; at a dead mount that fails, and with the connection kept
open and nobody at it, it would wait for good. So it is told what is true, that there is a folder of the
user's. Everything else is ENOTCONN: nobody can take the vault for an empty one.

The messages are the kernel's (linux/fuse.h), in the machine's own byte order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import threading
from collections.abc import Iterator

_IN = struct.Struct("=IIQQIIII")  # len opcode unique nodeid uid gid pid extension
_OUT = struct.Struct("=IiQ")  # len error unique
_ATTR_OUT = struct.Struct("=QII 6Q 10I")  # see _attributes
_STATFS_OUT = struct.Struct("=5Q 4I 24x")

_FORGET, _GETATTR, _STATFS, _GETXATTR, _INTERRUPT, _BATCH_FORGET = 2, 3, 17, 22, 36, 42
_NOTIFY_RESEND = 7
_ROOT = 1
_BUFFER = (1 << 20) + (
    1 << 16
)  # at least what the server had agreed on for one write, and a header


class StandIn:
    """At the connection `fd`, which nobody else must be reading."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Answer until the block ends."""
        stop, end = os.pipe()
        thread = threading.Thread(target=self._run, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.close(end)
            thread.join()
            os.close(stop)

    def _run(self, stop: int) -> None:
        # Requests that the server had taken and not answered come again (Linux 6.9 and newer): one in the
        # root folder keeps that from being covered.
        with contextlib.suppress(OSError):
            os.write(self._fd, _OUT.pack(_OUT.size, _NOTIFY_RESEND, 0))
        poll = select.poll()
        poll.register(stop, 0)  # only its hang-up
        poll.register(self._fd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if stop in ready or ready.get(self._fd, 0) & ~select.POLLIN:
                return
            self._answer()

    def _answer(self) -> None:
        os.set_blocking(self._fd, False)
        try:
            request = os.read(self._fd, _BUFFER)
        except OSError:  # taken back by who asked
            return
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            return  # these get no answer
        body, number = b"", 0
        if opcode == _GETATTR and node == _ROOT:
            body = _attributes()
        elif opcode == _GETXATTR and node == _ROOT:
            number = errno.ENODATA  # it has no ACL, which the kernel asks for to check permissions
        elif opcode == _STATFS:
            body = _STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        else:
            number = errno.ENOTCONN
        with contextlib.suppress(OSError):  # it was interrupted meanwhile
            os.write(self._fd, _OUT.pack(_OUT.size + len(body), -number, unique) + body)


def _attributes() -> bytes:
    """The vault's root: a folder of whoever runs this, not to be remembered."""
    not_to_be_kept = (0, 0, 0)
    size_and_times = (0,) * 5
    nanoseconds = (0,) * 3
    mode, links, device, block_size, flags = 0o040755, 2, 0, 4096, 0
    owner = (os.geteuid(), os.getegid())
    rest = (mode, links, *owner, device, block_size, flags)
    return _ATTR_OUT.pack(*not_to_be_kept, _ROOT, *size_and_times, *nanoseconds, *rest)
