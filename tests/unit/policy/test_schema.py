"""The policy file: what is accepted, and that every mistake is told with line, column and key."""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path

import pytest

from session_agent.errors import PolicyError
from session_agent.policy.document import SIZE_LIMIT, read
from session_agent.policy.schema import examine, load, parse_policy
from tests.support.policies import MONDAY_NOON, modes, person, policy_of

RULE = "access: [{groups: [g], mode: rw}]"


def problems(text: str) -> list[str]:
    """What is told of a policy, errors and warnings, without the file's name."""
    _, found = examine(textwrap.dedent(text).encode(), "f")
    return [problem.told("f").removeprefix("f:") for problem in found.found]


def folder(rest: str) -> str:
    return f"folders:\n  - name: a\n    path: /a\n    {rest}\n"


def test_the_grammar_of_the_planning_notes_is_kept() -> None:
    policy = policy_of(
        """
        folders:
          - name: engineering
            path: /shared/engineering
            access:
              - groups: [engineering]
                mode: rw
              - groups: [all-employees]
                mode: ro
          - name: deal-room-acme
            path: /shared/deals/acme
            access:
              - groups: [legal, executive]
                compound: all          # all = member of each; any = of one (default)
                mode: rw
        """
    )
    assert modes(policy, person("a", "legal", "executive", "all-employees")) == {
        "engineering": "ro",
        "deal-room-acme": "rw",
    }
    assert modes(policy, person("b", "legal")) == {
        "engineering": "hidden",
        "deal-room-acme": "hidden",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "1:1: error: expected keys; a policy begins with `folders:`"),
        ("[]", "1:1: error: expected keys; a policy begins with `folders:`"),
        ("groups: {}", "1:1: error: folders: is missing"),
        ("folders: x", "1:10: error: folders: expected a list"),
        ("folders: []\nfolder: []", "2:1: error: folder: there is no such key; did you mean folders?"),
        ("folders: []\nfolders: []", "2:1: error: folders: given twice, first in line 1"),
        ("folders:\n- x", "2:3: error: folders[0]: expected keys: name, path"),
        ("folders:\n- {path: /a}", "2:3: error: folders[0].name: is missing"),
        (folder("path: /b"), "4:5: error: folders[0].path: given twice, first in line 3"),
        (folder("acess: []"), "4:5: error: folders[0].acess: there is no such key; did you mean access?"),
        (folder("access: [{mode: rw}]"), "4:14: error: folders[0].access[0]: says of nobody"),
        (folder("access: [{groups: [g], mode: rx}]"), "4:28: error: folders[0].access[0].mode: expected ro"),
        (folder("access: [{groups: [g]}]"), "4:14: error: folders[0].access[0].mode: is missing"),
        (folder("access: [{groups: [], mode: rw}]"), "access[0].groups: is empty"),
        (folder("access: [{groups: g, mode: rw}]"), "access[0].groups: expected a list"),
        (folder("access: [{groups: [g], compound: some, mode: rw}]"), "compound: expected any or all"),
        (folder("access: [{everyone: true, groups: [g], mode: rw}]"), "everyone: stands alone"),
        (folder("access: [{everyone: maybe, mode: rw}]"), "everyone: expected true"),
        (folder("access: [{any: [], mode: rw}]"), "any: expected a list of conditions"),
        (folder("access: [{any: ['a = b'], mode: rw}]"), "any[0]: expected a comparison"),
        (folder("access: [{not: {mode: rw}, mode: rw}]"), "access[0].not.mode: there is no such key"),
        (folder("access: [{groups: [~], mode: rw}]"), "access[0].groups[0]: the value is missing"),
        (folder("access: [{groups: [{}], mode: rw}]"), "access[0].groups[0]: expected text"),
        (folder("deny: [{groups: [g], mode: ro}]"), "deny[0].mode: there is no such key"),
        (folder("implies: [b]"), "4:15: error: folders[0].implies: there is no folder b"),
        (folder("implies: [a]"), "folders imply each other: a → a"),
        (folder("subfolders: [{path: x}]"), "subfolders[0]: expected `mode`, `access` or `deny`"),
        (folder("subfolders: [{path: ../x, mode: ro}]"), "subfolders[0].path: expected a path relative"),
        (folder("subfolders: [{path: /x, mode: ro}]"), "subfolders[0].path: expected a path relative"),
        (folder("subfolders: [{path: x, mode: ro}, {path: x/, mode: rw}]"), "x: has rules in line 4 already"),
        (folder("subfolders: [{path: x, mode: ro, access: []}]"), "either `mode` or `access`"),
        (folder("storage: {type: floppy}"), "storage.type: expected bind or rclone"),
        (folder("target: vault"), "target: expected an absolute path"),
        ("folders: [{name: a, path: /a/../b}]", "folders[0].path: expected an absolute path"),
        ("folders: [{name: a, path: '/x/{user}'}]", "{user} is no placeholder"),
        ("folders: [{name: .., path: /a}]", "folders[0].name: cannot be a folder's name"),
        ("folders: [{name: a, path: /a}, {name: a, path: /b}]", "a: taken by the folder in line 1"),
        ("folders: [{name: a, path: /a}, {name: b, path: /a/b}]", "/a/b overlaps /a of a in line 1"),
        ("folders: [{name: a, path: /a/b}, {name: b, path: /a}]", "/a overlaps /a/b of a in line 1"),
        ("folders: [{name: a, path: /h/eve}, {name: b, path: '/h/{username}'}]", "overlaps /h/eve"),
        ("folders: [{name: a, path: '/h/{username}'}, {name: b, path: /h/eve/x}]", "overlaps /h/{username}"),
        ("folders: [{name: a, path: /a}, {name: b, path: /b, target: /vault/a}]", "overlaps /vault/a of a"),
        ("groups: {g: {groups: [h]}}\nfolders: []", "1:10: error: groups.g.groups: there is no group h"),
        ("groups: {g: {groups: [h]}, h: {groups: [g]}}\nfolders: []", "contain each other: "),
        ("groups: {g: {provided: [x]}, h: {provided: [x]}}\nfolders: []", "x already stands for the group g"),
        ("groups: {legal: []}\nfolders: [{name: a, path: /a, access: [{groups: [leagl], mode: ro}]}]",
         "there is no group leagl; did you mean legal?"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(text: str, told: str) -> None:
    assert any(told in line for line in problems(text)), problems(text)
    with pytest.raises(PolicyError, match="Nothing that this file governs is shown"):
        parse_policy(text.encode(), "f")


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ("from: 2026-12-01", "from: says no time zone"),
        ("from: soon", "from: expected an instant"),
        ("until: 2026-02-30", "until: there is no such day"),
        ("until: '9999-12-31'", "until: there is no such day"),
        ("time_zone: Mars/Base", "time_zone: expected a time zone"),
        ("time_zone: ../../etc/passwd", "time_zone: expected a time zone"),
        ("windows: []", "windows: is empty"),
        ("windows: [{days: [mon]}]", "windows[0]: says no time zone"),
        ("time_zone: UTC, windows: [{days: [monday]}]", "days: expected a day"),
        ("time_zone: UTC, windows: [{days: []}]", "days: expected days"),
        ("time_zone: UTC, windows: [{from: '25:00'}]", "from: expected a time of day"),
        ("time_zone: UTC, windows: [{from: '08:00', until: '08:00'}]", "until: must differ"),
    ],
)
def test_mistakes_in_times(when: str, told: str) -> None:
    text = folder(f"access: [{{groups: [g], mode: rw, {when}}}]")
    assert any(told in line for line in problems(text)), problems(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &x [1]\nb: *x", "anchors are not allowed"),
        ("folders: !!python/object/apply:os.system [x]", "tags such as"),
        ("<<: {folders: []}", "there is no such key"),
        ("? [a]\n: b", "a key must be text"),
        ("folders: []\n---\nfolders: []", "a second YAML document"),
    ],
)
def test_what_a_policy_does_not_need_of_yaml(text: str, told: str) -> None:
    assert any(told in line for line in problems(text)), problems(text)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"folders: [x", "error: not YAML"),
        (b"folders:\n  \xff", "f:2:3: error: not UTF-8 text"),
        (b"a: \x00", "not YAML"),
        (b"[" * 100_000, "f:1:41: error: nested deeper than 40 levels"),
        (b"- " * 100_000, "nested deeper"),
        (b"a: @x", "not YAML"),
    ],
)
def test_what_is_no_yaml(data: bytes, told: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(data, "f")
    assert told in str(caught.value)


def test_aliases_cannot_make_much_of_little() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    started = time.monotonic()
    assert any("aliases are not allowed" in line for line in problems("\n".join(lines)))
    assert time.monotonic() - started < 2


def test_all_mistakes_are_told_at_once() -> None:
    found = problems("folders:\n  - {name: a, pth: /a}\n  - {name: b, path: b}\n")
    assert [line.split(":")[0] for line in found] == ["2", "2", "3"]


def test_scalars_are_text() -> None:
    policy = policy_of(
        """
        groups: {no: [2024], on: {provided: ["CN=On,DC=x"]}}
        folders: [{name: 7, path: /7, access: [{groups: [no], mode: rw}, {groups: [on], mode: ro}]}]
        """
    )
    assert modes(policy, person("2024")) == {"7": "rw"}
    assert modes(policy, person("x", "CN=On,DC=x")) == {"7": "ro"}


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ("{groups: [g], mode: rw}, {groups: [g], mode: ro}", "access[1]: is unreachable: line 4"),
        ("{groups: [g], mode: ro}, {groups: [g, h], mode: rw}", "access[0]: is unreachable"),
        ("{groups: [g], mode: rw}, {groups: [g, h], compound: all, mode: rw}", "access[1]: is unreachable"),
        ("{everyone: true, mode: ro}, {users: [u], mode: ro}", "access[1]: is unreachable"),
        ("{groups: [g], mode: rw}, {groups: [g], mode: rw}", "access[1]: is unreachable"),
        ("{users: [p, q], compound: all, mode: rw}", "access[0]: can never match: its condition"),
        ("{all: [{groups: [g]}, {not: {groups: [g]}}], mode: rw}", "access[0]: can never match"),
        ("{groups: [g], from: 2027-01-01T00:00Z, until: 2026-01-01T00:00Z, mode: rw}",
         "access[0]: can never match: it ends before it begins"),
    ],
)  # fmt: skip
def test_rules_that_do_nothing_are_warned_of(rules: str, told: str) -> None:
    found = problems(folder(f"access: [{rules}]"))
    assert len(found) == 1, found
    assert "warning" in found[0]
    assert told in found[0]


