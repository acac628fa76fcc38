"""What `session-agent status` prints for people."""

from __future__ import annotations

import pytest

from session_agent.cli import status
from session_agent.lifecycle.control import StatusDocument

COUNTS = {"watched": 7, "unwatched": 0, "announced": 3, "coalesced": 2, "rescanned": 1}


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (COUNTS, "folders watched 7; announced 3, coalesced 2, folders compared 1"),
        (
            {**COUNTS, "unwatched": 4},
            "folders watched 7, looked at because there are too many 4; announced 3, ",
        ),
        (
            {**COUNTS, "watched": 0, "polled": 2, "polls": 9, "dropped": 5},
            "folders watched 0, remote, looked at 2 (9 times); announced 3, coalesced 2, dropped 5, ",
        ),
        (dict.fromkeys(COUNTS, 0), None),
        ({}, None),
    ],
)
def test_foreign_changes(
    capsys: pytest.CaptureFixture[str], counts: dict[str, int], line: str | None
) -> None:
    status._print(StatusDocument("running", "/vault", foreign=counts))
    said = capsys.readouterr().out
    if line is None:
        assert said == "/vault: running\n"
    else:
        assert f"others' changes: {line}" in said
