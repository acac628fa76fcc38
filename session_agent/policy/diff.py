"""What a change to a policy changes, for whom.

Asked for everybody whom the two files can tell from others by a single rule: somebody unknown, any user that
they name, and for each rule the users who just fulfil it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from session_agent.model import Grant
from session_agent.policy import check
from session_agent.policy.conditions import IsUser, Who, leaves
from session_agent.policy.evaluate import grants_of
from session_agent.policy.identity import Identity
from session_agent.policy.model import Policy
from session_agent.policy.worlds import smallest

_ASKED = 2000  # users, so that it ends in reasonable time


@dataclass(frozen=True, slots=True)
class Change:
    """What one kind of user has of a folder, before and after."""

    who: str
    folder: str
    before: Grant
    after: Grant
    because: str


def diff(old: Policy, new: Policy, instant: datetime) -> list[Change]:
    """Every difference, by user, then in the new file's order."""
    changes: list[Change] = []
    asked = dict.fromkeys((*_representatives(old), *_representatives(new)))
    for number, key in enumerate(asked):
        if number == _ASKED:
            break
        changes += _changes(old, new, key, instant)
    return changes


@dataclass(frozen=True, slots=True)
class _Key:
    """A representative: hashable, so that each is asked once."""

    user: str
    groups: frozenset[str]
    attributes: tuple[tuple[str, frozenset[str]], ...]
    known: bool = True

    def __str__(self) -> str:
        if not self.known:
            return "somebody unknown"
        parts = [f"user {self.user}"] if self.user else []
        parts += [f"group {name}" for name in sorted(self.groups)]
        parts += [
            f"{name} == {value}" for name, values in self.attributes for value in sorted(values)
        ]
        return ", ".join(parts) or "any other user"


def _representatives(policy: Policy) -> Iterator[_Key]:
    yield _Key("", frozenset(), (), known=False)
    yield _Key("", frozenset(), ())
    users = {name for group in policy.groups.values() for name in group.members}
    conditions = {
        rule.condition: None for folder in policy.folders for _, rule in check.all_rules(folder, "")
    }
    for condition in conditions:
        users |= {
            name for leaf in leaves(condition) if isinstance(leaf, IsUser) for name in leaf.users
        }
    for user in sorted(users):
        yield _Key(user, frozenset(), ())
    for condition in conditions:
        for who in smallest(condition, policy.membership):
            attributes = tuple(sorted((n, v) for n, v in who.attributes.items() if v))
            yield _Key(who.user, who.groups, attributes)


def _changes(old: Policy, new: Policy, key: _Key, instant: datetime) -> Iterator[Change]:
    before, after = (_modes(policy, key, instant) for policy in (old, new))
    for name in dict.fromkeys((*after, *before)):
        had, _ = before.get(name, (Grant.HIDDEN, ""))
        has, because = after.get(name, (Grant.HIDDEN, "the file has it no more"))
        if had is not has:
            yield Change(str(key), name, had, has, because)


def _modes(policy: Policy, key: _Key, instant: datetime) -> dict[str, tuple[Grant, str]]:
    who: Who | None = None
    identity: Identity | None = None
    if key.known:
        user = key.user or "somebody"
        groups = policy.membership.closed(user, key.groups)
        who = Who(user, groups, dict(key.attributes))
        identity = Identity(user, user_id=user)
    return {
        f"{grant.name}/{grant.subfolder}" if grant.subfolder else grant.name: (
            grant.mode,
            grant.because,
        )
        for grant in grants_of(policy, identity, who, instant)
    }
