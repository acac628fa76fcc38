"""What a policy gives a user at an instant. Pure: the same answer for the same question, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from session_agent.model import Grant
from session_agent.policy import check
from session_agent.policy.conditions import Who
from session_agent.policy.fields import PLACEHOLDERS
from session_agent.policy.identity import Identity
from session_agent.policy.model import Folder, Policy, Rule, Subfolder


@dataclass(frozen=True, slots=True)
class FolderGrant:
    """What a user may do in one folder, or in a part of it that has rules of its own.

    `subfolder` is "" for the folder itself. `target` is where it is to appear. `because` is for people.
    """

    name: str
    subfolder: str
    path: str
    target: str
    mode: Grant
    because: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a list of rules comes to, before and after its denials, and the rule that decides, if one does."""

    mode: Grant
    rule: Rule | None
    because: str


def evaluate(policy: Policy, identity: Identity | None, instant: datetime) -> list[FolderGrant]:
    """A grant for every folder, each followed by its subfolders, in the file's order.

    Without an identity only that is given which needs none.
    """
    return grants_of(policy, identity, known(policy, identity), instant)


def grants_of(
    policy: Policy, identity: Identity | None, who: Who | None, instant: datetime
) -> list[FolderGrant]:
    """As evaluate, for somebody whose groups are given in the policy's own words."""
    verdicts = folder_verdicts(policy, who, instant)
    grants: list[FolderGrant] = []
    for folder, verdict in zip(policy.folders, verdicts, strict=True):
        grants += _grants(folder, verdict, identity, who, instant)
    return grants


def known(policy: Policy, identity: Identity | None) -> Who | None:
    """What conditions may ask of this identity."""
    if identity is None:
        return None
    groups = policy.membership.of_claims(identity.user, identity.groups)
    return Who(identity.user, groups, identity.attributes)


def folder_verdicts(policy: Policy, who: Who | None, instant: datetime) -> list[Verdict]:
    """A verdict for each folder, implications included."""
    implied: dict[str, Verdict] = {}
    verdicts: list[Verdict | None] = [None] * len(policy.folders)
    for number in policy.order:
        folder = policy.folders[number]
        verdict = judge(folder.access, folder.deny, who, instant, folder.because)
        derived = implied.get(folder.name)
        denied = verdict.rule is not None and verdict.mode is Grant.HIDDEN
        if derived is not None and not denied and derived.mode.rank > verdict.mode.rank:
            verdict = derived
        verdicts[number] = verdict
        if verdict.mode is not Grant.HIDDEN:
            for implication in folder.implies:
                mode = implication.mode or verdict.mode
                before = implied.get(implication.folder)
                if before is None or mode.rank > before.mode.rank:
                    reason = f"access to {folder.name} includes it ({verdict.because})"
                    implied[implication.folder] = Verdict(mode, None, reason)
    return [verdict for verdict in verdicts if verdict is not None]


def judge(
    access: Sequence[Rule],
    deny: Sequence[Rule],
    who: Who | None,
    instant: datetime,
    because: str = "",
) -> Verdict:
    """The strongest of the rules that match, unless one that denies does. What is not known denies."""
    for rule in deny:
        if rule.validity.holds(instant) and rule.condition.holds(who) is not False:
            return Verdict(Grant.HIDDEN, rule, rule.because or f"denied to {rule.condition}")
    best: Rule | None = None
    for rule in access:
        if (
            (best is None or rule.mode.rank > best.mode.rank)
            and rule.condition.holds(who) is True
            and rule.validity.holds(instant)
        ):
            best = rule
            if best.mode is Grant.RW:
                break
    if best is None:
        return Verdict(Grant.HIDDEN, None, "no rule matches")
    return Verdict(best.mode, best, best.because or because or f"{best.condition}")


def next_change(policy: Policy, instant: datetime) -> datetime | None:
    """The first instant after `instant` at which any rule may begin or cease to hold."""
    changes = (
        rule.validity.next_change(instant)
        for folder in policy.folders
        for _, rule in check.all_rules(folder, "")
        if not rule.validity.always
    )
    return min((change for change in changes if change is not None), default=None)


def _grants(
    folder: Folder,
    verdict: Verdict,
    identity: Identity | None,
    who: Who | None,
    instant: datetime,
) -> list[FolderGrant]:
    inside = [subfolder.path for subfolder in folder.subfolders]
    filled = fill((folder.path, folder.target, *inside), identity)
    if filled is None:  # of a part that cannot be named it could not be told where its rules hold
        reason = "a path in it needs a name or number that this user does not have"
        verdict = Verdict(Grant.HIDDEN, None, reason)
        filled = (folder.path, folder.target, *inside)
    path, target, *parts = filled
    found = {"": FolderGrant(folder.name, "", path, target, verdict.mode, verdict.because)}
    modes: dict[str, Verdict] = {"": verdict}
    for subfolder, part in zip(folder.subfolders, parts, strict=True):
        inner = subfolder_verdict(subfolder, enclosing(part, modes), who, instant)
        if part in modes and modes[part].mode.rank <= inner.mode.rank:
            continue  # {username} made it the same as another one: the weaker holds
        modes[part] = inner
        place = (f"{path}/{part}", f"{target}/{part}")
        found[part] = FolderGrant(folder.name, part, *place, inner.mode, inner.because)
    return list(found.values())


def enclosing(path: str, modes: Mapping[str, Verdict]) -> Verdict:
    """The verdict on what a subfolder lies in: the nearest that has one."""
    while path:
        path = path.rpartition("/")[0]
        if path in modes:
            return modes[path]
    return modes[""]


def subfolder_verdict(
    subfolder: Subfolder, outer: Verdict, who: Who | None, instant: datetime
) -> Verdict:
    """The verdict on a subfolder of something with the verdict `outer`."""
    if outer.mode is Grant.HIDDEN:
        return Verdict(Grant.HIDDEN, None, "what it lies in is hidden")
    if subfolder.access is not None:
        return judge(subfolder.access, subfolder.deny, who, instant, subfolder.because)
    denied = judge((), subfolder.deny, who, instant)
    if denied.rule is not None:
        return denied
    reason = subfolder.because or "for whoever sees what it lies in"
    return Verdict(subfolder.mode or outer.mode, None, reason)


def fill(texts: Sequence[str], identity: Identity | None) -> tuple[str, ...] | None:
    """The texts with the user's name and number in them; None if they are needed and cannot be used.

    A value that is no single name in a folder would lead somewhere else.
    """
    if not any("{" in text for text in texts):
        return tuple(texts)
    values = ("", "") if identity is None else (identity.user, identity.user_id)
    filled = []
    for text in texts:
        for placeholder, value in zip(PLACEHOLDERS, values, strict=True):
            if placeholder in text:
                if not _is_name(value):
                    return None
                text = text.replace(placeholder, value)  # noqa: PLW2901 - step by step
        filled.append(text)
    return tuple(filled)


def _is_name(value: str) -> bool:
    plain = not any(c in "/{}," or ord(c) < 32 or ord(c) == 127 for c in value)
    return plain and value not in ("", ".", "..") and len(value.encode("utf-8", "replace")) < 256
