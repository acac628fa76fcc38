"""What plain Kasm would need for the same access, and where the file has what tips the scales.

How it is counted: a storage provider for each folder, a mapping for each folder and each group or user that
a rule names; for each rule that is no union of groups (an intersection, an exception, an attribute), each
denial, each part with rules of its own and each implication, a group made for it, and its mapping; for each
folder with two modes, a group of those who are in both. Each of these is one step in the administrator's
pages. Besides, one step at each beginning and end of a limited time; recurring windows need two for each day
of the week on which they open, every week.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from session_agent.policy import check
from session_agent.policy.conditions import InGroup, leaves
from session_agent.policy.kasm import translate
from session_agent.policy.model import Policy, Rule
from session_agent.policy.plan import Json

_MANY_FOLDERS = 5


@dataclass(frozen=True, slots=True)
class Counts:
    """What plain Kasm needs."""

    providers: int
    mappings: int
    extra_groups: int
    steps_once: int
    steps_each_week: int


@dataclass(frozen=True, slots=True)
class TippingPoint:
    """Something for which mappings alone are the wrong tool, and the lines where the file has it."""

    name: str
    lines: tuple[int, ...]


def groups_named(policy: Policy) -> frozenset[str]:
    """The groups that are defined or that a rule names."""
    named = {
        name
        for _, rule in _rules(policy)
        for leaf in leaves(rule.condition)
        if isinstance(leaf, InGroup)
        for name in leaf.groups
    }
    return frozenset(named | policy.groups.keys())


def count(policy: Policy) -> Counts:
    """See the module."""
    mappings, gaps = translate(policy)
    unions = {(one.folder.name, one.group, one.user) for one in mappings}
    made_for = [gap for gap in gaps if not gap.reason.startswith("limited in time")]
    limits = weekly = 0
    limited = 0
    for _, rule in _rules(policy):
        validity = rule.validity
        limits += (validity.start is not None) + (validity.end is not None)
        weekly += sum(2 * len(window.days) for window in validity.windows)
        limited += not validity.always
    providers = len(policy.folders)
    needed = len(unions) + len(made_for) + limited
    once = providers + needed + len(made_for) + limits
    return Counts(providers, needed, len(made_for), once, weekly)


def tipping_points(policy: Policy) -> list[TippingPoint]:
    """Those of the five that the file has."""
    _, gaps = translate(policy)
    lines = {
        "more than five shared folders with mixed rights": _mixed(policy),
        "one folder at two levels": [
            gap.line for gap in gaps if gap.reason.startswith("two modes")
        ],
        "groups that do not map": [
            gap.line
            for gap in gaps
            if any(word in gap.reason for word in ("intersection", "exception", "attributes"))
        ],
        "time-limited access": [
            rule.at.line for _, rule in _rules(policy) if not rule.validity.always
        ],
        "derived access": [
            implication.at.line for folder in policy.folders for implication in folder.implies
        ],
    }
    return [TippingPoint(name, tuple(found)) for name, found in lines.items() if found]


def _mixed(policy: Policy) -> list[int]:
    """The lines of the folders, if they are many and not all of one mode."""
    modes = {rule.mode for folder in policy.folders for rule in folder.access}
    if len(policy.folders) <= _MANY_FOLDERS or len(modes) < 2:
        return []
    return [folder.at.line for folder in policy.folders]


def as_json(policy: Policy) -> Json:
    """The comparison, in a shape that stays."""
    return {
        "folders": len(policy.folders),
        "groups": len(groups_named(policy)),
        "lines": policy.lines,
        "kasm": asdict(count(policy)),
        "tipping_points": [asdict(point) for point in tipping_points(policy)],
    }


def _rules(policy: Policy) -> list[tuple[str, Rule]]:
    return [found for folder in policy.folders for found in check.all_rules(folder, "")]
