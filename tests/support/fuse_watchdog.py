"""Frees a test that hangs in a FUSE call, which no signal can.

A process that waits for a FUSE server's answer cannot be killed once the server has taken the
request. Aborting the connection ends the wait with ECONNABORTED. This runs as a process of its own,
since a thread of the waiting one may not get the interpreter back. Lines on standard input:

    start SECONDS NAME    a test began; unless `stop` comes within SECONDS, free it
    stop                  it ended

Standard input's end is the end of the run. Overdue, it takes the next harsher step every `GRACE`
seconds: abort the FUSE connections made since `start`; kill what the run started; kill the run.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tests.support.run_marker import MARKER, fuse_connections, started_processes

GRACE = 10.0  # seconds from one step to the next

_ABORT = """
[ -e /sys/fs/fuse/connections/$1 ] || mount -t fusectl none /sys/fs/fuse/connections
echo 1 >/sys/fs/fuse/connections/$1/abort
"""


def abort_connection(number: int) -> None:
    """Abort a FUSE connection. Mounts fusectl, where it is not, in a namespace nobody else sees."""
    script = ["sh", "-c", _ABORT, "sh", str(number)]
    if os.geteuid() == 0:
        script = ["unshare", "--mount", "--propagation", "private", *script]
    subprocess.run(script, check=False, timeout=GRACE, stderr=subprocess.DEVNULL)


class Watchdog:
    """The steps against one hanging test. `run_pid` is pytest's process."""

    def __init__(self, run_pid: int, run_name: str) -> None:
        self.run_pid = run_pid
        self.run_name = run_name
        self.test = ""
        self.deadline: float | None = None
        self.before: set[int] = set()
        self.steps: list[Callable[[], None]] = []

    def start(self, seconds: float, test: str) -> None:
        self.test = test
        self.deadline = time.monotonic() + seconds
        self.before = fuse_connections([self.run_pid])
        self.steps = [self.abort, self.kill_started, self.kill_run]

    def stop(self) -> None:
        self.deadline = None

    def remaining(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def overdue(self) -> None:
        if self.steps:
            self.steps.pop(0)()
        self.deadline = time.monotonic() + GRACE if self.steps else None

    def others(self) -> list[int]:
        return [p for p in started_processes(self.run_name) if p not in (self.run_pid, os.getpid())]

    def abort(self) -> None:
        for number in sorted(fuse_connections([self.run_pid, *self.others()]) - self.before):
            self.say(f"aborting FUSE connection {number}")
            with contextlib.suppress(subprocess.SubprocessError):
                abort_connection(number)

    def kill_started(self) -> None:
        for pid in self.others():
            self.say(f"killing process {pid}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_run(self) -> None:
        self.say("killing the test run")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.run_pid, signal.SIGKILL)

    def say(self, message: str) -> None:
        sys.stderr.write(f"\nwatchdog: {self.test} hangs: {message}\n")
        sys.stderr.flush()


def main() -> None:
    """Serve the run whose process is the parent."""
    watchdog = Watchdog(os.getppid(), os.environ[MARKER])
    buffer = b""
    while True:
        if not select.select([0], [], [], watchdog.remaining())[0]:
            watchdog.overdue()
            continue
        data = os.read(0, 65536)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "start":
                seconds, _, test = rest.partition(" ")
                watchdog.start(float(seconds), test)
            else:
                watchdog.stop()


if __name__ == "__main__":
    main()
