"""An entry's file, read as untrusted: it may come from anybody's registry.

What readers of JSON disagree on is refused, so that the entry that was checked is the one that Kasm sees:
keys given twice, NaN, numbers too large for a float. So is nesting that would exhaust a stack.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections import Counter
from typing import TypeAlias, Union

from session_agent.registry.findings import Findings, below

Json: TypeAlias = Union[bool, int, float, str, list["Json"], "Keys", None]

SIZE_LIMIT = 256 * 1024  # bytes; a thorough entry has some three thousand
_DEPTH_LIMIT = 20
_TOLD_TWICE = 50  # keys


class Keys(dict[str, Json]):
    """A JSON object, with the names that it gives more than once."""

    def __init__(self, pairs: list[tuple[str, Json]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs) if len(self) < len(pairs) else {}
        self.twice = [name for name, count in counts.items() if count > 1]


def read(path: str, findings: Findings) -> Keys | None:
    """The entry in `path`; None, and why, if it is none."""
    data = _bytes(path, findings)
    if data is None:
        return None
    try:
        value: Json = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=Keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        findings.error("", "A text has half a character, such as \\ud83d.", "Write both halves.")
        return None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        findings.error("", f"Line {line} is not UTF-8 text.", "Save the file as UTF-8.")
        return None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        findings.error("", f"Not JSON: {error.msg}, {where}.", "Correct it there, or just before.")
        return None
    except RecursionError:
        _too_deep(findings)
        return None
    except ValueError as error:
        findings.error("", f"Not JSON: {error}.", "Write a number of a usual size.")
        return None
    if not isinstance(value, Keys):
        findings.error("", "It is no JSON object.", "An entry is one object, {…}, with keys.")
        return None
    return value if _examine(value, findings) else None


def _bytes(path: str, findings: Findings) -> bytes | None:
    try:
        # A link could lead whoever checks somebody else's files to one of their own.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            findings.error("", "It is a symbolic link.", "Name the file that it leads to.")
        else:
            findings.error("", f"It cannot be read: {error.strerror}.", "Name a workspace.json.")
        return None
    except ValueError:
        findings.error("", "It cannot be read: not a path.", "Name a workspace.json.")
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        findings.error("", "It is not a regular file.", "Name a workspace.json.")
        return None
    with os.fdopen(fd, "rb") as file:
        data = file.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        limit = f"{SIZE_LIMIT >> 10} KiB"
        findings.error("", f"It is larger than {limit}.", "Name the file of one workspace.")
        return None
    return data


# A place in the document, innermost first. Made into a pointer only where it is told: a long key with
# many values below it would otherwise be copied for each of them.
_Place: TypeAlias = tuple["_Place", str | int] | None


def _examine(value: Keys, findings: Findings) -> bool:
    """Tell keys given twice; False if the document is too deep to go on with."""
    told = 0
    pending: list[tuple[Json, _Place, int]] = [(value, None, 1)]
    while pending:
        one, place, depth = pending.pop()
        if depth > _DEPTH_LIMIT:
            _too_deep(findings)
            return False
        if isinstance(one, Keys):
            for name in one.twice[: _TOLD_TWICE - told]:
                told += 1
                findings.error(
                    _pointer((place, name)),
                    "It is given more than once, and readers differ in which they take.",
                    "Keep one of them.",
                )
        inner = (
            one.items()
            if isinstance(one, Keys)
            else enumerate(one)
            if isinstance(one, list)
            else ()
        )
        pending += [(v, (place, k), depth + 1) for k, v in inner if isinstance(v, Keys | list)]
    return True


def _pointer(place: _Place) -> str:
    parts = []
    while place is not None:
        place, name = place
        parts.append(below("", name))
    return "".join(reversed(parts))


def _too_deep(findings: Findings) -> None:
    findings.error("", f"It is nested deeper than {_DEPTH_LIMIT} levels.", "No entry needs that.")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is none of its numbers")
