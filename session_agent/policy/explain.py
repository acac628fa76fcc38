"""Why a user does or does not see a folder, rule by rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from session_agent.model import Grant
from session_agent.policy.conditions import Condition, HasAttribute, Who, leaves
from session_agent.policy.evaluate import evaluate, folder_verdicts, known
from session_agent.policy.identity import Identity
from session_agent.policy.model import Folder, Policy, Rule


@dataclass(frozen=True, slots=True)
class RuleAnswer:
    """One rule's part in the outcome. `part` is the subfolder, "" for the folder itself."""

    part: str
    line: int
    rule: str
    answer: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The outcome for a folder and its parts, and what each rule has to do with it."""

    folder: str
    modes: tuple[tuple[str, Grant, str], ...]  # part, mode, because
    rules: tuple[RuleAnswer, ...]


def explain(
    policy: Policy, identity: Identity | None, instant: datetime, name: str
) -> Explanation | None:
    """The explanation for the folder of that name; None if there is none."""
    folder = next((folder for folder in policy.folders if folder.name == name), None)
    if folder is None:
        return None
    who = known(policy, identity)
    answers = _answers("", folder.deny, folder.access, who, instant)
    answers += _implied(policy, folder, who, instant)
    for subfolder in folder.subfolders:
        answers += _answers(subfolder.path, subfolder.deny, subfolder.access or (), who, instant)
    modes = tuple(
        (grant.subfolder, grant.mode, grant.because)
        for grant in evaluate(policy, identity, instant)
        if grant.name == name
    )
    return Explanation(name, modes, tuple(answers))


def _answers(
    part: str,
    deny: Sequence[Rule],
    access: Sequence[Rule],
    who: Who | None,
    instant: datetime,
) -> list[RuleAnswer]:
    return [
        RuleAnswer(part, rule.at.line, _text(rule), _answer(rule, who, instant))
        for rule in (*deny, *access)
    ]


def _text(rule: Rule) -> str:
    verb = "denies" if rule.mode is Grant.HIDDEN else f"gives {rule.mode} to"
    return f"{verb} {rule.condition}"


def _answer(rule: Rule, who: Who | None, instant: datetime) -> str:
    held = rule.condition.holds(who)
    denies = rule.mode is Grant.HIDDEN
    if not rule.validity.holds(instant):
        return f"does not match: {_time(rule, instant)}"
    if held is None:
        why = _not_known(rule.condition, who)
        return f"matches: {why}, which counts as denied" if denies else f"does not match: {why}"
    return "matches" if held else "does not match"


def _time(rule: Rule, instant: datetime) -> str:
    validity = rule.validity
    if validity.start is not None and instant < validity.start:
        return f"not before {validity.start.isoformat()}"
    if validity.end is not None and instant >= validity.end:
        return f"over since {validity.end.isoformat()}"
    return "outside its windows"


def _not_known(condition: Condition, who: Who | None) -> str:
    if who is None:
        return "the user is not known"
    missing = {
        leaf.name
        for leaf in leaves(condition)
        if isinstance(leaf, HasAttribute) and leaf.name not in who.attributes
    }
    return f"{' and '.join(sorted(missing))} is not known of the user"


def _implied(
    policy: Policy, folder: Folder, who: Who | None, instant: datetime
) -> list[RuleAnswer]:
    found = []
    verdicts = folder_verdicts(policy, who, instant)
    for other, verdict in zip(policy.folders, verdicts, strict=True):
        for implication in other.implies:
            if implication.folder == folder.name:
                mode = implication.mode or "the same mode"
                seen = verdict.mode is not Grant.HIDDEN
                answer = "matches" if seen else f"does not match: {other.name} is hidden"
                text = f"gives {mode} to whoever sees {other.name}"
                found.append(RuleAnswer("", implication.at.line, text, answer))
    return found
