from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.mounts.probe import Sight, look_here
from session_agent.overlay import branches
from session_agent.overlay.branches import RemoteBranch
from session_agent.overlay.polling import elsewhere
from tests.support.branches import branch as described
from tests.support.stub_fuse import StubFuse, stub_fuse

LIMIT = 0.3  # seconds until a call is suspected


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[RemoteBranch]:
    """A branch that is called as a remote one, though it is a plain folder, and always alive."""
    branch = RemoteBranch(1, described("one"), os.open(tmp_path, os.O_PATH), LIMIT)
    yield branch
    branch.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StubFuse]:
    with stub_fuse(tmp_path / "mount") as one:
        yield one


@pytest.fixture
def mounted(server: StubFuse) -> Iterator[RemoteBranch]:
    """A branch on a mount that can hang."""
    fd = os.open(server.path, os.O_PATH | os.O_DIRECTORY)
    branch = RemoteBranch(1, described("one"), fd, LIMIT)
    yield branch
    branch.close()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No descriptor, and nothing that keeps the event loop from its sleep."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 5
    while sorted(os.listdir("/proc/self/fd")) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert elsewhere.count == 0


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the branch was probed. The probe itself is real."""
    times: list[float] = []

    def counted(place: int) -> Sight:
        times.append(time.monotonic())
        return look_here(place)

    monkeypatch.setattr(branches, "look_here", counted)
    return times
