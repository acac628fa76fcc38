from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.moving import Disks
from tests.support.storage import tmpfs

_MEMORY = "/dev/shm"  # a tmpfs on every Linux that Docker or Debian sets up


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    """A folder on a disk and one in memory; no mount is made for it."""
    with tempfile.TemporaryDirectory(dir=_MEMORY, ignore_cleanup_errors=True) as folder:
        both = Disks(tmp_path / "source", Path(folder, "target"))
        both.source.mkdir()
        both.target.mkdir()
        assert os.stat(both.source).st_dev != os.stat(both.target).st_dev
        yield both
        shutil.rmtree(both.source)


@pytest.fixture
def fast_disks(tmp_path: Path) -> Iterator[Disks]:
    """Both in memory, for tests that move hundreds of times."""
    with tmpfs(tmp_path / "a") as source, tmpfs(tmp_path / "b") as target:
        yield Disks(source, target)


@pytest.fixture(autouse=True)
def no_descriptor_is_lost() -> Iterator[None]:
    """Whatever a move meets, it closes what it has opened."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before
