"""Which folders the programs of users wait for changes in, as the kernel tells: proc_pid_fdinfo(5), inotify.

Looking at a program's descriptors touches none of its files, so no mount that hangs can hold it up.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Collection, Iterator

_INSTANCE = "anon_inode:inotify"
_TIME = 0.25  # seconds
_READ = 1 << 20  # bytes read of one inotify instance: about 9000 watches, the newest ones
_AT_ONCE = 1 << 16  # bytes read before others in this process get their turn


def listened(uids: Collection[int], device: int) -> set[int]:
    """The inode numbers that programs of these users, other than this one, watch on `device` (st_dev).

    Only of what this thread may look at: others' programs need their user's identity, or CAP_SYS_PTRACE.
    After `_TIME` it answers what it has found so far, but for what the kernel takes to list the watches of
    one instance: some 3 µs each, of all that it has.
    """
    deadline = time.monotonic() + _TIME
    # The kernel's own encoding of a device number, which is not that of stat(2).
    number = os.major(device) << 20 | os.minor(device)
    watch = re.compile(rb"^inotify wd:[0-9a-f]+ ino:([0-9a-f]+) sdev:%x " % number, re.MULTILINE)
    found: set[int] = set()
    for pid in _programs(uids):
        for instance in _instances(pid):
            if instance is not None:
                with contextlib.suppress(OSError):
                    for lines in _lines(instance):
                        found.update(int(inode, 16) for inode in watch.findall(lines))
            if time.monotonic() > deadline:
                return found
    return found


def _programs(uids: Collection[int]) -> list[str]:
    """The processes that belong to these users, in any order: time is not always short for the same."""
    own = str(os.getpid())
    pids = []
    with contextlib.suppress(OSError), os.scandir("/proc") as processes:
        for process in processes:
            if process.name.isdecimal() and process.name != own:
                with contextlib.suppress(OSError):  # it has ended
                    if process.stat().st_uid in uids:
                        pids.append(process.name)
    random.shuffle(pids)
    return pids


def _instances(pid: str) -> Iterator[str | None]:
    """For each descriptor of a process: where the kernel tells about it if it is an inotify instance."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
        for descriptor in descriptors:
            target = ""
            with contextlib.suppress(OSError):  # it was closed meanwhile
                target = os.readlink(descriptor.path)
            yield f"/proc/{pid}/fdinfo/{descriptor.name}" if target == _INSTANCE else None


def _lines(path: str) -> Iterator[bytes]:
    """The whole lines of the first `_READ` bytes of a file, some at a time."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rest, left = b"", _READ
        while left > 0:
            data = os.read(file, min(left, _AT_ONCE))
            if not data:
                return
            left -= len(data)
            whole, end, begun = (rest + data).rpartition(b"\n")
            yield whole + end
            rest = begun
    finally:
        os.close(file)
