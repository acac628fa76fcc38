"""What is compared: a plain folder, the vault, and the union file systems that Debian ships.

Each shows the same backing directory. Nothing here calls into a FUSE mount itself: a call that
hangs cannot be killed, so every one is made by a child, and ending the mount's server frees it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.failure import Failure

BRANCH = "notes"  # the folder of the backing directory in which everything happens

NATIVE = "native"
VAULT = "vault"

# What each peer's manual page says for files that are read more than once and that may also change
# behind the mount, so nothing that trusts the kernel's cache blindly (`kernel_cache`,
# `cache.writeback`, long timeouts). The timeouts are the vault's.
#
# mergerfs.1, "caching": auto-full keeps pages while mtime and size are the same, cache.readdir
# "can have a significant impact"; use_ino "Suggested". dropcacheonclose would make it read the disk
# again; minfreespace is no cache, but its default refuses writes on a disk with less than 4 GiB.
# The others are libfuse 2's: auto_cache is what auto-full is, big_writes lifts writes above 4 KiB.
PEERS = {
    "mergerfs": (
        "allow_other,use_ino,category.create=ff,minfreespace=0,"
        "cache.files=auto-full,dropcacheonclose=false,cache.readdir=true,"
        "cache.entry=1,cache.attr=1,cache.negative_entry=1"
    ),
    "bindfs": "auto_cache,big_writes,entry_timeout=1,attr_timeout=1,negative_timeout=1",
    "unionfs": (
        "allow_other,use_ino,auto_cache,big_writes,"
        "entry_timeout=1,attr_timeout=1,negative_timeout=1"
    ),
}
FUSE_CONTENDERS = (VAULT, *PEERS)

_READY = 20.0  # seconds for a mount to appear
_END = 5.0  # seconds for a server to end after its mount is gone
_SCHEDULED = 2  # CPUCLOCK_SCHED of the kernel's posix-timers.h


# On which processors the servers and the programs run: as the scheduler likes, or always in the same way.
PLACEMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "free": ((), ()),
    "together": (("taskset", "--cpu-list", "0"), ("taskset", "--cpu-list", "0")),
    "apart": (("taskset", "--cpu-list", "0"), ("taskset", "--cpu-list", "1")),
}


class Contender:
    """One of the file systems compared. This one is the plain folder.

    `folder` is the branch as this contender shows it.
    """

    def __init__(self, name: str, folder: Path, placement: str = "free") -> None:
        self.name = name
        self.folder = folder
        self._place_server, self._place_program = PLACEMENTS[placement]

    def start(self) -> None:
        """Make the folder usable. Failure if that cannot be."""

    def stop(self) -> None:
        """Undo `start`, in whatever state it is."""

    def abandon(self) -> None:
        """Free a call that hangs."""

    def pids(self) -> list[int]:
        """The processes that serve it."""
        return []

    def cpu_seconds(self) -> float:
        """What its servers have used, user and system, since they started."""
        return 0.0

    def run(self, command: Sequence[str], time_limit: float) -> str:
        """The standard output of a command that may touch the folder. Failure unless it ends well."""
        child = subprocess.Popen(
            [*self._place_program, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=ENVIRONMENT,
        )
        try:
            output, problem = child.communicate(timeout=time_limit)
        except subprocess.TimeoutExpired:
            child.kill()
            self.abandon()  # only that ends a child that waits for the server
            child.communicate()
            raise Failure(
                f"{Path(command[0]).name} did not end within {time_limit:.0f} s"
            ) from None
        except BaseException:
            child.kill()
            self.abandon()
            child.communicate()
            raise
        if child.returncode:
            lines = problem.strip().splitlines() or [f"ended with {child.returncode}"]
            raise Failure(lines[-1])
        return output


# Nothing of the user's own configuration: git's and ripgrep's speed would depend on it.
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LC_ALL": "C.UTF-8",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
}


class Served(Contender):
    """A FUSE mount whose server stays in the foreground: `command`, run in `directory`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        mountpoint: Path,
        log: Path,
        directory: Path,
        placement: str = "free",
    ) -> None:
        super().__init__(name, mountpoint / BRANCH, placement)
        self._command = command
        self._mountpoint = mountpoint
        self._log = log
        self._directory = directory
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Failure if its program is missing, or the mount does not appear."""
        if shutil.which(self._command[0]) is None:
            raise Failure(f"{self._command[0]} is not installed")
        self._mountpoint.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                [*self._place_server, *self._command],
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _READY
        while str(self._mountpoint) not in mount_points():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Failure(self._last_words() or "its mount did not appear")
            time.sleep(0.02)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def stop(self) -> None:
        """Unmount, and see the server end."""
        for options in ([], ["--lazy"]):
            if str(self._mountpoint) in mount_points():
                subprocess.run(
                    ["umount", *options, str(self._mountpoint)],
                    check=False,
                    stderr=subprocess.DEVNULL,
                )
        if self._server is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(_END)
            self.abandon()

    def abandon(self) -> None:
        """Kill the server: the kernel then answers ENOTCONN to whoever waits for it."""
        if self._server is not None:
            for pid in self.pids()[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._server.kill()
            self._server.wait()
            self._server = None

    def pids(self) -> list[int]:
        """The server and its descendants."""
        if self._server is None or self._server.poll() is not None:
            return []
        return [self._server.pid, *_descendants(self._server.pid)]

    def cpu_seconds(self) -> float:
        """To the nanosecond: the CPU clock of each process, as clock_getcpuclockid(3) encodes it.

        Failure if there is no server.
        """
        pids = self.pids()
        if not pids:
            raise Failure("its server has ended")
        return sum(time.clock_gettime(~pid << 3 | _SCHEDULED) for pid in pids)


def contender(name: str, ground: Path, placement: str = "free") -> Contender:
    """The contender called `name`, on the backing directory `ground`/backing."""
    backing = ground / "backing"
    if name == NATIVE:
        return Contender(name, backing / BRANCH, placement)
    mountpoint = ground / "shown" / name
    log = ground / f"{name}.log"
    if name == VAULT:
        command = [
            *(sys.executable, "-m", "bench.vault_server"),
            *(str(mountpoint), str(ground / "root"), f"{BRANCH}={backing / BRANCH}"),
        ]
        return Served(name, command, mountpoint, log, Path(__file__).parents[1], placement)
    source = f"{backing}=RW" if name == "unionfs" else str(backing)
    command = [name, "-f", "-o", PEERS[name], source, str(mountpoint)]
    return Served(name, command, mountpoint, log, ground, placement)


def settle(contenders: Iterable[Contender], quiet: float = 0.02, time_limit: float = 5.0) -> None:
    """Wait until no server has used the CPU for `quiet` seconds, at most `time_limit`.

    The kernel sends RELEASE and FORGET after the call that causes them has returned.
    """
    deadline = time.monotonic() + time_limit
    serving = [contender for contender in contenders if contender.pids()]
    before = -1.0
    while time.monotonic() < deadline:
        now = sum(contender.cpu_seconds() for contender in serving)
        if now == before:
            return
        before = now
        time.sleep(quiet)


def mount_points() -> set[str]:
    """Where something is mounted in this process's mount namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="backslashreplace") as lines:
        return {line.split()[4] for line in lines}


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
            parents.setdefault(parent, []).append(int(name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found
