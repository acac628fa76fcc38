"""One rule of a policy file: who, when, in which mode."""

from __future__ import annotations

import re
from zoneinfo import ZoneInfo

from session_agent.model import Grant
from session_agent.policy.conditions import (
    All,
    Any,
    Condition,
    Everyone,
    HasAttribute,
    InGroup,
    IsUser,
    Not,
)
from session_agent.policy.document import Keys, Node, Problems, Text
from session_agent.policy.fields import Fields
from session_agent.policy.model import Rule
from session_agent.policy.times import (
    Validity,
    Window,
    parse_days,
    parse_instant,
    parse_minute,
    parse_zone,
)

WHO = ("everyone", "groups", "users", "compound", "all", "any", "not")
WHEN = ("from", "until", "windows", "time_zone")
_COMPARISON = re.compile(r"\s*([A-Za-z_][\w.:/-]*)\s*(==|!=)\s*(.*\S)\s*", re.DOTALL)


def zone_of(fields: Fields, outer: ZoneInfo | None) -> ZoneInfo | None:
    """The zone that `time_zone` names, else the one that holds around it."""
    name = fields.text("time_zone")
    if not name:
        return outer
    try:
        return parse_zone(name)
    except ValueError as error:
        fields.error("time_zone", str(error))
        return outer


def rule(
    node: Node, key: str, problems: Problems, zone: ZoneInfo | None, *, denies: bool
) -> Rule | None:
    """The rule that `node` says; None if it is none."""
    mode_keys = () if denies else ("mode",)
    fields = Fields.of(node, key, problems, known=(*WHO, *mode_keys, *WHEN, "because"))
    if fields is None:
        return None
    condition = _who(fields)
    validity = _when(fields, zone)
    mode = Grant.HIDDEN if denies else fields.mode("mode")
    if condition is None:
        return None
    return Rule(condition, mode, validity, fields.text("because"), fields.at)


def _who(fields: Fields) -> Condition | None:
    """`groups` and `users` are joined as `compound` says; what stands beside them must hold besides."""
    parts: list[Condition] = []
    if fields.has("everyone"):
        fields.choice("everyone", ("true",))
        parts.append(Everyone())
    named = _named(fields)
    if named is not None:
        parts.append(named)
    for name, kind in (("all", All), ("any", Any)):
        if fields.has(name):
            found = [_expression(part, key, fields.problems) for part, key in fields.items(name)]
            if not found:
                fields.error(name, "expected a list of conditions; an empty one says nothing")
            parts.append(kind(tuple(part for part in found if part is not None)))
    negated = fields.get("not")
    if negated is not None:
        part = _expression(negated, fields.dotted("not"), fields.problems)
        if part is not None:
            parts.append(Not(part))
    if not parts:
        message = "says of nobody; give groups, users, all, any, not, or `everyone: true`"
        fields.problems.error(fields.at, fields.key, message)
        return None
    if fields.has("everyone") and len(parts) > 1:
        fields.error("everyone", "stands alone: what else is given would narrow it")
    return parts[0] if len(parts) == 1 else All(tuple(parts))


def _named(fields: Fields) -> Condition | None:
    groups, users = fields.names("groups"), fields.names("users")
    for name in ("groups", "users"):
        if fields.has(name) and not list(fields.items(name)):
            fields.error(name, "is empty: it would match nobody")
    compound = fields.choice("compound", ("any", "all"), required=False)
    if not groups and not users:
        if compound:
            fields.error("compound", "joins `groups` and `users`, of which there are none")
        return None
    if compound == "all":
        each: list[Condition] = [InGroup(frozenset({name})) for name in sorted(groups)]
        each += [IsUser(frozenset({name})) for name in sorted(users)]
        return each[0] if len(each) == 1 else All(tuple(each))
    if not users:
        return InGroup(groups)
    if not groups:
        return IsUser(users)
    return Any((InGroup(groups), IsUser(users)))


def _expression(node: Node, key: str, problems: Problems) -> Condition | None:
    """A comparison of an attribute, or keys as in a rule."""
    if isinstance(node, Keys):
        return _who(Fields(node, key, problems, known=WHO))
    expected = "expected a comparison, such as department == legal, or keys such as groups:"
    found = _COMPARISON.fullmatch(node.value) if isinstance(node, Text) else None
    if found is None:
        problems.error(node.at, key, expected)
        return None
    equal = HasAttribute(found[1], _unquoted(found[3]))
    return equal if found[2] == "==" else Not(equal)


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def _when(fields: Fields, outer: ZoneInfo | None) -> Validity:
    zone = zone_of(fields, outer)
    limits = {}
    for name in ("from", "until"):
        text = fields.text(name)
        if text:
            try:
                limits[name] = parse_instant(text, zone, end=name == "until")
            except ValueError as error:
                fields.error(name, str(error))
    windows = tuple(
        window
        for node, key in fields.items("windows")
        if (window := _window(node, key, fields.problems, zone)) is not None
    )
    if fields.has("windows") and not list(fields.items("windows")):
        fields.error("windows", "is empty: the rule would never hold")
    return Validity(limits.get("from"), limits.get("until"), windows)


def _window(node: Node, key: str, problems: Problems, outer: ZoneInfo | None) -> Window | None:
    fields = Fields.of(node, key, problems, known=("days", "from", "until", "time_zone"))
    if fields is None:
        return None
    zone = zone_of(fields, outer)
    if zone is None and not fields.has("time_zone"):
        problems.error(fields.at, key, "says no time zone; give `time_zone`")
    days: frozenset[int] = frozenset() if fields.has("days") else frozenset(range(7))
    minutes = {"from": 0, "until": 24 * 60}
    try:
        for name in fields.names("days"):
            days |= parse_days(name)
    except ValueError as error:
        fields.error("days", str(error))
    for name in minutes:
        text = fields.text(name)
        if text:
            try:
                minutes[name] = parse_minute(text)
            except ValueError as error:
                fields.error(name, str(error))
    if not days:
        fields.error("days", "expected days, such as [mon-fri]")
    if (
        minutes["from"] % (24 * 60) == minutes["until"] % (24 * 60)
        and minutes["until"] - minutes["from"] != 24 * 60
    ):
        fields.error("until", "must differ from `from`; leave both out for whole days")
    return None if zone is None else Window(days, minutes["from"], minutes["until"], zone)