def test_what_a_denial_leaves_nothing_of() -> None:
    text = folder("access: [{groups: [g], mode: rw}]\n    deny: [{groups: [g, h]}]")
    assert problems(text) == [
        "4:14: warning: folders[0].access[0]: is unreachable: line 5 denies all of it"
    ]


@pytest.mark.parametrize(
    "rules",
    [
        "{groups: [g], mode: rw}, {groups: [h], mode: ro}",
        "{groups: [g], mode: rw, until: 2030-01-01T00:00Z}, {groups: [g], mode: ro}",
        "{groups: [g], mode: ro}, {groups: [g], compound: all, users: [u], mode: rw}",
        "{any: ['a == b'], mode: rw}, {any: ['a != b'], mode: ro}",
        "{all: ['a == b', 'a == c'], mode: rw}",
    ],
)
def test_rules_that_matter_are_not_warned_of(rules: str) -> None:
    assert problems(folder(f"access: [{rules}]")) == []


def test_nested_groups_are_known_when_rules_are_compared() -> None:
    text = """
        groups: {inner: [u], outer: {groups: [inner]}}
        folders:
          - {name: a, path: /a, access: [{groups: [outer], mode: rw}, {groups: [inner], mode: ro}]}
        """
    assert ["is unreachable" in line for line in problems(text)] == [True]


