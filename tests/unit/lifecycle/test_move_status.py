"""From a move's record to what is shown of it."""

from __future__ import annotations

import errno
import json
import os

import msgspec
import pytest

from session_agent.lifecycle import control, move_status
from session_agent.lifecycle.control import Answer, StatusDocument
from session_agent.moves.record import End, State, encode
from tests.support.moves import MIB, record, status


def test_what_docs_moves_md_documents() -> None:
    moving = record(
        1, strategy="clone", total_bytes=8 * MIB, total_files=3, losses=("owner",), created=5.0
    )
    told = move_status.under_way(moving, "/vault", done=(2 * MIB, 1), rate=MIB, paused="")
    assert json.loads(msgspec.json.encode(told)) == {
        "id": "000000000001",
        "from": "/vault/projects/note 1",
        "to": "/vault/team/inbox/note 1",
        "state": "staging",
        "strategy": "clone",
        "background": True,
        "bytes": 2 * MIB,
        "total_bytes": 8 * MIB,
        "files": 1,
        "total_files": 3,
        "rate": MIB,
        "seconds_left": 6.0,
        "paused": "",
        "losses": ["owner"],
        "kept": False,
        "leftover": False,
        "error": "",
        "reason": "",
        "started": 5.0,
        "ended": 0.0,
    }


def test_a_failure() -> None:
    told = move_status.of_record(record(1, State.FAILED, error=errno.ENOSPC, ended=9.0), "/vault")
    assert (told.error, told.reason) == ("ENOSPC", os.strerror(errno.ENOSPC))
    assert (told.ended, told.under_way) == (9.0, False)


@pytest.mark.parametrize("number", [-1, 1 << 70, 4096])
def test_an_error_that_is_none(number: int) -> None:
    told = move_status.of_record(record(1, State.FAILED, error=number), "/vault")
    assert (told.error, told.reason) == ("", "")


@pytest.mark.parametrize(
    ("state", "rate", "copied", "paused"),
    [
        (State.ACCEPTED, 5.0, 0, ""),  # it has not begun
        (State.STAGING, 0.0, 0, ""),
        (State.STAGING, 5.0, 0, "the disk is full"),
        (State.STAGING, 5.0, 11, ""),  # it has grown meanwhile
        (State.RETIRING, 5.0, 10, ""),
    ],
)
def test_when_nobody_can_tell_how_long_it_takes(
    state: State, rate: float, copied: int, paused: str
) -> None:
    moving = record(1, state, total_bytes=10)
    told = move_status.under_way(moving, "/v", done=(copied, 0), rate=rate, paused=paused)
    assert told.seconds_left is None


@pytest.mark.parametrize(
    ("end", "shown"),
    [
        (End("", "", "a"), "/vault/a"),
        (End("a b", "c/d", encode(b"100%")), "/vault/a b/c/d/100%"),
        (End("a", encode(b"caf\xe9"), encode("é\n".encode())), "/vault/a/caf\\xe9/é\n"),
    ],
)
def test_paths(end: End, shown: str) -> None:
    assert move_status.shown_path("/vault", end) == shown


def test_an_answer_holds_what_fits_and_says_what_is_missing() -> None:
    long = "é" * 4000
    many = [status(number, source=long, target=long, losses=(long,)) for number in range(100)]
    told, left_out = move_status.as_many_as_fit(many)
    assert 0 < len(told) == 100 - left_out < 100
    document = StatusDocument("running", "/vault", moves=told)
    line = control.encode(Answer(document=document))
    assert len(line) < control.ANSWER_LIMIT
    assert control.decode(line, Answer).document == document


def test_short_ones_fit_by_the_hundred() -> None:
    many = [status(number, losses=("owner", "mode"), seconds_left=1.5) for number in range(200)]
    told, left_out = move_status.as_many_as_fit(many)
    assert (len(told), left_out) == (200, 0)
    taken = len(control.encode(Answer(document=StatusDocument("running", "", moves=told))))
    assert taken <= move_status.SHOWN_BYTES
