"""Secrets are not logged or printed; should one slip through all the same, it is struck out here.

Two nets: the values of the environment's secrets, which `settings` makes known, and what looks like a
secret wherever it comes from: credentials in URLs, tokens, `password=` in mount options and in rclone's
connection strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

STRUCK = "[redacted]"

_SHORTEST = 6  # characters; a shorter value would strike out words that are no secret
_NAMES = (
    "pass(?:word|wd|phrase)?|_pw|secret|token|(?<![a-z])jwt|credentials?"
    "|(?:api|access|private)_?key"
)
_SECRET_NAME = re.compile(rf"(?:{_NAMES})(?:$|_|[0-9])", re.IGNORECASE)
# Repetitions are bounded: a hostile text must not take time by its square.
_PATTERNS = (
    # //user:password@host, //token@host
    (re.compile(r"(?<=://)[^\s/@'\"]+@"), f"{STRUCK}@"),
    # JSON Web Tokens: header and claims begin with {" in base64
    (re.compile(r"\beyJ[\w-]{6,2000}\.[\w-]{6,}(?:\.[\w-]*)?"), STRUCK),
    (re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{STRUCK}"),
    (re.compile(r"\bAKIA[0-9A-Z]{12,}"), STRUCK),
    # name=value and "name": "value", up to what ends a value in options, queries and JSON
    (
        re.compile(
            rf"((?:{_NAMES})[\w-]{{0,40}}[\"']?\s{{0,4}}[=:]\s{{0,4}})(\"[^\"]*\"|'[^']*'|[^\s,;&\"'}}\])]+)",
            re.IGNORECASE,
        ),
        rf"\1{STRUCK}",
    ),
)
_known: set[str] = set()


def know(values: Iterable[str]) -> None:
    """Strike out these values from now on, wherever in this process."""
    _known.update(value for value in values if len(value) >= _SHORTEST)


def secrets_of(variables: Mapping[str, str]) -> list[str]:
    """The values of those variables whose names say that they are secret."""
    return [value for name, value in variables.items() if _SECRET_NAME.search(name)]


def redacted(text: str) -> str:
    """`text` without what is known as a secret, or looks like one."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, STRUCK)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def redacted_document(value: Any) -> Any:
    """The same for every text in what JSON can hold; keys that name a secret lose their value whole."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {
            key: STRUCK
            if isinstance(one, str) and one and is_secret_name(str(key))
            else redacted_document(one)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_document(one) for one in value]
    return value


def is_secret_name(name: str) -> bool:
    """Whether a key of that name holds a secret."""
    return bool(_SECRET_NAME.search(name)) and not name.endswith(("_file", "_keys", "_claim"))
