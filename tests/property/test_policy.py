"""The evaluator against an independent reading of the same policy: slow, literal, and on plain data."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from session_agent.policy.evaluate import evaluate, next_change
from session_agent.policy.identity import Identity
from session_agent.policy.schema import parse_policy

GROUPS, USERS, NAMES, VALUES = "ghij", ["ann", "bob"], ["dept", "region"], ["x", "y"]
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
MODES = ["hidden", "ro", "rw"]
ZONE = "Europe/Berlin"
START = datetime(2026, 3, 27, tzinfo=UTC)  # two days before clocks go forward

lists = st.lists
comparisons = st.builds(
    lambda name, sign, value: f"{name} {sign} {value}",
    st.sampled_from(NAMES),
    st.sampled_from(["==", "!="]),
    st.sampled_from(VALUES),
)
named = st.fixed_dictionaries(
    {"groups": lists(st.sampled_from(GROUPS), min_size=1, max_size=3)},
    optional={
        "users": lists(st.sampled_from(USERS), min_size=1, max_size=2),
        "compound": st.sampled_from(["any", "all"]),
    },
)
expressions = st.recursive(
    comparisons | named,
    lambda inner: st.fixed_dictionaries(
        {"any": lists(inner, min_size=1, max_size=3)},
        optional={"all": lists(inner, min_size=1, max_size=2), "not": inner},
    ),
    max_leaves=5,
)
who = (
    st.just({"everyone": "true"})
    | named
    | st.fixed_dictionaries(
        {"any": lists(expressions, min_size=1, max_size=2)},
        optional={
            "not": expressions,
            "groups": lists(st.sampled_from(GROUPS), min_size=1, max_size=2),
        },
    )
)
instants = st.integers(0, 8 * 24 * 4).map(lambda n: START + timedelta(minutes=15 * n))
clock = st.integers(0, 23).map(lambda hour: f"{hour:02}:30")
windows = st.fixed_dictionaries(
    {},
    optional={
        "days": lists(st.sampled_from([*DAYS, "sat-mon"]), min_size=1, max_size=3),
        "from": clock,
        "until": clock,
    },
).filter(lambda window: window.get("from", 0) != window.get("until", 1))
when = st.fixed_dictionaries(
    {},
    optional={
        "from": instants.map(datetime.isoformat),
        "until": instants.map(datetime.isoformat),
        "windows": lists(windows, min_size=1, max_size=2),
    },
)
denials = lists(st.builds(lambda a, b: a | b, who, when), max_size=1)
grants = lists(
    st.builds(lambda a, b, m: a | b | {"mode": m}, who, when, st.sampled_from(["ro", "rw"])),
    max_size=3,
)


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    folders: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 4))):
        implied = [
            draw(st.sampled_from([f"f{below}", {"folder": f"f{below}", "mode": "ro"}]))
            for below in range(number)
            if draw(st.booleans())
        ]
        parts = []
        for path in ("p", "p/q", "r"):
            kind = draw(st.sampled_from(["none", "mode", "access", "deny"]))
            part: dict[str, Any] = {"path": path}
            if kind == "mode":
                part["mode"] = draw(st.sampled_from(["ro", "rw"]))
            if kind == "access":
                part["access"] = draw(grants)
            if kind != "none":
                parts.append(part | {"deny": draw(denials)})
        folders.append(
            {
                "name": f"f{number}",
                "path": f"/shared/{number}",
                "access": draw(grants),
                "deny": draw(denials),
                "implies": implied,
                "subfolders": parts,
            }
        )
    found: dict[str, Any] = {"time_zone": ZONE, "folders": draw(st.permutations(folders))}
    if draw(st.booleans()):
        found["groups"] = {
            "g": {"groups": draw(lists(st.sampled_from("hij"), max_size=2))},
            "h": {"members": draw(lists(st.sampled_from(USERS), max_size=1)), "groups": ["i"]},
            "i": {"provided": ["I"]},
            "j": draw(lists(st.sampled_from(USERS), max_size=2)),
        }
    return found


people = st.none() | st.builds(
    Identity,
    st.sampled_from([*USERS, "eve"]),
    st.just(""),
    st.frozensets(st.sampled_from([*GROUPS, "I"])),
    st.dictionaries(st.sampled_from(NAMES), st.frozensets(st.sampled_from(VALUES))),
)


class Reading:
    """The policy read by hand, for one person at one instant."""

    def __init__(self, policy: dict[str, Any], person: Identity | None, instant: datetime) -> None:
        self.policy = policy
        self.person = person
        self.local = instant.astimezone(ZoneInfo(ZONE))
        self.instant = instant
        self.groups = self.member_of()

    def member_of(self) -> set[str]:
        if self.person is None:
            return set()
        definitions = self.policy.get("groups")
        if definitions is None:
            return set(self.person.groups)
        return {name for name in definitions if self.in_group(name)}

    def in_group(self, name: str) -> bool:
        assert self.person is not None
        definition = self.policy["groups"][name]
        if isinstance(definition, list):
            definition = {"members": definition}
        return (
            self.person.user in definition.get("members", [])
            or any(claim in self.person.groups for claim in definition.get("provided", [name]))
            or any(self.in_group(inner) for inner in definition.get("groups", []))
        )

    # Two questions in place of one with three answers: surely so, and possibly so.

    def surely(self, expression: Any) -> bool:
        if isinstance(expression, str):
            name, sign, value = expression.split()
            if self.person is None or name not in self.person.attributes:
                return False
            return (value in self.person.attributes[name]) == (sign == "==")
        answers = []
        if "everyone" in expression:
            answers.append(True)
        if "groups" in expression or "users" in expression:
            each = [group in self.groups for group in expression.get("groups", [])]
            user = None if self.person is None else self.person.user
            each += [user == name for name in expression.get("users", [])]
            together = all(each) if expression.get("compound") == "all" else any(each)
            answers.append(self.person is not None and together)
        if "all" in expression:
            answers.append(all(self.surely(part) for part in expression["all"]))
        if "any" in expression:
            answers.append(any(self.surely(part) for part in expression["any"]))
        if "not" in expression:
            answers.append(not self.possibly(expression["not"]))
        return all(answers)

    def possibly(self, expression: Any) -> bool:
        if isinstance(expression, str):
            name = expression.split()[0]
            unknown = self.person is None or name not in self.person.attributes
            return unknown or self.surely(expression)
        if self.person is None:
            named_parts = True
        else:
            named_parts = self.surely(
                {k: v for k, v in expression.items() if k in ("groups", "users", "compound")}
            )
        return (
            named_parts
            and all(self.possibly(part) for part in expression.get("all", []))
            and ("any" not in expression or any(self.possibly(part) for part in expression["any"]))
            and ("not" not in expression or not self.surely(expression["not"]))
        )

    def in_time(self, rule: dict[str, Any]) -> bool:
        if "from" in rule and self.instant < datetime.fromisoformat(rule["from"]):
            return False
        if "until" in rule and self.instant >= datetime.fromisoformat(rule["until"]):
            return False
        return "windows" not in rule or any(self.in_window(window) for window in rule["windows"])

    def in_window(self, window: dict[str, Any]) -> bool:
        """Write out every minute of the week at which it is open."""
        start, end = (
            60 * int(text[:2]) + int(text[3:])
            for text in (window.get("from", "00:00"), window.get("until", "24:00"))
        )
        length = end - start if end > start else end - start + 1440
        days = set()
        for day in window.get("days", ["mon-sun"]):
            spans = {"sat-mon": [5, 6, 0], "mon-sun": list(range(7))}
            days |= set(spans.get(day) or [DAYS.index(day)])
        week = {(day * 1440 + start + n) % 10080 for day in days for n in range(length)}
        return self.local.weekday() * 1440 + self.local.hour * 60 + self.local.minute in week

    def mode(self, access: list[Any], deny: list[Any]) -> str:
        if self.denied(deny):
            return "hidden"
        given = [rule["mode"] for rule in access if self.in_time(rule) and self.surely(rule)]
        return max(given, key=MODES.index, default="hidden")

    def denied(self, deny: list[Any]) -> bool:
        return any(self.in_time(rule) and self.possibly(rule) for rule in deny)

    def folder(self, name: str) -> str:
        folder = next(f for f in self.policy["folders"] if f["name"] == name)
        if self.denied(folder["deny"]):
            return "hidden"
        found = [self.mode(folder["access"], folder["deny"])]
        for other in self.policy["folders"]:
            for implied in other["implies"]:
                target = implied if isinstance(implied, str) else implied["folder"]
                outer = self.folder(other["name"]) if target == name else "hidden"
                if outer != "hidden":
                    found.append(outer if isinstance(implied, str) else implied["mode"])
        return max(found, key=MODES.index)

    def part(self, name: str, path: str) -> str:
        folder = next(f for f in self.policy["folders"] if f["name"] == name)
        parts = {part["path"]: part for part in folder["subfolders"]}
        above = path.split("/")[:-1]
        outer = self.part(name, "/".join(above)) if "/".join(above) in parts else self.folder(name)
        part = parts[path]
        if outer == "hidden" or self.denied(part["deny"]):
            return "hidden"
        if "access" in part:
            return self.mode(part["access"], part["deny"])
        return str(part.get("mode", outer))

    def everything(self) -> dict[tuple[str, str], str]:
        found = {}
        for folder in self.policy["folders"]:
            found[folder["name"], ""] = self.folder(folder["name"])
            for part in folder["subfolders"]:
                found[folder["name"], part["path"]] = self.part(folder["name"], part["path"])
        return found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies(), people, instants)
def test_the_evaluator_reads_a_policy_as_a_person_would(
    policy: dict[str, Any], person: Identity | None, instant: datetime
) -> None:
    parsed = parse_policy(json.dumps(policy).encode(), "policy.yaml")
    found = {(g.name, g.subfolder): str(g.mode) for g in evaluate(parsed, person, instant)}
    assert found == Reading(policy, person, instant).everything()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies(), people, instants, st.integers(1, 3 * 24 * 60))
def test_nothing_changes_before_the_next_change(
    policy: dict[str, Any], person: Identity | None, instant: datetime, minutes: int
) -> None:
    """But for the hour that clocks skip, where a window opens with the first minute there is."""
    parsed = parse_policy(json.dumps(policy).encode(), "policy.yaml")
    change = next_change(parsed, instant)
    later = instant + timedelta(minutes=minutes)
    if change is not None:
        later = min(later, change - timedelta(microseconds=1))
    skipped = datetime(2026, 3, 29, 1, tzinfo=UTC)
    if not instant < skipped <= later:
        assert evaluate(parsed, person, instant) == evaluate(parsed, person, later)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies(), people, instants, st.sampled_from(NAMES))
def test_leaving_a_claim_out_never_widens_access(
    policy: dict[str, Any], person: Identity | None, instant: datetime, name: str
) -> None:
    parsed = parse_policy(json.dumps(policy).encode(), "policy.yaml")
    full = evaluate(parsed, person, instant)
    less: list[Identity | None] = [None]
    if person is not None:
        rest = {key: value for key, value in person.attributes.items() if key != name}
        less.append(Identity(person.user, "", person.groups, rest))
    for poorer in less:
        for grant, fuller in zip(evaluate(parsed, poorer, instant), full, strict=True):
            assert grant.mode.rank <= fuller.mode.rank
