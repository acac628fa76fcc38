"""The session bus of the user's desktop, found in the environment of one of its processes.

What `docker exec` starts has no DBUS_SESSION_BUS_ADDRESS, and the desktop may come up long after it,
or start anew. So the address is looked for, each time it is needed, where the desktop has it. That
environment is the user's to write: everything here is to be called with the user's rights, in a
process that is the user's (fsutil/bounded.py, lifecycle/companion.py), never as root for the user.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
from jeepney.bus import get_connectable_addresses  # type: ignore[import-untyped]

# Session managers first: they live as long as the desktop does.
_MANAGERS = (
    *("xfce4-session", "mate-session", "gnome-session-b", "cinnamon-session", "lxsession"),
    *("lxqt-session", "plasma_session", "ksmserver", "openbox", "xfwm4", "xfdesktop"),
)
_KEPT = (
    *("DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR"),
    *("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HOME", "LANG"),
)
_PATH = "/usr/local/bin:/usr/bin:/bin"
_CONNECT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Desktop:
    """A process of the running desktop, and what of its environment is needed to talk to it."""

    pid: int
    environment: Mapping[str, str]

    @property
    def address(self) -> str:
        """The session bus, as D-Bus writes addresses."""
        return self.environment["DBUS_SESSION_BUS_ADDRESS"]

    @property
    def data_home(self) -> str:
        """The desktop's `$XDG_DATA_HOME`, "" where neither that nor HOME is known."""
        home = self.environment.get("HOME", "")
        given = self.environment.get("XDG_DATA_HOME", "")
        return given if given.startswith("/") else home and os.path.join(home, ".local/share")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended. `code` is None if it had not when its time was up."""

    code: int | None
    output: str


def find(uid: int) -> Desktop | None:
    """The desktop of the user `uid`, None while there is none whose session bus can be reached."""
    candidates = []
    for process in psutil.process_iter(["uids", "name", "create_time"]):
        uids = process.info["uids"]
        if uids is None or uids.real != uid:
            continue
        # It may have ended, or changed its identity, since it was listed.
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if _has_desktop(environment):
                candidates.append((_rank(process), process.pid, environment))
    reachable: dict[str, bool] = {}
    for _, pid, environment in sorted(candidates, key=lambda found: found[:2]):
        address = environment["DBUS_SESSION_BUS_ADDRESS"]
        if address not in reachable:
            reachable[address] = is_reachable(address)
        if reachable[address]:
            return Desktop(pid, {name: environment[name] for name in _KEPT if name in environment})
    return None


def is_reachable(address: str) -> bool:
    """Whether somebody listens at one of the unix sockets in the D-Bus address `address`.

    Kubernetes sessions have `unix:path=/dev/null`, and a bus that has ended leaves its address in
    the environment of whoever outlives it.
    """
    with contextlib.suppress(ValueError, RuntimeError):  # no such address, or of another kind
        return any(_connects(path) for path in get_connectable_addresses(address))
    return False


def run(
    desktop: Desktop, commands: Sequence[Sequence[str]], *, time_limit: float
) -> list[Ended | None]:
    """Run all `commands` at once in the desktop's environment; how each ended, in their order.

    None for a program that is not installed. What has not ended after `time_limit` seconds is
    killed, and not waited for: it may be stuck in a mount that hangs.
    """
    environment = {"PATH": _PATH, **desktop.environment, "LC_ALL": "C.UTF-8"}
    started = [_start(command, environment) for command in commands]
    deadline = time.monotonic() + time_limit
    return [None if process is None else _end(process, deadline) for process in started]


def _has_desktop(environment: Mapping[str, str]) -> bool:
    screen = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    return bool(screen and environment.get("DBUS_SESSION_BUS_ADDRESS"))


def _rank(process: psutil.Process) -> tuple[int, float]:
    """Session managers before others, the oldest first."""
    name = process.info["name"] or ""
    place = _MANAGERS.index(name[:15]) if name[:15] in _MANAGERS else len(_MANAGERS)
    return place, process.info["create_time"] or 0.0


def _connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_CONNECT_SECONDS)
        try:
            client.connect(path)
        except (OSError, ValueError):
            return False
    return True


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str] | None:
    program = shutil.which(command[0], path=_PATH)
    if program is None:
        return None
    return subprocess.Popen(
        [program, *command[1:]],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="surrogateescape",
    )


def _end(process: subprocess.Popen[str], deadline: float) -> Ended:
    try:
        output, _ = process.communicate(timeout=max(0.01, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
        process.returncode = process.returncode or -9  # if stuck, the system ends it when it can
        return Ended(None, "")
    return Ended(process.returncode, output)
