from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_rclone]


def _rclone_pid(mount: Path) -> int:
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if b"rclone" in command and os.fsencode(mount) in command:
            return int(name)
    raise AssertionError("no rclone")


def test_frees_a_process_that_waits_for_a_stopped_server(tmp_path: Path) -> None:
    source, mount = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    mount.mkdir()
    watchdog = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fuse_watchdog"], stdin=subprocess.PIPE
    )
    assert watchdog.stdin is not None
    watchdog.stdin.write(b"start 1 the freed one\n")
    watchdog.stdin.flush()
    time.sleep(0.5)  # the watchdog notes what is mounted before this test's own mount

    subprocess.run(
        ["rclone", "mount", source, mount, "--config", os.devnull, "--daemon"], check=True
    )
    server = _rclone_pid(mount)
    try:
        os.kill(server, signal.SIGSTOP)
        waiting = subprocess.Popen(["stat", mount / "x"], stderr=subprocess.PIPE, text=True)
        assert "abort" in waiting.communicate(timeout=8)[1]  # ECONNABORTED
    finally:
        watchdog.communicate()
        os.kill(server, signal.SIGKILL)
        subprocess.run(["umount", "--lazy", mount], check=True)
