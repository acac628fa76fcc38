"""The shapes that values in an entry have, each with the words that say what is expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from session_agent.registry.document import Json, Keys
from session_agent.registry.findings import Findings, below


@dataclass(frozen=True, slots=True)
class Shape:
    """`fits` says whether a value has it, `expected` what to write: "Write …"."""

    expected: str
    fits: Callable[[Json], bool]

    def check(self, value: Json, key: str, findings: Findings) -> bool:
        """Whether `value` fits; tells it if not."""
        if self.fits(value):
            return True
        findings.error(key, f"It is {kind(value)}, which does not fit.", f"Write {self.expected}.")
        return False


def kind(value: Json) -> str:
    """What JSON calls it. Never the value: it may be a secret."""
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, str):
        return "text" if value.strip() else "empty text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else "a number"


def is_text(value: Json) -> bool:
    """Text that is more than blanks."""
    return isinstance(value, str) and bool(value.strip())


def is_integer(value: Json) -> bool:
    """A whole number; in JSON, `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_texts(value: Json) -> bool:
    return isinstance(value, list) and all(is_text(one) for one in value)


def integer(least: int, example: str) -> Shape:
    """A whole number from `least` up."""
    return Shape(
        f"a whole number, {least} or more, without quotes, such as {example}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


def matching(pattern: str, expected: str) -> Shape:
    """Text of a pattern."""
    compiled = re.compile(pattern)
    return Shape(expected, lambda value: isinstance(value, str) and bool(compiled.fullmatch(value)))


def choice(*names: str) -> Shape:
    """One of some words."""
    return Shape(" or ".join(f'"{name}"' for name in names), lambda value: value in names)


def either(first: Shape, second: Shape) -> Shape:
    """What fits one of two."""
    return Shape(
        f"{first.expected}, or {second.expected}",
        lambda value: first.fits(value) or second.fits(value),
    )


TEXT = Shape("some text in quotes", is_text)
TEXTS = Shape('a list of texts, such as ["…"]', _is_texts)
BOOLEAN = Shape("true or false, without quotes", lambda value: isinstance(value, bool))
INTEGER = Shape("a whole number, without quotes", is_integer)
OBJECT = Shape("an object, such as {}", lambda value: isinstance(value, Keys))
LIST = Shape("a list, such as []", lambda value: isinstance(value, list))
ENVIRONMENT = Shape(
    'an object of texts, such as {"NAME": "value"}, or a list such as ["NAME=value"]',
    lambda value: (
        all(isinstance(one, str | int | float) for one in value.values())
        if isinstance(value, Keys)
        else _is_texts(value)
    ),
)


def check_each(value: Json, key: str, shape: Shape, findings: Findings) -> bool:
    """Whether it is a list whose parts all fit; tells those that do not."""
    if not LIST.check(value, key, findings):
        return False
    assert isinstance(value, list)
    fits = [shape.check(one, below(key, n), findings) for n, one in enumerate(value)]
    return all(fits)
