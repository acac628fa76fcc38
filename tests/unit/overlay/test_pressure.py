"""When copying had better wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from session_agent.overlay.pressure import disk_is_short, memory_is_short, stalled_percent
from tests.support.storage import tmpfs

CALM = """some avg10=0.00 avg60=0.10 avg300=0.02 total=123
full avg10=0.00 avg60=0.00 avg300=0.00 total=45
"""
SHORT = CALM.replace("full avg10=0.00", "full avg10=37.51").replace(
    "some avg10=0.00", "some avg10=60.00"
)


@pytest.mark.parametrize(("text", "percent"), [(CALM, 0.0), (SHORT, 37.51), ("", 0.0), ("x", 0.0)])
def test_what_the_kernel_tells(text: str, percent: float) -> None:
    assert stalled_percent(text) == percent


def test_this_machine_is_not_short_of_memory() -> None:
    assert not memory_is_short()


@pytest.mark.needs_root
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", size="20m") as disk:
        folder = os.open(disk, os.O_PATH)
        assert not disk_is_short(folder)
        with open(disk / "file", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, (20 << 20) - (100 << 10))
        assert disk_is_short(folder)
        os.unlink(disk / "file")
        assert not disk_is_short(folder)
        os.close(folder)
