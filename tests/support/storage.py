"""Real storage to test on: tmpfs, bind mounts, and rclone with its own WebDAV server.

Everything is a context manager, unmounts whatever happened to it, and ends only processes that it
started. A test that hangs in an rclone mount is freed: rclone is killed after `RCLONE_LIFE`
seconds, and with its server gone every call into a FUSE mount returns.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from session_agent.mounts import mountinfo

RCLONE_LIFE = 60.0  # seconds
_START = 20.0  # seconds that a server or a mount may take to come up
_PATIENCE = 20.0  # seconds for mount and umount


@contextlib.contextmanager
def tmpfs(path: Path, *, size: str = "16m") -> Iterator[Path]:
    """A tmpfs at `path`, which is made if it is not there."""
    with _mounted(path, "-t", "tmpfs", "-o", f"size={size}", "session-agent-test"):
        yield path


@contextlib.contextmanager
def bind(source: Path, path: Path, *, read_only: bool = False) -> Iterator[Path]:
    """The folder or file `source` a second time at `path`."""
    if source.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with _mounted(path, "--bind", str(source)):
        if read_only:
            run("mount", "-o", "remount,bind,ro", str(path))
        yield path


@contextlib.contextmanager
def _mounted(path: Path, *arguments: str) -> Iterator[None]:
    if not path.exists():
        path.mkdir(parents=True)
    run("mount", *arguments, str(path))
    try:
        yield
    finally:
        run("umount", "--lazy", str(path))


def run(*command: str, patience: float = _PATIENCE) -> None:
    """Run a command; RuntimeError with what it said if it fails. `patience` is in seconds."""
    done = subprocess.run(command, check=False, timeout=patience, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


@dataclass(frozen=True)
class RcloneMount:
    """An rclone mount of a WebDAV server that serves the folder `behind`."""

    path: Path
    behind: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """From here on the mount hangs, until `resume`."""
        os.kill(self.process.pid, signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", "rclone stopped")

    def resume(self) -> None:
        """Undo `stop`."""
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """From here on the mount is dead: ENOTCONN."""
        self.process.kill()
        self.process.wait(_PATIENCE)

    def _state(self) -> str:
        status = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
        return status.rpartition(")")[2].split()[0]


@contextlib.contextmanager
def rclone(
    behind: Path, path: Path, *, remote: str = "cloud", bandwidth: str = "off"
) -> Iterator[RcloneMount]:
    """`behind`, served by `rclone serve webdav` on 127.0.0.1 and mounted at `path`.

    The options are those of the rclone volume plugin as Kasm's documentation sets it up. Both
    folders are made if they are not there. `bandwidth` is rclone's --bwlimit, such as 1M a second.
    """
    behind.mkdir(parents=True, exist_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    with _webdav_server(behind) as address:
        config = {
            "TYPE": "webdav",
            "URL": address,
            "VENDOR": "nextcloud",
        }
        environment = {f"RCLONE_CONFIG_{remote.upper()}_{key}": config[key] for key in config}
        options = "--allow-other --uid 1000 --gid 1000 --vfs-cache-mode off --dir-cache-time 10s"
        process = start_rclone(
            ["mount", f"{remote}:", str(path), "--bwlimit", bandwidth, *options.split()],
            environment=environment,
        )
        killer = threading.Timer(RCLONE_LIFE, process.kill)
        killer.daemon = True
        killer.start()
        try:
            wait_until(lambda: is_rclone(path) or process.poll() is not None, f"mount at {path}")
            if process.poll() is not None:
                raise RuntimeError(f"rclone mount ended with {process.returncode}")
            yield RcloneMount(path, behind, process)
        finally:
            killer.cancel()
            process.kill()  # a stopped process dies of it too
            process.wait(_PATIENCE)
            with contextlib.suppress(RuntimeError):  # not mounted, if it never came up
                run("umount", "--lazy", str(path))


@contextlib.contextmanager
def _webdav_server(folder: Path) -> Iterator[str]:
    process = start_rclone(
        ["serve", "webdav", str(folder), "--addr", "127.0.0.1:0"], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    addresses: list[str] = []

    def listen() -> None:
        # To the end, or rclone would stop once the pipe is full.
        for line in process.stderr or ():
            addresses.extend(re.findall(r"http://127\.0\.0\.1:\d+", line.decode(errors="replace")))

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        wait_until(lambda: bool(addresses) or process.poll() is not None, "WebDAV server")
        if not addresses:
            raise RuntimeError("rclone serve webdav ended")
        yield addresses[0]
    finally:
        process.kill()
        process.wait(_PATIENCE)
        listener.join(_PATIENCE)
        process.stderr.close()


def start_rclone(
    arguments: list[str], *, environment: dict[str, str] | None = None, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """rclone with these arguments, without a configuration file."""
    # --pdeathsig, so that nothing is left running by a test run that was killed.
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "rclone", "--config", os.devnull, *arguments],
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if stderr is None else stderr,
    )


def is_rclone(path: Path) -> bool:
    """Whether rclone is mounted there."""
    real = os.path.realpath(path.parent) + "/" + path.name
    return any(entry.path == real and entry.fstype == "fuse.rclone" for entry in mountinfo.read())


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """TimeoutError if the condition does not come true in time."""
    deadline = time.monotonic() + _START
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {_START} s")
        time.sleep(0.02)
