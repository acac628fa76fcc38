"""The JSON Schema for editors accepts what the parser accepts, and refuses what it can tell is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from session_agent.policy import rules, schema
from tests.support.schemas import schema as schema_file
from tests.support.schemas import validator

SCHEMA = schema_file("policy")
VALIDATOR = validator("policy")


def fits(text: str) -> bool:
    return bool(VALIDATOR.is_valid(yaml.load(text, yaml.BaseLoader)))  # noqa: S506 - makes text only


EVERYTHING = """
time_zone: Europe/Berlin
groups:
  a: [x, y]
  b: {members: [z], groups: [a], provided: ["CN=B"]}
folders:
  - name: one
    path: /shared/{username}
    target: /vault/one
    because: why not
    storage: {type: s3, options: {s3-region: eu}}
    access:
      - {everyone: true, mode: ro}
      - {groups: [a], users: [u], compound: all, mode: rw, because: so}
      - any: [department == legal, {all: [{groups: [b]}, region != emea]}]
        not: {users: [v]}
        from: 2026-11-01
        until: "2026-12-04T18:00"
        windows: [{days: [mon-fri, sun], from: "08:00", until: "18:00", time_zone: UTC}]
        mode: rw
    deny: [{users: [w]}]
    implies: [two, {folder: three, mode: ro}]
    subfolders:
      - {path: x, mode: ro}
      - {path: y, access: [{groups: [a], mode: rw}], deny: [{users: [u]}]}
  - {name: two, path: /two}
  - {name: three, path: /three}
"""


def test_both_accept_all_of_the_grammar() -> None:
    schema.parse_policy(EVERYTHING.encode(), "f")
    assert fits(EVERYTHING)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mode: rw, because", "mode: rx, because"),
        ("{users: [w]}", "{users: [w], mode: ro}"),
        ("path: /two", "pth: /two"),
        ("folders:", "folder:"),
        ("{path: x, mode: ro}", "{path: x}"),
        ("{path: x, mode: ro}", "{path: x, mode: ro, access: []}"),
        ("compound: all", "compound: some"),
        ("{users: [v]}", "{user: [v]}"),
        ("department == legal", "department = legal"),
        ("mon-fri", "monday"),
        ("type: s3", "type: floppy"),
        ("{everyone: true, mode: ro}", "{mode: ro}"),
    ],
)
def test_both_refuse_mistakes(old: str, new: str) -> None:
    text = EVERYTHING.replace(old, new, 1)
    assert text != EVERYTHING
    assert not fits(text)
    policy, _ = schema.examine(text.encode(), "f")
    assert policy is None


def keys(name: str) -> set[str]:
    found: dict[str, Any] = SCHEMA["$defs"][name]["properties"]
    return set(found)


def test_the_keys_are_the_parsers() -> None:
    assert keys("folder") == set(schema.FOLDER_KEYS)
    assert keys("who") == set(rules.WHO)
    assert keys("when") == set(rules.WHEN)
    types = SCHEMA["$defs"]["folder"]["properties"]["storage"]["properties"]["type"]["enum"]
    assert types == list(schema.STORAGE_TYPES)
