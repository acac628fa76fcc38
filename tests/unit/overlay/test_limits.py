"""Which ends of a recorded move the policy lets be changed."""

from __future__ import annotations

import pytest

from session_agent.model import Grant
from session_agent.overlay.limits import Limits
from session_agent.policy.limit import HIDDEN, Limit
from tests.support.vault import outcome

RW, RO = Limit(Grant.RW), Limit(Grant.RO)
LIMITS = Limits(
    {
        "": RW,
        "a": Limit(Grant.RW, {b"secret": HIDDEN, b"in": Limit(Grant.RW, {b"deep": RO})}),
        "b": RO,
    },
    lambda *_: None,
)


@pytest.mark.parametrize(
    ("branch", "steps", "expected"),
    [
        ("", ["x"], None),
        ("a", ["x"], None),
        ("a", ["x", "y"], None),
        ("a", ["in", "x"], None),
        ("a", ["in"], "EACCES"),  # a rule speaks of what is in it
        ("a", ["secret"], "EACCES"),
        ("a", ["Secret", "x"], "EACCES"),
        ("a", ["secret", "x"], "EACCES"),
        ("a", ["in", "deep", "x"], "EACCES"),
        ("b", ["x"], "EACCES"),
        ("unknown", ["x"], "EACCES"),
    ],
)
def test_a_forged_record_reaches_no_more_than_the_user(
    branch: str, steps: list[str], expected: str | None
) -> None:
    assert outcome(lambda: LIMITS.reach(branch, [s.encode() for s in steps])) == expected
