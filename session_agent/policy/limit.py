"""The outcome of a policy as trees of names, one for each branch: what may be done where."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from session_agent.model import Branch, Grant
from session_agent.policy.evaluate import FolderGrant


class Limit:
    """What may be done at one place. `grant` None: it only leads to others, and shows nothing else.

    `below` are the places in it that have limits of their own; whatever else is in it is as it is.
    """

    __slots__ = ("_folded", "_rest", "below", "grant")

    def __init__(self, grant: Grant | None, below: Mapping[bytes, Limit] | None = None) -> None:
        self.grant = grant
        self.below = below or {}
        self._rest = self if not below and grant is not None else None
        self._folded = frozenset(_folded(name) for name in self.below)

    def child(self, name: bytes) -> Limit:
        """The limit of the entry `name`.

        A name that differs from one of `below` only in case or Unicode form is hidden: some file systems take
        the two for the same.
        """
        if self.below:
            found = self.below.get(name)
            if found is not None:
                return found
            if _folded(name) in self._folded:
                return HIDDEN
        return self._rest or _REST[self.grant]

    @property
    def hidden(self) -> bool:
        """Whether nothing is to be seen of it."""
        return self.grant is Grant.HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Limit) and self.grant is other.grant and self.below == other.below

    __hash__ = object.__hash__


def _folded(name: bytes) -> str:
    text = os.fsdecode(name)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


_REST = {grant: Limit(grant) for grant in Grant} | {None: Limit(Grant.HIDDEN)}
HIDDEN = _REST[Grant.HIDDEN]


class _Place:
    """A name while the trees are made. `grant` None: no rule speaks of it."""

    def __init__(self) -> None:
        self.grant: Grant | None = None
        self._away = 0  # how many names above it the place is that the rule speaks of
        self.leads = False  # to a branch that hangs in it and may be seen
        self.below: dict[str, _Place] = {}

    def say(self, grant: Grant, away: int) -> None:
        """A rule for a place so many names above: the nearest holds, of equally near ones the weakest."""
        if self.grant is None or away < self._away:
            self.grant, self._away = grant, away
        elif away == self._away:
            self.grant = min(self.grant, grant, key=_rank)

    def at(self, path: str) -> _Place:
        place = self
        for name in filter(None, path.split("/")):
            place = place.below.setdefault(name, _Place())
        return place

    def limit(self, outer: Grant | None) -> Limit:
        """With what holds around it."""
        grant = outer if self.grant is None else self.grant
        if grant is Grant.HIDDEN and not self.leads:
            return HIDDEN  # what lies in it is not seen either
        below = {os.fsencode(name): place.limit(grant) for name, place in self.below.items()}
        if grant is None and not self.leads and all(limit.hidden for limit in below.values()):
            return HIDDEN
        return Limit(None if grant is Grant.HIDDEN else grant, below)


def branch_limits(
    vault: str,
    branches: Sequence[Branch],
    grants: Iterable[FolderGrant] | None,
    ungoverned: Literal["hidden", "shown"],
) -> dict[str, Limit]:
    """The limits of every branch, by its name, and of the root branch, "".

    A folder is found in a branch by its target, or by its path, as the session has them mounted: either the
    branch lies at it or in it, or it lies in the branch. Where several folders come to the same place the
    weakest holds. `grants` None: the policy cannot be used, and every branch is hidden. The root branch is
    the user's own, but for places that the policy speaks of.
    """
    if grants is None:
        return {"": Limit(Grant.RW), **{branch.name: HIDDEN for branch in branches}}
    places = {branch.name: _Place() for branch in branches} | {"": _Place()}
    starts = [(branch.name, f"{vault}/{branch.name}") for branch in branches]
    starts += [
        (branch.name, branch.path)
        for branch in branches
        if (branch.name, branch.path) not in starts
    ]
    starts.append(("", vault))
    for grant in grants:
        for path in dict.fromkeys((grant.target, grant.path)):
            for name, start in starts:
                _enter(places[name], start, path, grant.mode, root=not name)
    # What hangs in others first, so that these know of it.
    for name in sorted(filter(None, places), key=lambda name: -name.count("/")):
        place = places[name]
        if place.grant is None and (ungoverned == "shown" or not place.below):
            place.grant = Grant.RW if ungoverned == "shown" else Grant.HIDDEN
        if not place.limit(None).hidden:
            _lead_to(name, places)
    places[""].grant = Grant.RW
    return {name: place.limit(None) for name, place in places.items()}


def _lead_to(name: str, places: Mapping[str, _Place]) -> None:
    """Let a branch that may be seen be found where it hangs."""
    outer = _enclosing(name, places)
    step = places[outer]
    step.leads = True
    for part in name.removeprefix(outer).strip("/").split("/")[:-1]:
        step = step.below.setdefault(part, _Place())
        step.leads = True


def _enter(branch: _Place, start: str, path: str, mode: Grant, *, root: bool) -> None:
    """Note what a grant for `path` says of the branch that begins at `start`."""
    if path == start or path.startswith(start + "/"):
        branch.at(path[len(start) :]).say(mode, 0)
    elif start.startswith(path + "/") and not root:
        branch.say(mode, start[len(path) :].count("/"))


def _enclosing(name: str, places: Mapping[str, object]) -> str:
    while name:
        name = name.rpartition("/")[0]
        if name in places:
            return name
    return ""


def _rank(grant: Grant) -> int:
    return grant.rank
