"""Policies for tests: as text, with users who are asked about."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime

from session_agent.model import Grant
from session_agent.policy.evaluate import evaluate
from session_agent.policy.identity import Identity
from session_agent.policy.model import Policy
from session_agent.policy.plan import label
from session_agent.policy.schema import examine

MONDAY_NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


def policy_of(text: str) -> Policy:
    """The policy, of which nothing must be wrong, not even a warning."""
    policy, problems = examine(textwrap.dedent(text).encode(), "policy.yaml")
    assert problems.found == []
    assert policy is not None
    return policy


def person(user: str, *groups: str, user_id: str = "", **attributes: str) -> Identity:
    values = {name: frozenset({value}) for name, value in attributes.items()}
    return Identity(user, user_id, frozenset(groups), values)


def modes(
    policy: Policy, identity: Identity | None, instant: datetime = MONDAY_NOON
) -> dict[str, Grant]:
    return {label(grant): grant.mode for grant in evaluate(policy, identity, instant)}
