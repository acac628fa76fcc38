"""Table tests: what an administrator expects of a policy, kept in a file beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from session_agent.model import Grant
from session_agent.policy.document import Keys, Position, Problems, parse, read, refuse
from session_agent.policy.evaluate import evaluate
from session_agent.policy.fields import Fields, text_of
from session_agent.policy.identity import Identity
from session_agent.policy.identity_file import identity_from
from session_agent.policy.model import Policy
from session_agent.policy.plan import label
from session_agent.policy.schema import load
from session_agent.policy.times import parse_instant

_KEYS = ("name", "user", "user_id", "groups", "attributes", "at", "expect", "others")


@dataclass(frozen=True, slots=True)
class Case:
    """One row: somebody, an instant, and the modes that are expected.

    `others`: the mode of every folder that `expected` does not name; None if it is left open.
    """

    name: str
    identity: Identity | None
    instant: datetime | None
    expected: dict[str, Grant]
    others: Grant | None
    at: Position


@dataclass(frozen=True, slots=True)
class Failure:
    """A folder whose mode is not the expected one."""

    case: str
    line: int
    folder: str
    expected: Grant
    found: Grant
    because: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the table came out."""

    policy: str
    cases: int
    failures: tuple[Failure, ...]


def run(file: str, now: datetime) -> Outcome:
    """Carry out every case of a table file; those without an instant at `now`. Raises PolicyError."""
    problems = Problems()
    root = parse(read(file), file, problems)
    if not isinstance(root, Keys):
        problems.error(Position(1, 1), "", "expected keys: policy, tests")
        raise refuse(file, problems.errors)
    fields = Fields(root, "", problems, known=("policy", "tests"))
    named = fields.text("policy") or "vault-permissions.yaml"
    cases = [
        case
        for node, key in fields.items("tests", required=True)
        if (part := Fields.of(node, key, problems, _KEYS)) is not None
        and (case := _case(part)) is not None
    ]
    if not cases:
        problems.error(fields.at, "tests", "there is no test")
    if problems.errors:
        raise refuse(file, problems.errors)
    path = os.path.join(os.path.dirname(file), named)
    policy = load(path)
    _refuse_unknown(policy, cases, file)
    failures = [failure for case in cases for failure in _failures(policy, case, now)]
    return Outcome(path, len(cases), tuple(failures))


def _case(fields: Fields) -> Case | None:
    expect = fields.get("expect")
    if not isinstance(expect, Keys):
        fields.error("expect", "expected folders with their modes, such as {wiki: ro}")
        return None
    expected = {}
    for name, node in expect.values.items():
        key = f"{fields.dotted('expect')}.{name}"
        mode = text_of(node, key, fields.problems)
        if mode in tuple(Grant):
            expected[name] = Grant(mode)
        elif mode:
            fields.problems.error(node.at, key, f"expected hidden, ro or rw, not {mode}")
    others = fields.choice("others", tuple(Grant), required=False)
    instant = None
    if fields.has("at"):
        try:
            instant = parse_instant(fields.text("at"), None, end=False)
        except ValueError as error:
            fields.error("at", str(error))
    name = fields.text("name") or f"test in line {fields.at.line}"
    return Case(
        name, identity_from(fields), instant, expected, Grant(others) if others else None, fields.at
    )


def _refuse_unknown(policy: Policy, cases: list[Case], file: str) -> None:
    problems = Problems()
    parts = {f"{f.name}/{s.path}" for f in policy.folders for s in f.subfolders}
    # Which part {username} stands for is known only with a user.
    known = policy.names() | parts
    literal = not any("{" in part for part in parts)
    for case in cases:
        for name in case.expected if literal else ():
            if name not in known:
                problems.error(case.at, "expect", f"the policy has no folder {name}")
    if problems.errors:
        raise refuse(file, problems.errors)


def _failures(policy: Policy, case: Case, now: datetime) -> list[Failure]:
    instant = case.instant or now.astimezone(UTC)
    grants = {label(grant): grant for grant in evaluate(policy, case.identity, instant)}
    failures = []
    for name in dict.fromkeys((*case.expected, *grants)):
        grant = grants.get(name)
        expected = case.expected.get(name)
        if expected is None:
            expected = case.others if grant is not None and not grant.subfolder else None
        found = Grant.HIDDEN if grant is None else grant.mode
        if expected is not None and found is not expected:
            because = "there is no such folder" if grant is None else grant.because
            failures.append(Failure(case.name, case.at.line, name, expected, found, because))
    return failures
