"""Find what a test run started, wherever it went.

A daemon forks twice and becomes a child of process 1, so parentage finds nothing. Every process
that the run starts inherits `MARKER` in its environment instead, and /proc shows it.
"""

from __future__ import annotations

import os

MARKER = "SESSION_AGENT_TEST_RUN"

# Set by `./dev test` where the run has these to itself, in a namespace.
OWN_MOUNTS = "SESSION_AGENT_TEST_OWN_MOUNTS"
OWN_PROCESSES = "SESSION_AGENT_TEST_OWN_PROCESSES"


def started_processes(value: str) -> dict[int, str]:
    """Every live process, but zombies, of the run whose MARKER is `value`: pid -> command line.

    Only processes that the caller may inspect are seen: its own user's, or as root all of them.
    Where `./dev test` gave the run a process namespace, all in it but process 1 are the run's.
    """
    wanted = f"{MARKER}={value}".encode()
    all_ours = OWN_PROCESSES in os.environ
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        # A zombie reads as empty, and so does a process that ends between two reads.
        command = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")
        marked = wanted in _read(f"/proc/{pid}/environ").split(b"\0")
        if command and (marked or (all_ours and pid != 1)):
            found[pid] = command.strip()
    return found


def fuse_connections(pids: list[int]) -> set[int]:
    """The FUSE connections mounted in the mount namespaces of `pids`.

    A connection is called by its mount's device minor: fs/fuse/inode.c, `fuse_conn_init`, and
    Documentation/filesystems/fuse.rst. Only mounts are asked, because the files in
    /sys/fs/fuse/connections are those of the whole machine.
    """
    found = set()
    for pid in pids:
        for line in _read(f"/proc/{pid}/mountinfo").splitlines():
            fields, _, rest = line.partition(b" - ")
            if rest.startswith((b"fuse.", b"fuse ")):
                found.add(int(fields.split()[2].partition(b":")[2]))
    return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
