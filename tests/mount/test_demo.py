"""`./dev demo` is what the README tells a newcomer to run: run it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(240)]

# A /dev with the usual nodes, but without FUSE's.
WITHOUT_FUSE = """
set -e
mkdir /run/dev-of-demo
mount -t tmpfs tmpfs /run/dev-of-demo
for node in null zero full random urandom tty loop-control $(cd /dev && ls -d loop[0-9]*); do
    [ ! -e /dev/$node ] || cp -a /dev/$node /run/dev-of-demo/
done
ln -s /proc/self/fd /run/dev-of-demo/fd
mount --move /run/dev-of-demo /dev
rmdir /run/dev-of-demo
exec ./dev demo
"""


def output_of(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs_fuse
@pytest.mark.needs_rclone
def test_demo() -> None:
    output = output_of(["./dev", "demo"])
    assert "ok: the kernel refuses with EXDEV" in output
    assert output.count("the same byte for byte") == 4
    assert "/gdrive" in output
    assert output.endswith("Everything came true.\n")


def test_demo_without_fuse() -> None:
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", WITHOUT_FUSE]
    output = output_of(command)
    assert "there is no vault to rename in" in output
    assert "bookmarks" in output
    assert output.endswith("Everything came true.\n")
