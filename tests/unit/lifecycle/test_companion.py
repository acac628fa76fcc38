"""The companion's words, and its end. What it does with a desktop is in tests/desktop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from session_agent.desktop.rooms import Terms
from session_agent.lifecycle import companion
from session_agent.lifecycle.companion import _wording
from session_agent.lifecycle.session import Place
from session_agent.model import SessionUser
from tests.support.branches import branches


@pytest.fixture
def place(tmp_path: Path) -> Place:
    user = SessionUser("me", os.geteuid(), os.getegid(), tuple(os.getgroups()), str(tmp_path))
    config = str(tmp_path / ".config")
    return Place(
        user, "/vault", str(tmp_path / "state"), config, Terms(f"{config}/rooms.yaml", "/vault")
    )


def test_one_or_several() -> None:
    trouble = "What is in there gives errors for now; everything else goes on."
    assert _wording(["Wiki"], up=False) == ("Wiki does not answer", trouble)
    assert _wording(["A", "B"], up=False) == ("2 folders do not answer", f"A, B. {trouble}")
    assert _wording(["Wiki"], up=True) == ("Wiki is back", "")
    assert _wording(["A", "B"], up=True) == ("2 folders are back", "A, B")


def test_it_ends_when_told(place: Place) -> None:
    started = companion.start(place)
    started.tell(branches("a", "caf\udce9"))
    started.end()
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, 0)


def test_one_that_does_not_answer_is_ended_all_the_same(place: Place) -> None:
    started = companion.start(place)
    os.kill(started.pid, signal.SIGSTOP)
    for _ in range(2000):  # more than the socket holds
        started.tell(branches("a"))
    begun = time.monotonic()
    started.end()
    assert time.monotonic() - begun < 5
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, 0)


def test_one_that_has_gone_is_no_trouble(place: Place) -> None:
    started = companion.start(place)
    os.kill(started.pid, signal.SIGKILL)
    time.sleep(0.1)
    started.tell(branches("a"))
    started.end()