class TestReading:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match="No such file"):
            load(str(tmp_path / "none"))

    def test_a_fifo_holds_nobody_up(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "f")
        with pytest.raises(PolicyError, match="not a regular file"):
            load(str(tmp_path / "f"))

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match="not a regular file"):
            load(str(tmp_path))

    def test_too_large(self, tmp_path: Path) -> None:
        with open(tmp_path / "f", "wb") as file:
            file.truncate(SIZE_LIMIT + 1)
        with pytest.raises(PolicyError, match="larger than 16 MiB"):
            read(str(tmp_path / "f"))

    def test_a_nul_in_the_name(self) -> None:
        with pytest.raises(PolicyError, match="not a path"):
            read("a\0b")


def test_a_time_without_zone_uses_the_nearest() -> None:
    policy = policy_of(
        """
        time_zone: Europe/Berlin
        folders:
          - name: a
            path: /a
            access:
              - {groups: [g], mode: rw, until: "2026-11-30T13:30"}
              - {groups: [g], mode: ro, until: "2026-11-30T12:45", time_zone: UTC}
        """
    )
    expected = {29: "rw", 30: "ro", 44: "ro", 45: "hidden"}
    found = {
        minute: modes(policy, person("u", "g"), MONDAY_NOON.replace(minute=minute))["a"]
        for minute in expected
    }
    assert found == expected
