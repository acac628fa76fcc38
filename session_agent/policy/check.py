"""What a policy file must not say although each line of it is well-formed, and what is probably not meant."""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from session_agent.policy.conditions import InGroup, leaves
from session_agent.policy.document import Position, Problem, Problems, Severity
from session_agent.policy.membership import Group, Membership
from session_agent.policy.model import Folder, Policy, Rule
from session_agent.policy.worlds import covers, satisfiable

T = TypeVar("T", bound=Hashable)

_GUESSED = 500  # names among which a likely one is looked for
_COMPARED = 32  # rules of one folder that are compared with each other


def groups(defined: Mapping[str, Group], problems: Problems) -> None:
    """Nested groups exist and do not contain themselves; no provider's name stands for two groups."""
    provided: dict[str, str] = {}
    for group in defined.values():
        key = f"groups.{group.name}"
        for name in sorted(group.groups - defined.keys()):
            problems.error(group.at, f"{key}.groups", _unknown(name, defined))
        for name in sorted(group.provided or ()):
            if name in provided:
                message = f"{name} already stands for the group {provided[name]}"
                problems.error(group.at, f"{key}.provided", message)
            provided[name] = group.name
    graph = {name: sorted(group.groups & defined.keys()) for name, group in defined.items()}
    cycle = _sorted_or_cycle(graph)[1]
    if cycle:
        message = f"contain each other: {' → '.join(cycle)}"
        problems.error(defined[cycle[0]].at, f"groups.{cycle[0]}.groups", message)


def folders(found: Sequence[Folder], defined: Mapping[str, Group], problems: Problems) -> None:
    """Names are unique, places do not overlap, and groups exist where any is defined."""
    seen: dict[str, Folder] = {}
    paths, targets = Places("path"), Places("target")
    for n, folder in enumerate(found):
        key = f"folders[{n}]"
        if folder.name in seen and folder.name:
            first = seen[folder.name].at.line
            problems.error(
                folder.at, f"{key}.name", f"{folder.name}: taken by the folder in line {first}"
            )
        seen[folder.name] = folder
        paths.add(folder.path, folder, key, problems)
        targets.add(folder.target, folder, key, problems)
        if defined:
            for where, rule in all_rules(folder, key):
                for leaf in leaves(rule.condition):
                    unknown = leaf.groups - defined.keys() if isinstance(leaf, InGroup) else ()
                    for name in sorted(unknown):
                        problems.error(rule.at, where, _unknown(name, defined))
        parts: dict[str, int] = {}
        for subfolder in folder.subfolders:
            if subfolder.path in parts:
                message = f"{subfolder.path}: has rules in line {parts[subfolder.path]} already"
                problems.error(subfolder.at, f"{key}.subfolders", message)
            parts[subfolder.path] = subfolder.at.line


def implications(found: Sequence[Folder], problems: Problems) -> list[int]:
    """The order in which folders can be evaluated; implied ones exist and do not imply themselves."""
    numbers = {folder.name: n for n, folder in enumerate(found)}
    implied_by: dict[int, list[int]] = {n: [] for n in range(len(found))}
    for n, folder in enumerate(found):
        for implication in folder.implies:
            number = numbers.get(implication.folder)
            if number is None:
                message = _unknown(implication.folder, numbers, "folder")
                problems.error(implication.at, f"folders[{n}].implies", message)
            else:
                implied_by[number].append(n)
    order, cycle = _sorted_or_cycle(implied_by)
    if cycle:
        chain = " → ".join(found[n].name for n in reversed(cycle))
        message = f"folders imply each other: {chain}"
        problems.error(found[cycle[0]].at, f"folders[{cycle[0]}].implies", message)
    return order


def rules(found: Sequence[Folder], membership: Membership, problems: Problems) -> None:
    """Warn of rules that can never match, and of those that another makes superfluous."""
    implied = {implication.folder for folder in found for implication in folder.implies}
    for n, folder in enumerate(found):
        key = f"folders[{n}]"
        _compare(folder.access, folder.deny, f"{key}.access", membership, problems)
        for m, subfolder in enumerate(folder.subfolders):
            where = f"{key}.subfolders[{m}].access"
            _compare(subfolder.access or (), subfolder.deny, where, membership, problems)
        for where, rule in all_rules(folder, key):
            validity = rule.validity
            if validity.start and validity.end and validity.start >= validity.end:
                problems.warn(rule.at, where, "can never match: it ends before it begins")
            elif not satisfiable(rule.condition, membership):
                problems.warn(rule.at, where, "can never match: its condition contradicts itself")
        if not folder.access and folder.name not in implied:
            problems.warn(folder.at, key, "nothing gives access to it, so nobody ever sees it")


