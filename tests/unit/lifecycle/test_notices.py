"""What the desktop is told of moves, and how."""

from __future__ import annotations

import pytest

from session_agent.lifecycle.move_status import MoveStatus
from session_agent.lifecycle.notices import (
    ICON_DONE,
    ICON_FAILED,
    ICON_KEPT,
    TOLD_SECONDS,
    Notice,
    notices,
    worth_telling,
)
from session_agent.moves.record import State
from tests.support.moves import status

FAILED = status(1, State.FAILED, reason="No space left on device")


@pytest.mark.parametrize(
    ("move", "told"),
    [
        (FAILED, True),
        (status(1, State.DONE, started=10.0, ended=10.0 + TOLD_SECONDS), True),
        (status(1, State.DONE, started=10.0, ended=10.0 + TOLD_SECONDS / 2), False),
        (status(1, State.DONE, started=10.0, ended=10.0, kept=True), True),
        (status(1, State.CANCELLED, started=10.0, ended=99.0), False),
        (status(1, State.STAGING), False),
    ],
)
def test_which(move: MoveStatus, told: bool) -> None:
    assert worth_telling(move) is told


def test_one_of_a_kind() -> None:
    done = status(2, State.DONE, losses=("owner", "mode"))
    assert notices([FAILED, done]) == [
        Notice(
            "note 2 has been moved",
            "It is at /vault/team/inbox/note 2. Not kept there: owner, mode.",
            ICON_DONE,
        ),
        Notice(
            "note 1 could not be moved",
            "No space left on device. It is still at /vault/projects/note 1.",
            ICON_FAILED,
        ),
    ]


def test_both_versions_are_kept() -> None:
    (notice,) = notices([status(2, State.DONE, kept=True)])
    assert notice.body.endswith("What had changed meanwhile is kept at /vault/projects/note 2.")
    assert notice.icon == ICON_KEPT


def test_many_failures_are_one_notification() -> None:
    (notice,) = notices([status(n, State.FAILED, reason="Gone") for n in range(8)])
    assert notice.summary == "8 moves have failed"
    assert notice.body.splitlines() == [
        *(f"note {n}: Gone" for n in range(5)),
        "and 3 more",
        "All of it is still at its old place.",
    ]


def test_many_that_are_done() -> None:
    (notice,) = notices([status(n, State.DONE, kept=n == 1) for n in range(3)])
    assert notice == Notice("3 moves are done", "note 0\nnote 1\nnote 2", ICON_KEPT)


def test_nothing() -> None:
    assert notices([]) == []
