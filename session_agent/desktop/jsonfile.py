"""JSON files that another program owns: read with care, written in that program's style."""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import dataclass
from typing import cast

from session_agent.desktop.changes import write
from session_agent.desktop.memory import keep_aside
from session_agent.desktop.merge import Json
from session_agent.errors import UserFileError
from session_agent.fsutil import durable
from session_agent.model import printable

DEFAULT_INDENT = "  "  # Obsidian's own
_DEPTH_LIMIT = 100
_SETTLE_SECONDS = 0.2  # that a program takes, at most, to write a file of its own


@dataclass(frozen=True, slots=True)
class Document:
    """A file's JSON value (None if there is no file, or an empty one) and how it was indented.

    `data` is what the file held, None if there is none.
    """

    value: Json
    indent: str = DEFAULT_INDENT
    data: bytes | None = None


def parse(data: bytes) -> Document:
    """The document in `data`. Raises ValueError if it is not valid JSON in UTF-8."""
    text = data.decode("utf-8-sig")
    if not text.strip():
        return Document(None, data=data)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _refuse_depth(value)
    indent = re.match(r"\s*[\[{]\r?\n([ \t]+)", text)
    return Document(cast(Json, value), indent[1] if indent else DEFAULT_INDENT, data)


def dump(document: Document) -> bytes:
    """The bytes of `document`, as JSON.stringify gives them: no final newline, no escapes."""
    text = json.dumps(document.value, indent=document.indent, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only hold as an escape
        return json.dumps(document.value, indent=document.indent).encode()


def load(path: str, *kinds: type) -> Document:
    """The document in `path`, whose value must be of one of `kinds`, or None.

    Anything else is copied aside, so that the program that owns the file cannot overwrite the only
    copy, and raises UserFileError; the file itself is left as it is.
    """
    data = _read(path)
    try:
        document = Document(None) if data is None else parse(data)
        if document.value is None or isinstance(document.value, kinds):
            return document
        reason = f"holds a {type(document.value).__name__}, which is not expected there"
    except ValueError as error:
        reason = f"is not valid JSON ({error})"
    aside = keep_aside(path, data or b"")
    raise UserFileError(
        f"{printable(path)} {reason}; it is left alone, and kept as "
        f"{printable(os.path.basename(aside))}.",
        "Mend it, or delete it to have it written anew.",
    )


def replace_value(path: str, document: Document, value: Json) -> None:
    """Write `value` to `path`, which `document` was loaded from. Raises as `changes.write` does."""
    write(path, dump(Document(value, document.indent)), document.data)


def _read(path: str) -> bytes | None:
    """The file's content; of one that is just being written, in place, what it is in the end."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        data = durable.read_regular(path)
        if data is None or time.monotonic() >= deadline:
            return data
        if not _cut_off(data) or time.time() - os.stat(path).st_mtime > _SETTLE_SECONDS:
            return data
        time.sleep(_SETTLE_SECONDS / 20)


def _cut_off(data: bytes) -> bool:
    try:
        return parse(data).value is None
    except ValueError:
        return True


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # it could not be written again
        raise ValueError(f"{text} is too large a number")
    return number


def _refuse_depth(value: Json) -> None:
    """So that nobody who walks through `value` comes to the end of the stack."""
    level = [value]
    for _ in range(_DEPTH_LIMIT):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
