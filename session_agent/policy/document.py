"""YAML as a tree that knows where each part stands, and holds nothing but lists, keys and text.

Every scalar is text: a group may be called `no` or `2024`. What YAML has beyond that (anchors and aliases,
tags, merge keys, keys given twice, several documents) is refused, since a reader of a policy must see what it
says. So is nesting deeper than anybody writes, which would exhaust the stack.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import yaml

from session_agent.errors import PolicyError
from session_agent.model import printable

SIZE_LIMIT = 16 * 1024 * 1024  # bytes
_DEPTH_LIMIT = 40
_TOLD = 50  # problems in one message

# The parser in C, where PyYAML was built with it: ten times as fast, same events and marks.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Position:
    """Where something stands in the file. Both count from 1, as editors do."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar. `plain` is one without quotes; an empty one is a value that was left out."""

    value: str
    plain: bool
    at: Position


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    values: tuple[Node, ...]
    at: Position


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys with their values, and where each key stands."""

    values: dict[str, Node]
    places: dict[str, Position]
    at: Position


Node: TypeAlias = Text | Items | Keys


class Severity(StrEnum):
    """An error makes the file unusable; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a file. `key` is dotted, with list positions from 0, "" for the file itself."""

    at: Position
    key: str
    message: str
    severity: Severity = Severity.ERROR

    def told(self, file: str) -> str:
        """In one line, as compilers do."""
        key = f"{self.key}: " if self.key else ""
        return f"{file}:{self.at.line}:{self.at.column}: {self.severity}: {key}{self.message}"


@dataclass
class Problems:
    """What has been found so far. Parsing goes on, so that one run tells everything."""

    found: list[Problem] = field(default_factory=list)
    _seen: set[Problem] = field(default_factory=set)

    def error(self, at: Position, key: str, message: str) -> None:
        """Note what makes the file unusable."""
        self._note(Problem(at, key, message))

    def warn(self, at: Position, key: str, message: str) -> None:
        """Note what is probably not meant."""
        self._note(Problem(at, key, message, Severity.WARNING))

    def _note(self, problem: Problem) -> None:
        if problem not in self._seen:
            self._seen.add(problem)
            self.found.append(problem)

    @property
    def errors(self) -> list[Problem]:
        """Those that make the file unusable."""
        return [problem for problem in self.found if problem.severity is Severity.ERROR]


def refuse(file: str, problems: list[Problem]) -> PolicyError:
    """The error to be raised for a file with these problems."""
    lines = [problem.told(printable(file)) for problem in problems[:_TOLD]]
    if len(problems) > _TOLD:
        lines.append(f"… and {len(problems) - _TOLD} more.")
    return PolicyError(
        "\n".join(lines), "Nothing that this file governs is shown until it is corrected."
    )


def read(path: str) -> bytes:
    """The bytes of a policy file. Raises PolicyError; nothing but a regular file is waited for."""
    where = printable(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise PolicyError(f"{where} cannot be read: {reason}.", "Name the policy file.") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise PolicyError(f"{where} is not a regular file.", "Name the policy file.")
    with os.fdopen(fd, "rb") as file:
        data = file.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise PolicyError(f"{where} is larger than {SIZE_LIMIT >> 20} MiB.", "Name the right file.")
    return data


def parse(data: bytes, file: str, problems: Problems) -> Node | None:
    """The document's tree, None for an empty one. Raises PolicyError for what is no YAML."""
    try:
        loader = _LOADER(data.decode("utf-8"))
        try:
            return _Composer(loader, problems).document()
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise refuse(file, [Problem(Position(line, column), "", "not UTF-8 text")]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        raise refuse(file, [Problem(at, "", f"not YAML: {error.problem}")]) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "it cannot be read"
        raise refuse(file, [Problem(Position(1, 1), "", f"not YAML: {reason}")]) from None
    except _TooDeepError as error:
        message = f"nested deeper than {_DEPTH_LIMIT} levels"
        raise refuse(file, [Problem(error.at, "", message)]) from None


class _TooDeepError(Exception):
    def __init__(self, at: Position) -> None:
        super().__init__()
        self.at = at


class _Composer:
    """Makes a tree of the parser's events."""

    def __init__(self, loader: yaml.SafeLoader, problems: Problems) -> None:
        self._events = self._all(loader)
        self._problems = problems

    @staticmethod
    def _all(loader: yaml.SafeLoader) -> Iterator[yaml.Event]:
        while loader.check_event():
            yield loader.get_event()  # type: ignore[no-untyped-call]  # the stubs leave it out

    def document(self) -> Node | None:
        """The first document, which must be the only one."""
        root: Node | None = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._problems.error(_position(event), "", "a second YAML document begins here")
            elif isinstance(event, yaml.NodeEvent):
                node = self._node(event, "", 1)
                root = root or node
        if isinstance(root, Text) and root.plain and not root.value:
            return None
        return root

    def _node(self, event: yaml.Event, key: str, depth: int) -> Node:
        at = _position(event)
        if depth > _DEPTH_LIMIT:
            raise _TooDeepError(at)
        if isinstance(event, yaml.AliasEvent):
            self._problems.error(at, key, "aliases are not allowed; write it out")
            return Text("", False, at)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.anchor is not None:
            self._problems.error(at, key, "anchors are not allowed; write it out where it is used")
        if event.tag is not None and event.tag != "!":
            self._problems.error(at, key, f"tags such as {event.tag} are not allowed")
        if isinstance(event, yaml.SequenceStartEvent):
            return self._items(at, key, depth)
        if isinstance(event, yaml.MappingStartEvent):
            return self._keys(at, key, depth)
        assert isinstance(event, yaml.ScalarEvent)
        return Text(event.value, not event.style, at)

    def _items(self, at: Position, key: str, depth: int) -> Items:
        values: list[Node] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            values.append(self._node(event, f"{key}[{len(values)}]", depth + 1))
        return Items(tuple(values), at)

    def _keys(self, at: Position, key: str, depth: int) -> Keys:
        values: dict[str, Node] = {}
        places: dict[str, Position] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            name = self._node(event, key, depth + 1)
            text = name.value if isinstance(name, Text) else ""
            dotted = f"{key}.{text}" if key else text
            value = self._node(next(self._events), dotted, depth + 1)
            if not isinstance(name, Text):
                self._problems.error(name.at, key, "a key must be text")
            elif text in values:
                first = places[text].line
                self._problems.error(name.at, dotted, f"given twice, first in line {first}")
            else:
                values[text] = value
                places[text] = name.at
        return Keys(values, places, at)


def _position(event: yaml.Event) -> Position:
    mark = event.start_mark
    assert mark is not None
    return Position(mark.line + 1, mark.column + 1)
