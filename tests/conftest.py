"""What every test can count on: true reasons for skips, no test that hangs, nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Protocol

import hypothesis
import pytest

from tests.support.run_marker import MARKER, OWN_MOUNTS, started_processes


class _Limit(Protocol):
    """The part of pytest_timeout.Settings that is used."""

    timeout: float  # seconds


_WATCHDOG = pytest.StashKey["subprocess.Popen[bytes]"]()
_MOUNTS_BEFORE = pytest.StashKey[set[str]]()

_FREE_AFTER = 5.0  # seconds that pytest-timeout gets before the watchdog helps
_LAST_PROCESSES_END = 5.0  # seconds for daemons told to stop


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the soaks (marker: long)")
    parser.addoption(
        "--kills", type=int, help="how often tests/crash/test_kills.py kills the vault"
    )


def _why_not_root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _why_not_fuse() -> str | None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"needs FUSE, but /dev/fuse: {error.strerror}"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "needs FUSE, but fusermount3 is not installed"
    return None


def _why_not_rclone() -> str | None:
    return None if shutil.which("rclone") else "needs rclone, which is not installed"


_NEEDS = {
    "needs_root": _why_not_root,
    "needs_fuse": _why_not_fuse,
    "needs_rclone": _why_not_rclone,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = {mark: reason for mark, why_not in _NEEDS.items() if (reason := why_not())}
    if not config.getoption("--long"):
        missing["long"] = "a soak: run with --long"
    for item in items:
        for mark, reason in missing.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure(config: pytest.Config) -> None:
    # No deadline for one example: a loaded machine is no fault of the code's.
    hypothesis.settings.register_profile("usual", deadline=None, print_blob=True)
    hypothesis.settings.register_profile("long", deadline=None, print_blob=True, max_examples=2000)
    hypothesis.settings.load_profile("long" if config.getoption("--long") else "usual")
    os.environ[MARKER] = uuid.uuid4().hex
    config.stash[_MOUNTS_BEFORE] = _mount_points()
    config.stash[_WATCHDOG] = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fuse_watchdog"],
        stdin=subprocess.PIPE,
        cwd=config.rootpath,
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    watchdog = config.stash[_WATCHDOG]
    watchdog.communicate()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: _Limit) -> None:
    """Returns None, so that pytest-timeout sets its own timer as well."""
    _tell(item.config, f"start {settings.timeout + _FREE_AFTER} {item.nodeid!r}")


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    _tell(item.config, "stop")


def _tell(config: pytest.Config, line: str) -> None:
    stdin = config.stash[_WATCHDOG].stdin
    assert stdin is not None
    stdin.write(line.encode(errors="replace") + b"\n")
    stdin.flush()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """After the last test: no process that the run started, no mount that it made."""
    yield
    ours = {os.getpid(), pytestconfig.stash[_WATCHDOG].pid}
    deadline = time.monotonic() + _LAST_PROCESSES_END
    while processes := {
        pid: command
        for pid, command in started_processes(os.environ[MARKER]).items()
        if pid not in ours
    }:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    before: set[str] = pytestconfig.stash[_MOUNTS_BEFORE]
    mounts = _mount_points() - before
    if OWN_MOUNTS not in os.environ:  # others mount here too: count what is surely of this run
        mounts = {path for path in mounts if path.startswith(str(tmp_path_factory.getbasetemp()))}
    assert not processes, f"tests left these processes running: {processes}"
    assert not mounts, f"tests left these mounted: {sorted(mounts)}"


def _mount_points() -> set[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="backslashreplace") as file:
        return {line.split()[4] for line in file}
