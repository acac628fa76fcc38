"""A cloud drive: rclone's WebDAV server, which tells what it is asked for, and rclone mounts of it.

As in storage, everything is a context manager, unmounts whatever happened to it and ends only processes that
it started. Unlike there, the server sees at once what happens in its folder, and a mount can be told how
long it may trust what it knows and whether it keeps what is written for a while.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.support.storage import is_rclone, run, start_rclone, wait_until

_LIFE = 200.0  # seconds, after which calls into a mount that is still there return
_PATIENCE = 20.0  # seconds for a process to end
_ASKED = re.compile(rb"INFO +: (.*): ([A-Z]+) from ")


class Request(NamedTuple):
    """What the server was asked for. `at`: time.monotonic(), when its log told so."""

    at: float
    verb: str
    path: str


@dataclass
class Cloud:
    """The running server. `behind`: the folder that it serves."""

    behind: Path
    process: subprocess.Popen[bytes]
    address: str = ""
    requests: list[Request] = field(default_factory=list)

    def asked(self, *verbs: str, since: float = 0.0) -> list[Request]:
        """The requests of these kinds since then (time.monotonic())."""
        return [one for one in list(self.requests) if one.verb in verbs and one.at >= since]

    def listen(self) -> None:
        """Read the log to its end: else the server would stop once the pipe is full."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if not self.address and (found := re.search(rb"http://127\.0\.0\.1:\d+", line)):
                self.address = found[0].decode()
            if asked := _ASKED.search(line):
                path, verb = (part.decode(errors="surrogateescape") for part in asked.groups())
                self.requests.append(Request(time.monotonic(), verb, path))


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The server, or the mount's process, does nothing within the block."""
    os.kill(process.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{process.pid}/stat")
    try:
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "stopped")
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@contextlib.contextmanager
def cloud(behind: Path) -> Iterator[Cloud]:
    """A server of the folder `behind`, which is made if it is not there."""
    behind.mkdir(parents=True, exist_ok=True)
    options = ["--addr", "127.0.0.1:0", "--dir-cache-time", "1ms", "--poll-interval", "0", "-v"]
    process = start_rclone(["serve", "webdav", str(behind), *options], stderr=subprocess.PIPE)
    server = Cloud(behind, process)
    listener = threading.Thread(target=server.listen)
    listener.start()
    try:
        wait_until(lambda: bool(server.address) or process.poll() is not None, "WebDAV server")
        assert server.address, "rclone serve webdav ended"
        yield server
    finally:
        process.kill()  # one that was stopped dies of it too
        process.wait(_PATIENCE)
        listener.join(_PATIENCE)
        assert process.stderr is not None
        process.stderr.close()


@contextlib.contextmanager
def drive(
    server: Cloud,
    path: Path,
    *,
    dir_cache: str = "500ms",
    writes: bool = False,
    upload_after: str = "5s",
) -> Iterator[subprocess.Popen[bytes]]:
    """The server's folder, mounted by rclone at `path`; its process.

    `dir_cache`: how long it trusts a listing (--dir-cache-time). With `writes`
    what is written is kept, and sent to the server so long after (--vfs-cache-mode writes, --vfs-write-back).
    """
    path.mkdir(parents=True, exist_ok=True)
    cache = path.with_name(f"{path.name}-cache")
    options = ["--allow-other", "--dir-cache-time", dir_cache, "--cache-dir", str(cache)]
    mode = "writes" if writes else "off"
    options += ["--vfs-cache-mode", mode, "--vfs-write-back", upload_after]
    config = {"TYPE": "webdav", "URL": server.address, "VENDOR": "nextcloud"}
    environment = {f"RCLONE_CONFIG_CLOUD_{key}": value for key, value in config.items()}
    process = start_rclone(["mount", "cloud:", str(path), *options], environment=environment)
    killer = threading.Timer(_LIFE, process.kill)
    killer.daemon = True
    killer.start()
    try:
        wait_until(lambda: is_rclone(path) or process.poll() is not None, f"mount at {path}")
        assert process.poll() is None, "rclone mount ended"
        yield process
    finally:
        killer.cancel()
        process.kill()
        process.wait(_PATIENCE)
        with contextlib.suppress(RuntimeError):  # not mounted, if it never came up
            run("umount", "--lazy", str(path))
