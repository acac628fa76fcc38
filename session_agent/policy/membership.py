"""Which of a policy's groups somebody is in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from session_agent.policy.document import Position


@dataclass(frozen=True, slots=True)
class Group:
    """A group's definition. `provided`: how an identity provider calls it; None means by the same name."""

    name: str
    members: frozenset[str]
    groups: frozenset[str]  # whose members are members, too
    provided: frozenset[str] | None
    at: Position


class Membership:
    """The groups that a policy defines, so arranged that a user's are found without looking at each."""

    def __init__(self, defined: Mapping[str, Group]) -> None:
        self._defined = defined
        self._listing: dict[str, list[str]] = {}  # by member
        self._containing: dict[str, list[str]] = {}  # by group
        self._provided: dict[str, list[str]] = {}  # by the identity provider's name
        for group in defined.values():
            for member in group.members:
                self._listing.setdefault(member, []).append(group.name)
            for inner in group.groups:
                self._containing.setdefault(inner, []).append(group.name)
            for name in (group.name,) if group.provided is None else group.provided:
                self._provided.setdefault(name, []).append(group.name)

    def closed(self, user: str, groups: Iterable[str]) -> frozenset[str]:
        """`groups`, those that list the user, and all that contain one of them."""
        found = {*groups, *self._listing.get(user, ())}
        pending = list(found)
        while pending:
            for outer in self._containing.get(pending.pop(), ()):
                if outer not in found:
                    found.add(outer)
                    pending.append(outer)
        return frozenset(found)

    def of_claims(self, user: str, claimed: Iterable[str]) -> frozenset[str]:
        """The groups that follow from what an identity provider says of a user.

        Without definitions its names are ours. With them a group is known by the names that it lists as
        `provided`, else by its own, and any other is ignored.
        """
        if not self._defined:
            return frozenset(claimed)
        ours = [name for claim in claimed for name in self._provided.get(claim, ())]
        return self.closed(user, ours)
