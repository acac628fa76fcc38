"""The demo's storage: what a Kasm session's storage mappings look like, made of real parts.

Everything is mounted in this process's mount namespace, which `./dev demo` made for it alone, and
taken down again in reverse order.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

USER = 1000  # kasm-user's number in every Kasm image
_READY = 10.0  # seconds for a server or a mount to appear


class Storage:
    """Storage of one session below `ground`, as a context manager.

    Bind mounts of one file system: vault/engineering, vault/marketing, and vault/wiki read-only.
    Another file system: archive. A cloud drive through rclone, where FUSE can be used: gdrive.
    `notes` tells what could not be made, and why.
    """

    def __init__(self) -> None:
        self.ground = _ground()
        self.vault = self.ground / "vault"
        self.home = self.ground / "home/kasm-user"
        self.config = self.ground / "config.yaml"
        self.scratch = self.ground
        self.has_fuse = _has_fuse()
        self.has_drive = False
        self.notes: list[str] = []
        self._undo = ExitStack()

    def __enter__(self) -> Storage:
        with ExitStack() as undo:
            foreign = _mount_points()
            self._undo = undo
            self._lay_ground()
            self._write_config(foreign)
            self._bind("engineering")
            self._bind("marketing")
            self._bind("wiki", "ro")
            self._mount_archive()
            self._mount_drive()
            self._undo = undo.pop_all()  # from here on, __exit__ takes it down
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _lay_ground(self) -> None:
        """A scratch folder on the machine's disk, shown at a short path that users can read."""
        self.scratch = Path(tempfile.mkdtemp(prefix="session-agent-demo.", dir="/var/tmp"))
        self._undo.callback(shutil.rmtree, self.scratch)
        self.scratch.chmod(0o755)
        self._mount("--bind", self.scratch, self.ground)
        for folder in (self.vault, self.home):
            folder.mkdir(parents=True)
        os.chown(self.vault, USER, USER)
        os.chown(self.home, USER, USER)

    def _write_config(self, foreign: set[str]) -> None:
        """A container has no mounts but the session's. This machine's own are left out by name."""
        lines = "".join(
            f"    - '{path}'\n" for path in sorted({*foreign, str(self.ground)} - {"/"})
        )
        self.config.write_text(
            f"vault: {self.vault}\nmounts:\n  exclude:\n{lines}", encoding="utf-8"
        )

    def _bind(self, name: str, mode: str = "rw") -> None:
        source, target = self.ground / "host" / name, self.vault / name
        _fill(source, name)
        target.mkdir()
        self._mount("--bind", source, target)
        if mode == "ro":
            _run("mount", "-o", "remount,bind,ro", target)

    def _mount_archive(self) -> None:
        target = self.ground / "archive"
        target.mkdir()
        image = self.ground / "archive.xfs"
        with image.open("wb") as file:
            file.truncate(512 << 20)  # sparse
        try:
            _run("mkfs.xfs", "-q", image)
            self._mount("-o", "loop", image, target)
        except (OSError, subprocess.CalledProcessError):
            self.notes.append("No xfs in a loop device here: the other file system is a tmpfs.")
            self._mount("-t", "tmpfs", "tmpfs", target)
        _fill(target, "archive")

    def _mount_drive(self) -> None:
        if not self.has_fuse or shutil.which("rclone") is None:
            missing = "rclone" if self.has_fuse else "/dev/fuse"
            self.notes.append(f"No {missing} here: the demo goes without a cloud drive.")
            return
        source, target = self.ground / "cloud", self.ground / "gdrive"
        _fill(source, "gdrive")
        target.mkdir()
        port = _free_port()
        address = f"127.0.0.1:{port}"
        self._serve("rclone", "serve", "webdav", source, "--addr", address, "--config", os.devnull)
        _wait(lambda: _answers(port))
        config = self.ground / "rclone.conf"
        config.write_text(
            f"[gdrive]\ntype = webdav\nurl = http://{address}\nvendor = nextcloud\n",
            encoding="utf-8",
        )
        # As Kasm's volume plugin mounts it.
        self._serve(
            *("rclone", "mount", "gdrive:", target, "--config", config, "--allow-other"),
            *("--uid", USER, "--gid", USER, "--vfs-cache-mode", "off", "--dir-cache-time", "10s"),
        )
        _wait(lambda: str(target) in _mount_points())
        self._undo.callback(_unmount, target)
        self.has_drive = True

    def _mount(self, *arguments: object) -> None:
        _run("mount", *arguments)
        self._undo.callback(_unmount, arguments[-1])

    def _serve(self, *command: object) -> None:
        server = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._undo.callback(_end, server)


def left_behind(storage: Storage) -> list[str]:
    """What is still there after the storage was taken down: mounts, processes, files."""
    mounts = [path for path in _mount_points() if path.startswith(str(storage.ground))]
    ours = os.stat("/proc/self/ns/mnt").st_ino
    processes = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it may end meanwhile
            if os.stat(f"/proc/{name}/ns/mnt").st_ino == ours:
                processes.append(int(name))
    started = [f"process {pid}" for pid in processes if pid not in (os.getpid(), os.getppid())]
    files = [str(storage.scratch)] if storage.scratch.exists() else []
    return mounts + started + files


def _ground() -> Path:
    """A folder that every Debian has and that hides nothing this program needs."""
    needed = [Path(sys.prefix), Path(sys.base_prefix), Path.cwd()]
    for name in ("/srv", "/media", "/opt"):
        if Path(name).is_dir() and not any(path.is_relative_to(name) for path in needed):
            return Path(name)
    raise SystemExit("demo: none of /srv, /media and /opt is free to mount on.")


def _fill(folder: Path, name: str) -> None:
    """Notes in folders, an attachment of some size, all of it the session user's."""
    (folder / "plans/2031").mkdir(parents=True)
    (folder / "README.md").write_text(f"# {name}\n", encoding="utf-8")
    (folder / "plans/launch.md").write_text(
        f"Launch of {name}: [[README]]\n" * 50, encoding="utf-8"
    )
    (folder / "plans/2031/numbers.csv").write_text("1;2;3\n" * 1000, encoding="utf-8")
    (folder / "plans/film.bin").write_bytes(os.urandom(4 << 20))
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, USER, USER)


def _has_fuse() -> bool:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _mount_points() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return {line.split()[4] for line in lines}


def _run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def _unmount(path: object) -> None:
    subprocess.run(["umount", str(path)], check=False, capture_output=True)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=_READY)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _READY
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("demo: rclone did not start in time.")
        time.sleep(0.05)
