"""Whether a condition can hold at all, and whether one holds wherever another does.

Answered by trying every user that the conditions can tell apart: their groups, users and comparisons are few.
Where they are not, no claim is made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from session_agent.policy.conditions import (
    Condition,
    Everyone,
    HasAttribute,
    InGroup,
    IsUser,
    Who,
    leaves,
)
from session_agent.policy.membership import Membership
from session_agent.policy.model import Rule
from session_agent.policy.times import Validity

_ATOMS = 8  # groups and comparisons; each doubles the work


def satisfiable(condition: Condition, membership: Membership) -> bool:
    """False if nobody can fulfil it. True also where that would take too long to find out."""
    if isinstance(condition, InGroup | IsUser | Everyone | HasAttribute):
        return True
    worlds = _worlds((condition,), membership)
    return worlds is None or any(condition.holds(who) for who in worlds)


def covers(wider: Rule, narrower: Rule, membership: Membership) -> bool:
    """Whether `wider` matches whenever `narrower` does. False also where that cannot be told."""
    if not _covers_times(wider.validity, narrower.validity):
        return False
    left, right = wider.condition, narrower.condition
    if isinstance(left, Everyone):
        return True
    if isinstance(left, IsUser) and isinstance(right, IsUser):
        return left.users >= right.users
    if isinstance(left, InGroup) and isinstance(right, InGroup) and left.groups >= right.groups:
        return True
    worlds = _worlds((left, right), membership)
    if worlds is None:
        return False
    matched = [who for who in worlds if right.holds(who)]
    return bool(matched) and all(left.holds(who) for who in matched)


def smallest(condition: Condition, membership: Membership) -> list[Who]:
    """Users who just fulfil it: none of their groups and values could be left out."""
    worlds = [who for who in _worlds((condition,), membership) or () if condition.holds(who)]
    found: list[Who] = []
    for who in sorted(worlds, key=_size):
        if not any(other.user in ("", who.user) and _within(other, who) for other in found):
            found.append(who)
    return found


def _size(who: Who) -> int:
    return len(who.groups) + sum(map(len, who.attributes.values())) + bool(who.user)


def _within(small: Who, large: Who) -> bool:
    return small.groups <= large.groups and all(
        values <= large.attributes.get(name, frozenset())
        for name, values in small.attributes.items()
    )


def _covers_times(wider: Validity, narrower: Validity) -> bool:
    if wider.windows and wider.windows != narrower.windows:
        return False
    if wider.start is not None and (narrower.start is None or narrower.start < wider.start):
        return False
    return wider.end is None or (narrower.end is not None and narrower.end <= wider.end)


def _worlds(conditions: tuple[Condition, ...], membership: Membership) -> Iterator[Who] | None:
    """Everybody whom the conditions can tell apart; None if those are too many."""
    users: set[str] = {""}  # somebody whom no condition names
    named: set[str] = set()
    compared: set[tuple[str, str]] = set()
    for condition in conditions:
        for leaf in leaves(condition):
            if isinstance(leaf, IsUser):
                users |= leaf.users
            elif isinstance(leaf, InGroup):
                named |= leaf.groups
            elif isinstance(leaf, HasAttribute):
                compared.add((leaf.name, leaf.value))
    if len(named) + len(compared) > _ATOMS or len(users) > 2 * _ATOMS:
        return None
    return _each(sorted(users), sorted(named), sorted(compared), membership)


def _each(
    users: list[str],
    named: list[str],
    compared: list[tuple[str, str]],
    membership: Membership,
) -> Iterator[Who]:
    flags = len(named) + len(compared)
    for chosen in itertools.product((False, True), repeat=flags):
        members = {name for name, inside in zip(named, chosen, strict=False) if inside}
        attributes: dict[str, frozenset[str]] = {name: frozenset() for name, _ in compared}
        for (name, value), holds in zip(compared, chosen[len(named) :], strict=True):
            if holds:
                attributes[name] |= {value}
        for user in users:
            yield Who(user, membership.closed(user, members), attributes)
