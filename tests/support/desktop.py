"""A desktop for the tests: a real X server, a real session bus, and what runs on them."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.run_marker import MARKER

_START = 20.0  # seconds

_BARE = """<busconfig><type>session</type><listen>unix:tmpdir=/tmp</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
</policy></busconfig>"""  # starts no services
_NOTIFIER = Path(__file__).with_name("notifier.py")


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = _START) -> None:
    """Wait, and say what for if it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


@contextlib.contextmanager
def process(
    command: Sequence[str | Path],
    *,
    environment: dict[str, str],
    uid: int | None = None,
    pass_fds: Sequence[int] = (),
    log: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """`command`, as the user `uid`, until the block ends. Nothing of it outlives the test run."""
    words = ["setpriv", "--pdeathsig", "KILL"]
    if uid is not None:
        words += [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    with contextlib.ExitStack() as stack:
        output = subprocess.DEVNULL if log is None else stack.enter_context(log.open("ab"))
        started = subprocess.Popen(
            [*words, *command],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
        )
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(5.0)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait(5.0)


@dataclass(frozen=True)
class Bus:
    """A session bus that belongs to `uid`."""

    address: str
    uid: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def run(self, *command: str | Path) -> str:
        """What `command` prints, run by the user in the desktop's environment; it must succeed."""
        drop = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        done = subprocess.run(
            [*drop, *command],
            env=self.environment,
            cwd="/",
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=_START,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def emblems(self, path: Path) -> set[str]:
        """The emblems of `path`."""
        found = re.search(r"metadata::emblems: \[(.*)\]", self.run("gio", "info", path))
        return set(found[1].split(", ")) if found else set()

    @contextlib.contextmanager
    def stand_in(self, name: str = "xfce4-session") -> Iterator[subprocess.Popen[bytes]]:
        """A process of that name with the desktop's environment, as a session manager has it."""
        # What the kernel calls a process is its program's file name.
        program = Path(self.environment["XDG_RUNTIME_DIR"], name)
        shutil.copy("/usr/bin/sleep", program)
        with process([program, "infinity"], environment=self.environment, uid=self.uid) as started:
            comm = Path(f"/proc/{started.pid}/comm")
            wait_until(lambda: comm.read_text().strip() == name[:15], name)
            yield started


@contextlib.contextmanager
def session_bus(
    home: Path, uid: int, *, display: str = ":1", services: bool = True
) -> Iterator[Bus]:
    """A dbus-daemon of the user `uid`, whose home is `home`; it starts `services` when they are used."""
    runtime = Path(tempfile.mkdtemp(prefix="session-agent-bus-"))
    os.chown(runtime, uid, uid)
    environment = desktop_environment(home, runtime, display)
    reading, writing = os.pipe()
    config = "--session"
    if not services:
        (runtime / "bus.conf").write_text(_BARE)
        (runtime / "bus.conf").chmod(0o644)
        config = f"--config-file={runtime}/bus.conf"
    command = ["dbus-daemon", config, "--nofork", "--nopidfile", f"--print-address={writing}"]
    try:
        with process(command, environment=environment, uid=uid, pass_fds=[writing]) as daemon:
            os.close(writing)
            ready, _, _ = select.select([reading], [], [], _START)
            assert ready, "dbus-daemon gave no address"
            address = os.read(reading, 4096).decode().strip()
            environment["DBUS_SESSION_BUS_ADDRESS"] = address
            yield Bus(address, uid, environment, daemon)
    finally:
        os.close(reading)
        shutil.rmtree(runtime)


def desktop_environment(home: Path, runtime: Path, display: str) -> dict[str, str]:
    """What a session's start script would have in its environment, the bus aside."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "DISPLAY": display,
        "XDG_RUNTIME_DIR": str(runtime),
        "TMPDIR": str(runtime),
        MARKER: os.environ[MARKER],
    }


def has_gi() -> bool:
    """Whether Debian's Python can talk to GLib: what the scripts of these tests do."""
    if not os.path.exists("/usr/bin/python3"):
        return False
    done = subprocess.run(["/usr/bin/python3", "-c", "import gi"], check=False, capture_output=True)
    return done.returncode == 0


@contextlib.contextmanager
def notification_service(bus: Bus, log: Path) -> Iterator[Callable[[], list[str]]]:
    """A notification service that notes what it is told to show: `number replaces summary|body`."""
    if not has_gi():
        pytest.skip("needs python3-gi for the notification service")
    log.touch()
    os.chown(log, bus.uid, bus.uid)
    # Its text, not its path: the user may not be able to enter the repository.
    command = ["/usr/bin/python3", "-c", _NOTIFIER.read_text(encoding="utf-8"), str(log)]
    with process(command, environment=bus.environment, uid=bus.uid):
        wait_until(lambda: "ready" in log.read_text(encoding="utf-8"), "notification service")
        yield lambda: log.read_text(encoding="utf-8").splitlines()[1:]
