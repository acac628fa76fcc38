"""The keys of one part of a policy file, taken one by one. What does not fit becomes a problem."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from session_agent.model import Grant
from session_agent.policy.document import Items, Keys, Node, Position, Problems, Text

PLACEHOLDERS = ("{username}", "{user_id}")
_MODES = {"ro": Grant.RO, "rw": Grant.RW}


def text_of(node: Node, key: str, problems: Problems) -> str:
    """The text that `node` is; "" if it is none or empty."""
    if not isinstance(node, Text):
        problems.error(node.at, key, "expected text")
        return ""
    if not node.value or (node.plain and node.value in ("~", "null")):
        problems.error(node.at, key, "the value is missing")
        return ""
    if any(ord(character) < 32 or character == "\x7f" for character in node.value):
        problems.error(node.at, key, "control characters are not allowed")
        return ""
    return node.value


class Fields:
    """`node` with the names of the keys that it may have; any other is told at once."""

    def __init__(self, node: Keys, key: str, problems: Problems, known: Sequence[str]) -> None:
        self.at = node.at
        self.key = key
        self.problems = problems
        self._node = node
        for name, place in node.places.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                guess = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                problems.error(place, self.dotted(name), f"there is no such key; {guess}")

    @classmethod
    def of(cls, node: Node, key: str, problems: Problems, known: Sequence[str]) -> Fields | None:
        """The keys of a part that must have some."""
        if isinstance(node, Keys):
            return cls(node, key, problems, known)
        problems.error(node.at, key, f"expected keys: {', '.join(known)}")
        return None

    def dotted(self, name: str) -> str:
        """The name with what it lies in."""
        return f"{self.key}.{name}" if self.key else name

    def place(self, name: str) -> Position:
        """Where the key stands; if it is absent, what it is missing from."""
        return self._node.places.get(name, self.at)

    def has(self, name: str) -> bool:
        """Whether the key is there."""
        return name in self._node.values

    def get(self, name: str) -> Node | None:
        """The key's value."""
        return self._node.values.get(name)

    def error(self, name: str, message: str) -> None:
        """Tell what is wrong with a key."""
        self.problems.error(self.place(name), self.dotted(name), message)

    def items(self, name: str, *, required: bool = False) -> Iterator[tuple[Node, str]]:
        """The values of a list, and the key of each."""
        node = self.get(name)
        if node is None:
            if required:
                self.problems.error(self.at, self.dotted(name), "is missing")
            return
        if not isinstance(node, Items):
            self.problems.error(node.at, self.dotted(name), "expected a list")
            return
        for n, value in enumerate(node.values):
            yield value, f"{self.dotted(name)}[{n}]"

    def names(self, name: str) -> frozenset[str]:
        """A list of names, as a set."""
        found = [text_of(node, key, self.problems) for node, key in self.items(name)]
        return frozenset(text for text in found if text)

    def text(self, name: str, *, required: bool = False) -> str:
        """A text, "" where it is absent or wrong."""
        node = self.get(name)
        if node is not None:
            return text_of(node, self.dotted(name), self.problems)
        if required:
            self.problems.error(self.at, self.dotted(name), "is missing")
        return ""

    def texts(self, name: str) -> dict[str, str]:
        """Keys that are free, with texts as values."""
        node = self.get(name)
        if node is None:
            return {}
        if not isinstance(node, Keys):
            self.error(name, "expected keys with text")
            return {}
        return {
            key: text_of(value, f"{self.dotted(name)}.{key}", self.problems)
            for key, value in node.values.items()
        }

    def choice(self, name: str, choices: Sequence[str], *, required: bool = True) -> str:
        """One of the choices; "" where it is absent or wrong."""
        text = self.text(name, required=required)
        if text and text not in choices:
            self.error(name, f"expected {' or '.join(choices)}, not {text}")
            return ""
        return text

    def mode(self, name: str) -> Grant:
        """`ro` or `rw`; hidden where it is absent or wrong, which is an error then."""
        return _MODES.get(self.choice(name, tuple(_MODES)), Grant.HIDDEN)

    def path(self, name: str, *, required: bool = False) -> str:
        """An absolute path below /, without a slash at its end."""
        text = self.text(name, required=required)
        if not text:
            return ""
        parts = text.removeprefix("/").rstrip("/").split("/")
        if not text.startswith("/") or not _components(parts):
            self.error(
                name, "expected an absolute path without `.`, `..` or `//`, such as /shared/wiki"
            )
            return ""
        self._check_placeholders(name, text)
        return "/" + "/".join(parts)

    def relative_path(self, name: str) -> str:
        """A path below the folder."""
        text = self.text(name, required=True)
        parts = text.rstrip("/").split("/")
        if text and not _components(parts):
            self.error(name, "expected a path relative to the folder, without `.` or `..`")
            return ""
        self._check_placeholders(name, text)
        return "/".join(parts)

    def _check_placeholders(self, name: str, text: str) -> None:
        for found in re.findall(r"\{[^{}/]*\}?|\}", text):
            if found not in PLACEHOLDERS:
                known = " and ".join(PLACEHOLDERS)
                self.error(name, f"{found} is no placeholder; known are {known}")


def _components(parts: Sequence[str]) -> bool:
    return all(part not in ("", ".", "..") for part in parts)
