"""Disks whose every write and flush is on record: images served by FUSE, below loop devices.

`recorded` starts the server. What reaches it is what a real disk would get, in that order; so a power cut is
the images with the first so many writes of the log. Writes since the last flush may also be missing
singly: a disk may reorder them.

As a process: DIRECTORY LOG IMAGE...   It speaks the kernel's protocol (linux/fuse.h) itself.
"""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EIO, ENOENT, ENOSYS
from pathlib import Path

from tests.support.storage import run

_HEADER = struct.Struct("=IIQQIIII")
_RECORD = struct.Struct("=cBQI")  # kind, image, offset, count; then the bytes of a write
_LOOKUP, _FORGET, _GETATTR, _SETATTR = 1, 2, 3, 4
_OPEN, _READ, _WRITE, _STATFS, _RELEASE, _FSYNC = 14, 15, 16, 17, 18, 20
_FLUSH, _INIT, _INTERRUPT, _DESTROY, _FORGETS = 25, 26, 36, 38, 42
_SILENT = frozenset({_FORGET, _FORGETS, _INTERRUPT})
_FIRST = 2  # the node of the first image
_PATIENCE = 20.0  # seconds


@dataclass(frozen=True)
class Step:
    """A write to an image, or (`data` is None) a flush of it."""

    image: int
    offset: int = 0
    data: bytes | None = None


class Recorder:
    """The images as files, and what has happened to them."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder
        self._log = log

    @property
    def position(self) -> int:
        """How much of the log there is."""
        return self._log.stat().st_size

    def steps(self, start: int, end: int) -> list[Step]:
        """The steps between two positions."""
        with open(self._log, "rb") as file:
            file.seek(start)
            data = file.read(end - start)
        steps, here = [], 0
        while here < len(data):
            kind, image, offset, count = _RECORD.unpack_from(data, here)
            here += _RECORD.size
            if kind == b"F":
                steps.append(Step(image))
            else:
                steps.append(Step(image, offset, data[here : here + count]))
                here += count
        return steps

    def fail(self, errno: int) -> None:
        """From here on every write fails so; 0: no more."""
        failing = self._log.with_suffix(".fail")
        if errno:
            failing.with_suffix(".new").write_text(str(errno))
            failing.with_suffix(".new").rename(failing)
        else:
            failing.unlink(missing_ok=True)


@contextmanager
def recorded(folder: Path, log: Path, images: list[Path]) -> Iterator[Recorder]:
    """Serve the images as `folder`/0, /1, …"""
    folder.mkdir()
    log.touch()
    command = [sys.executable, "-m", "tests.support.recorder", str(folder), str(log)]
    server = subprocess.Popen(
        [*command, *map(str, images)], cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + _PATIENCE
        while not os.path.ismount(folder):
            assert time.monotonic() < deadline, "the recorder does not start"
            assert server.poll() is None
            time.sleep(0.01)
        yield Recorder(folder, log)
    finally:
        run("umount", "--lazy", str(folder))
        try:
            server.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def power_cut(originals: list[Path], copies: list[Path], steps: list[Step]) -> None:
    """Make `copies` what the disks hold after these steps."""
    for original, copy in zip(originals, copies, strict=True):
        run("cp", "--sparse=always", str(original), str(copy), patience=60)
    fds = [os.open(copy, os.O_RDWR) for copy in copies]
    for step in steps:
        if step.data is not None:
            os.pwrite(fds[step.image], step.data, step.offset)
    for fd in fds:
        os.close(fd)


class _Server:
    """The process that serves."""

    def __init__(self, log: str, images: list[str]) -> None:
        self._fds = [os.open(image, os.O_RDWR) for image in images]
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND)
        self._failing = str(Path(log).with_suffix(".fail"))

    def run(self, folder: str) -> None:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
        command = ["mount", "-i", "-t", "fuse", "-o", options, "recorder", folder]
        subprocess.run(command, check=True, pass_fds=[fuse], timeout=_PATIENCE)
        while True:
            try:
                request = os.read(fuse, 1 << 20)
            except OSError as error:
                if error.errno == ENOENT:  # it was taken back
                    continue
                return  # unmounted
            _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
            if opcode in _SILENT:
                continue
            body: bytes | int = -ENOSYS
            try:
                body = self._answer(opcode, node, memoryview(request)[_HEADER.size :])
            except OSError as error:
                body = -(error.errno or EIO)
            number, data = (body, b"") if isinstance(body, int) else (0, body)
            os.write(fuse, struct.pack("=IiQ", 16 + len(data), number, unique) + data)

    def _answer(self, opcode: int, node: int, rest: memoryview) -> bytes | int:
        image = node - _FIRST
        if opcode == _INIT:
            return struct.pack("=IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 0, 0, 0)
        if opcode == _STATFS:
            return struct.pack("=QQQQQIIII24x", 100, 50, 50, 10, 5, 4096, 255, 4096, 0)
        if opcode in (_GETATTR, _SETATTR):
            return struct.pack("=QII", 0, 0, 0) + self._attributes(node)
        if opcode == _OPEN:
            return struct.pack("=QII", image, 0, 0)
        if opcode in (_FLUSH, _RELEASE, _DESTROY):
            return b""
        return self._about_contents(opcode, image, rest)

    def _about_contents(self, opcode: int, image: int, rest: memoryview) -> bytes | int:
        if opcode == _LOOKUP:
            name = bytes(rest).rstrip(b"\0")
            if not name.isdigit() or int(name) >= len(self._fds):
                return -ENOENT
            found = _FIRST + int(name)
            return struct.pack("=QQQQII", found, 0, 0, 0, 0, 0) + self._attributes(found)
        if opcode == _READ:
            _, offset, size = struct.unpack_from("=QQI", rest)
            return os.pread(self._fds[image], size, offset)
        if opcode == _WRITE:
            return self._write(image, rest)
        if opcode == _FSYNC:
            os.write(self._log, _RECORD.pack(b"F", image, 0, 0))
            return b""
        return -ENOSYS

    def _write(self, image: int, rest: memoryview) -> bytes | int:
        _, offset, size = struct.unpack_from("=QQI", rest)
        if os.path.exists(self._failing):
            return -int(Path(self._failing).read_text())
        data = rest[40 : 40 + size]
        os.pwrite(self._fds[image], data, offset)
        os.writev(self._log, [_RECORD.pack(b"W", image, offset, size), data])
        return struct.pack("=II", size, 0)

    def _attributes(self, node: int) -> bytes:
        size, mode = 0, stat.S_IFDIR | 0o755
        if node >= _FIRST:
            size, mode = os.fstat(self._fds[node - _FIRST]).st_size, stat.S_IFREG | 0o600
        return struct.pack(
            "=6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
        )


if __name__ == "__main__":
    where, record, *served = sys.argv[1:]
    _Server(record, served).run(where)
