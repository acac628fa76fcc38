"""Conditions on who somebody is, with three answers: yes, no, and not known.

Not known counts against the user (Kleene's logic): access that depends on it is not given, and a denial that
depends on it holds. So leaving a claim out never widens access, not even through `not`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Who:
    """What a condition may ask: a user's name, all groups that follow from it, and attributes.

    `None` as a whole stands for somebody whose identity is not known.
    """

    user: str
    groups: frozenset[str]
    attributes: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Everyone:
    """Holds for everybody, known or not."""

    def holds(self, who: Who | None) -> bool | None:  # noqa: ARG002 - as the others
        """Yes."""
        return True

    def __str__(self) -> str:
        return "everyone"


@dataclass(frozen=True, slots=True)
class InGroup:
    """Membership of at least one of the groups."""

    groups: frozenset[str]

    def holds(self, who: Who | None) -> bool | None:
        """Not known only of somebody unknown: a known user's groups are known, too."""
        return None if who is None else not self.groups.isdisjoint(who.groups)

    def __str__(self) -> str:
        return _list("group", self.groups)


@dataclass(frozen=True, slots=True)
class IsUser:
    """Being one of the users."""

    users: frozenset[str]

    def holds(self, who: Who | None) -> bool | None:
        """Not known only of somebody unknown."""
        return None if who is None else who.user in self.users

    def __str__(self) -> str:
        return _list("user", self.users)


@dataclass(frozen=True, slots=True)
class HasAttribute:
    """`name == value`. An attribute may have several values; one that equals is enough."""

    name: str
    value: str

    def holds(self, who: Who | None) -> bool | None:
        """Not known of a user without that attribute."""
        values = None if who is None else who.attributes.get(self.name)
        return None if values is None else self.value in values

    def __str__(self) -> str:
        return f"{self.name} == {self.value}"


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite; of what is not known, not known."""

    part: Condition

    def holds(self, who: Who | None) -> bool | None:
        """See above."""
        found = self.part.holds(who)
        return None if found is None else not found

    def __str__(self) -> str:
        return f"not ({self.part})"


@dataclass(frozen=True, slots=True)
class All:
    """Each of the parts."""

    parts: tuple[Condition, ...]

    def holds(self, who: Who | None) -> bool | None:
        """No if one part does not, else not known if one is not."""
        answer: bool | None = True
        for part in self.parts:
            found = part.holds(who)
            if found is False:
                return False
            if found is None:
                answer = None
        return answer

    def __str__(self) -> str:
        return " and ".join(_nested(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Any:
    """At least one of the parts."""

    parts: tuple[Condition, ...]

    def holds(self, who: Who | None) -> bool | None:
        """Yes if one part does, else not known if one is not."""
        answer: bool | None = False
        for part in self.parts:
            found = part.holds(who)
            if found is True:
                return True
            if found is None:
                answer = None
        return answer

    def __str__(self) -> str:
        return " or ".join(_nested(part) for part in self.parts)


Condition: TypeAlias = Everyone | InGroup | IsUser | HasAttribute | Not | All | Any


def leaves(condition: Condition) -> Iterator[Everyone | InGroup | IsUser | HasAttribute]:
    """The conditions at the ends of the expression."""
    if isinstance(condition, Not):
        yield from leaves(condition.part)
    elif isinstance(condition, All | Any):
        for part in condition.parts:
            yield from leaves(part)
    else:
        yield condition


def _nested(part: Condition) -> str:
    return f"({part})" if isinstance(part, All | Any) else str(part)


def _list(kind: str, names: frozenset[str]) -> str:
    return f"{kind} " + " or ".join(sorted(names))
