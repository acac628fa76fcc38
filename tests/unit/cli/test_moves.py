"""`session-agent moves`: what is printed, and the exit codes, with a stub of an agent and without."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from session_agent.cli.main import main
from session_agent.cli.moves import _amount, _duration
from session_agent.desktop.rooms import Terms
from session_agent.lifecycle import state
from session_agent.lifecycle.control import StatusDocument
from session_agent.lifecycle.move_status import MoveStatus
from session_agent.lifecycle.session import Place
from session_agent.model import SessionUser
from session_agent.moves.journal import Journal
from session_agent.moves.record import State
from tests.support.moves import MIB, record, status
from tests.support.stub_agent import stub_agent

ROOT = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A session without mounts, that `main` finds by the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SESSION_AGENT_VAULT", "/vault")
    monkeypatch.setenv("SESSION_AGENT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("SESSION_AGENT_CONFIG", raising=False)
    user = SessionUser("u", os.getuid(), os.getgid(), (), str(tmp_path))
    return Place(user, "/vault", str(tmp_path / "state"), "", Terms("", ""))


@pytest.fixture
def agent(place: Place) -> Iterator[Callable[..., None]]:
    """Start an agent that tells these lists of moves, one after the other."""
    with contextlib.ExitStack() as stack:

        def start(*lists: list[MoveStatus]) -> None:
            documents = [StatusDocument("running", "/vault", moves=tuple(moves)) for moves in lists]
            stack.enter_context(stub_agent(place, documents))

        yield start


MOVING = status(
    1,
    bytes=3 * MIB // 2,
    total_bytes=2 * MIB,
    files=1,
    total_files=1,
    rate=0.5 * MIB,
    seconds_left=1.0,
)
FAILED = status(2, State.FAILED, error="ENOSPC", reason="No space left on device")


def cells(text: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in text.splitlines()]


def test_nothing_moves(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["moves"]) == 0
    assert capsys.readouterr().out == "No move is under way, and none has failed.\n"
    assert main(["moves", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"live": False, "moves": [], "warnings": []}


def test_the_table(agent: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    tree = status(
        3,
        State.DONE,
        files=9,
        total_files=9,
        bytes=10,
        total_bytes=10,
        losses=("owner",),
        kept=True,
    )
    agent([MOVING, FAILED, tree])
    assert main(["moves"]) == 2
    captured = capsys.readouterr()
    header, moving, failed, done = captured.out.splitlines()
    assert cells(header) == [
        ["id", "from", "to", "state", "strategy", "done", "rate", "left", "notes"]
    ]
    assert cells(moving) == [
        [
            *(MOVING.id, "projects/note 1", "team/inbox/note 1", "staging", "copy"),
            *("1.5 MiB of 2 MiB", "512 KiB/s", "1 s"),
        ]
    ]
    assert cells(failed)[0][3:] == ["failed", "copy", "No space left on device"]
    assert cells(done)[0][5:] == [
        "10 B of 10 B, 9 of 9 files",
        "the old version is kept, it had changed; not kept: owner",
    ]
    assert captured.err == ""


def test_json_is_what_the_agent_tells(
    agent: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    agent([MOVING])
    assert main(["moves", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["live"]
    assert told["moves"][0]["from"] == "/vault/projects/note 1"
    assert told["moves"][0]["seconds_left"] == 1.0
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["moves"] == told["moves"]


def test_status_counts_them(agent: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    agent([MOVING, FAILED, status(4, State.ACCEPTED)], [FAILED], [status(5, State.DONE)])
    main(["status"])
    told = capsys.readouterr().out
    assert "2 moves are under way, 1 move has failed: see `session-agent moves`\n" in told
    main(["status"])
    assert "\n1 move has failed: see" in capsys.readouterr().out
    main(["status"])
    assert "move" not in capsys.readouterr().out


def test_names_that_would_control_the_terminal(
    agent: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    agent(
        [status(1, State.FAILED, target="/vault/\x1b[2J\nx", reason="[bold]no[/bold]", error="E")]
    )
    assert main(["moves"]) == 2
    out = capsys.readouterr().out
    assert "\\x1b[2J\\nx" in out
    assert "[bold]no[/bold]" in out
    assert "\x1b" not in out


def test_without_an_agent_the_journal_tells(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = state.create(place.state_dir, place.user)
    journal = Journal(folder, place.user)
    journal.write(record(1, State.ACCEPTED))
    journal.close()
    os.close(folder)
    assert main(["moves"]) == 2
    captured = capsys.readouterr()
    assert "accepted" in captured.out
    assert "No agent runs" in captured.err


def test_cancel(agent: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    agent([status(1)], [status(1, State.CANCELLED)])
    assert main(["moves", "cancel", status(1).id]) == 0
    assert capsys.readouterr().out == (
        "The move is taken back: /vault/projects/note 1 is where it was.\n"
    )


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (status(1, State.DONE), "Too late: /vault/team/inbox/note 1 is in place."),
        (
            status(1, State.FAILED, reason="Broken"),
            "had failed already: Broken. /vault/projects/note 1",
        ),
    ],
)
def test_cancelled_too_late(
    agent: Callable[..., None], capsys: pytest.CaptureFixture[str], ended: MoveStatus, told: str
) -> None:
    agent([ended])
    assert main(["moves", "cancel", ended.id]) == 1
    assert told in capsys.readouterr().err


def test_acknowledge_several(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = state.create(place.state_dir, place.user)
    journal = Journal(folder, place.user)
    journal.write_all(record(number, State.FAILED, error=5) for number in (1, 2, 3))
    journal.close()
    os.close(folder)
    assert main(["moves", "ack", record(1).id, record(3).id]) == 0
    assert main(["moves", "ack", record(1).id]) == 1
    assert "There is no failed move" in capsys.readouterr().err
    main(["moves", "--json"])
    told = json.loads(capsys.readouterr().out)["moves"]
    assert [(move["id"], move["error"]) for move in told] == [(record(2).id, "EIO")]


@pytest.mark.parametrize(
    "words", [["--watch", "--json"], ["ack"], ["cancel"], ["cancel", "1", "2"], ["pause"]]
)
def test_wrong_usage(words: list[str], place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["moves", *words]) == 1
    assert "Usage:" in capsys.readouterr().err


def test_watch_ends_with_the_last_move(
    agent: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    agent([MOVING], [MOVING, FAILED], [status(1, State.DONE), FAILED])
    assert main(["moves", "--watch"]) == 2
    out = capsys.readouterr().out
    assert "note 1" in out
    assert "done" in out
    assert "note 2" in out


def test_watch_moves_bars_on_a_terminal(place: Place) -> None:
    half = status(1, bytes=MIB, total_bytes=2 * MIB, files=0, total_files=1, rate=1.0)
    documents = [
        StatusDocument("running", "/vault", moves=(move,))
        for move in (half, half, half, status(1, State.DONE))
    ]
    with stub_agent(place, documents):
        shown = on_terminal("moves", "--watch")
    assert "1 MiB of 2 MiB" in shown
    assert "done" in shown
    assert shown.index("1 MiB of 2 MiB") < shown.index("done")


def test_interrupted_while_watching(place: Place) -> None:
    with stub_agent(place, [StatusDocument("running", "/vault", moves=(MOVING,))]):
        watching = subprocess.Popen(
            [sys.executable, "-m", "session_agent", "moves", "--watch"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A test run in the background of a shell ignores it, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        time.sleep(2)
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=20)
    assert (watching.returncode, errors.strip()) == (130, b"")


def on_terminal(*words: str) -> str:
    """What a terminal of 120 columns gets to show."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "session_agent", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=its,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(its)
    data = b""
    with contextlib.suppress(OSError):  # EIO once the last writer has closed it
        while chunk := os.read(ours, 65536):
            data += chunk
    os.close(ours)
    assert process.wait(20) == 0
    return data.decode()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (2048, "2 KiB"), (5 << 40, "5 TiB")],
)
def test_amounts(count: int, text: str) -> None:
    assert _amount(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
