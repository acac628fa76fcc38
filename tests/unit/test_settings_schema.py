"""The settings' JSON Schema and their parser accept the same, key by key and value by value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml

from session_agent.errors import SettingsError
from session_agent.settings_file import parse
from session_agent.settings_types import Settings
from tests.support.schemas import schema, validator

SCHEMA = schema("config")
VALIDATOR = validator("config")

# At and around what is allowed anywhere, and what is never.
VALUES: list[Any] = [
    *(None, True, False, [], {}, [[]], {"a": 1}),
    *(-1, -0.1, 0, 0.04, 0.05, 0.5, 1, 2.5, 3, 3.1, 600, 600.5, 3600, 3601, 1 << 32, 1 << 60),
    *("", " ", "a", "a-b", "a/b", "/", "//", "/a", "//a/", "/a b", "/a/..", "/../a", "/a..b/...", "/."),
    *(["/a", "/b*"], ["/a", "b"], ["a"], [1], ["/.."], "hidden", "shown", "\0", "a\0b", "/a\0"),
    *("folder-{name}", "{name}", "x{name}", "{name}{name}", "{names}", "a/{name}", "é{name}"),
    *("u-{username}-{name}", "u.{name}-{username}", "u-{username}{name}", "{username}", "u-{name}"),
    *([{"file": f, "pointer": "/x"}] for f in ("a.json", "a/b.json", "/a.json", "../a.json", "a/./b.json")),
    *([{"file": f, "pointer": "/x"}] for f in ("..json", ".json", "a/.json", "a", "a.json/", "a//b.json")),
    *([{"file": "a.json", "pointer": p}] for p in ("", "/", "x", "/~", "/~0", "/~01/~1/", "/a//b")),
    *([{"file": "a.json"}], [{"file": "a.json", "pointer": "/x", "y": 1}], [{"file": 1, "pointer": "/"}]),
    *("ws://a", "wss://a.b:1/c", "ws://[::1]:12", "http://a", "ws://", "ws://u:p@a", "ws://a?b", "ws://a#b"),
]  # fmt: skip
MISSING = "session_agent/schemas/config.json has to describe this setting"


def leaves(struct: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and default of every setting."""
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, msgspec.Struct):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


SETTINGS = dict(leaves(Settings()))


def described(properties: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in properties.items():
        if "properties" in one:
            yield from described(one["properties"], f"{prefix}{name}.")
        else:
            yield prefix + name, one


def test_it_describes_every_setting_and_its_default() -> None:
    found = dict(described(SCHEMA["properties"]))
    assert sorted(found) == sorted(SETTINGS), MISSING
    for key, one in found.items():
        assert one["description"], key
        default = SETTINGS[key]
        assert one["default"] == (list(default) if isinstance(default, tuple) else default), key


def document(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def accepted(settings: dict[str, Any]) -> bool:
    try:
        parse(yaml.safe_dump(settings).encode(), "f")
    except SettingsError:
        return False
    return True


@pytest.mark.parametrize("key", SETTINGS)
def test_both_accept_the_same_values(key: str) -> None:
    for value in VALUES:
        settings = document(key, value)
        assert VALIDATOR.is_valid(settings) == accepted(settings), settings


@pytest.mark.parametrize(
    "section", sorted({key.partition(".")[0] for key in SETTINGS if "." in key})
)
def test_both_accept_the_same_sections(section: str) -> None:
    values: list[Any] = [None, {}, {"nonsense": 1}, [], "a", 1]
    for value in values:
        assert VALIDATOR.is_valid({section: value}) == accepted({section: value}), value
    assert not VALIDATOR.is_valid({"nonsense": 1})
