"""A FUSE mount of a folder with the empty file "file", whose server can hang, go on, and die.

It speaks the kernel's protocol (linux/fuse.h) itself, in a thread: quicker to start and to stop than rclone.
"""

from __future__ import annotations

import os
import select
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOSYS
from pathlib import Path

_LOOKUP, _GETATTR, _STATFS, _RELEASE, _FLUSH, _INIT = 1, 3, 17, 18, 25, 26
_HEADER = struct.Struct("=IIQQIIII")
_FILE = 2  # its node
_PATIENCE = 20.0  # seconds for mount and umount


class StubFuse:
    """The server. It answers from the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._answering = threading.Event()
        self._answering.set()
        self.flushes = 0  # how often a descriptor of the file was closed
        self._dead = False
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        """Mount it."""
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        # -i: without a helper program.
        command = ["mount", "-i", "-t", "fuse", "-o", options, "stub", str(self.path)]
        subprocess.run(command, check=True, pass_fds=[self.fd], timeout=_PATIENCE)
        self._thread.start()

    def hang(self) -> None:
        """From here on no call into the mount ends."""
        self._answering.clear()

    def go_on(self) -> None:
        """Answer what has come meanwhile, and all that comes."""
        self._answering.set()

    def die(self) -> None:
        """From here on every call into the mount fails with ENOTCONN, those that hang included."""
        self._dead = True
        os.write(self._woken, b"x")
        self._answering.set()
        self._thread.join()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def stop(self) -> None:
        """Clean up."""
        self.die()
        os.close(self._wake)
        os.close(self._woken)
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, timeout=_PATIENCE)

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self.fd, self._wake], [], [])
            self._answering.wait()
            if self._dead or self._wake in ready:
                return
            try:
                request = os.read(self.fd, 1 << 18)
            except OSError:  # taken back, or unmounted
                return
            _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
            body = self._answer(opcode, node, request[_HEADER.size :])
            error = -ENOSYS if body is None else 0
            body = body or b""
            with suppress(FileNotFoundError):  # nobody waits for the answer any more
                os.write(self.fd, struct.pack("=IiQ", 16 + len(body), error, unique) + body)

    def _answer(self, opcode: int, node: int, rest: bytes) -> bytes | None:
        if opcode == _INIT:
            return struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 1 << 17, 1, 0, 0, 0)
        if opcode == _STATFS:
            return struct.pack("=QQQQQIIII24x", 100, 50, 50, 10, 5, 4096, 255, 4096, 0)
        if opcode == _GETATTR:
            return struct.pack("=QII", 0, 0, 0) + _attributes(node)
        if opcode == _LOOKUP and rest == b"file\0":
            return struct.pack("=QQQQII", _FILE, 0, 0, 0, 0, 0) + _attributes(_FILE)
        if opcode == _FLUSH:
            self.flushes += 1
        return b"" if opcode in (_FLUSH, _RELEASE) else None


def _attributes(node: int) -> bytes:
    mode = stat.S_IFREG | 0o644 if node == _FILE else stat.S_IFDIR | 0o755
    return struct.pack("=6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


@contextmanager
def stub_fuse(path: Path) -> Iterator[StubFuse]:
    """The mount at `path`, which is made if it is not there."""
    path.mkdir(parents=True, exist_ok=True)
    server = StubFuse(path)
    server.start()
    try:
        os.statvfs(path)
        yield server
    finally:
        server.stop()