def expired(policy: Policy, instant: datetime) -> list[Problem]:
    """Rules whose time is over."""
    return [
        Problem(rule.at, where, f"is over since {rule.validity.end.isoformat()}", Severity.WARNING)
        for n, folder in enumerate(policy.folders)
        for where, rule in all_rules(folder, f"folders[{n}]")
        if rule.validity.end is not None
        and rule.validity.end <= instant
        # One that ends before it begins has been told.
        and not (rule.validity.start is not None and rule.validity.start >= rule.validity.end)
    ]


def name_as_target(name: str, at: Position, key: str, problems: Problems) -> None:
    """A name that is to be a folder below /vault must be able to be one."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "{" in name:
        problems.error(at, key, "cannot be a folder's name in the vault; give `target`")


def all_rules(folder: Folder, key: str) -> Iterable[tuple[str, Rule]]:
    """Every rule of a folder and its subfolders, with its key."""
    for kind, some in (("access", folder.access), ("deny", folder.deny)):
        for n, rule in enumerate(some):
            yield f"{key}.{kind}[{n}]", rule
    for m, subfolder in enumerate(folder.subfolders):
        for kind, some in (("access", subfolder.access or ()), ("deny", subfolder.deny)):
            for n, rule in enumerate(some):
                yield f"{key}.subfolders[{m}].{kind}[{n}]", rule


class Places:
    """Paths that must not contain each other. A placeholder may stand for any name."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._root: _Place = _Place()

    def add(self, path: str, folder: Folder, key: str, problems: Problems) -> None:
        """Note a folder's path; tell if another one is the same, above, or below."""
        if not path:
            return  # wrong, and told already
        parts = path.strip("/").split("/")
        other = self._overlapping(parts)
        if other is not None:
            message = f"{path} overlaps {getattr(other, self._kind)} of {other.name} in line {other.at.line}"
            problems.error(folder.at, f"{key}.{self._kind}", message + self._hint())
        place = self._root
        for part in parts:
            place = place.below.setdefault("*" if "{" in part else part, _Place())
        place.folder = place.folder or folder

    def _hint(self) -> str:
        return "; give the inner one as a subfolder" if self._kind == "path" else ""

    def _overlapping(self, parts: list[str]) -> Folder | None:
        here = [self._root]
        for part in parts:
            if "{" in part:
                here = [below for place in here for below in place.below.values()]
            else:
                here = [place.below[p] for place in here for p in (part, "*") if p in place.below]
            for place in here:
                if place.folder is not None:
                    return place.folder
        return here[0].any_folder() if here else None


class _Place:
    """A component of a path."""

    __slots__ = ("below", "folder")

    def __init__(self) -> None:
        self.below: dict[str, _Place] = {}
        self.folder: Folder | None = None

    def any_folder(self) -> Folder | None:
        place = self
        while place.folder is None and place.below:
            place = next(iter(place.below.values()))
        return place.folder


def _compare(
    access: Sequence[Rule],
    deny: Sequence[Rule],
    key: str,
    membership: Membership,
    problems: Problems,
) -> None:
    if len(access) + len(deny) > _COMPARED:
        return
    for n, rule in enumerate(access):
        for other in deny:
            if covers(other, rule, membership):
                problems.warn(
                    rule.at, f"{key}[{n}]", f"is unreachable: line {other.at.line} denies all of it"
                )
                break
        else:
            for m, other in enumerate(access):
                # Of two that say the same the first one stays.
                stronger = other.mode.rank > rule.mode.rank or (other.mode is rule.mode and m < n)
                twin = other.mode is rule.mode and m > n and not covers(rule, other, membership)
                if m != n and (stronger or twin) and covers(other, rule, membership):
                    message = f"is unreachable: line {other.at.line} gives as much to all of them"
                    problems.warn(rule.at, f"{key}[{n}]", message)
                    break


def _sorted_or_cycle(graph: Mapping[T, Sequence[T]]) -> tuple[list[T], list[T]]:
    try:
        return list(graphlib.TopologicalSorter(graph).static_order()), []
    except graphlib.CycleError as error:
        return [], error.args[1]


def _unknown(name: str, known: Iterable[str], kind: str = "group") -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1) if len(names) <= _GUESSED else []
    guess = f"; did you mean {close[0]}?" if close else ""
    return f"there is no {kind} {name}{guess}"
