"""Which of a policy's groups somebody is in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from session_agent.policy.model import Group


def closed(user: str, groups: Iterable[str], defined: Mapping[str, Group]) -> frozenset[str]:
    """`groups`, those that list the user, and all that contain one of them."""
    found = set(groups)
    found |= {group.name for group in defined.values() if user and user in group.members}
    containing: dict[str, list[str]] = {}
    for group in defined.values():
        for inner in group.groups:
            containing.setdefault(inner, []).append(group.name)
    pending = list(found)
    while pending:
        for outer in containing.get(pending.pop(), ()):
            if outer not in found:
                found.add(outer)
                pending.append(outer)
    return frozenset(found)


def of_claims(user: str, claimed: Iterable[str], defined: Mapping[str, Group]) -> frozenset[str]:
    """The groups that follow from what an identity provider says of a user.

    Without definitions its names are ours. With them a group is known by the names that it lists as
    `provided`, else by its own, and any other is ignored.
    """
    if not defined:
        return frozenset(claimed)
    known = frozenset(claimed)
    ours = {group.name for group in defined.values() if not known.isdisjoint(provided_names(group))}
    return closed(user, ours, defined)


def provided_names(group: Group) -> frozenset[str]:
    """The names by which an identity provider means this group."""
    return frozenset({group.name}) if group.provided is None else group.provided
