"""JSON files that another program owns: read with care, written in that program's style."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import cast

from session_agent.desktop.memory import keep_aside
from session_agent.desktop.merge import Json
from session_agent.errors import UserFileError
from session_agent.fsutil import durable
from session_agent.model import printable

DEFAULT_INDENT = "  "  # Obsidian's own


@dataclass(frozen=True, slots=True)
class Document:
    """A file's JSON value (None if there is no file, or an empty one) and how it was indented."""

    value: Json
    indent: str = DEFAULT_INDENT


def parse(data: bytes) -> Document:
    """The document in `data`. Raises ValueError if it is not valid JSON in UTF-8."""
    text = data.decode("utf-8-sig")
    if not text.strip():
        return Document(None)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    indent = re.match(r"\s*[\[{]\r?\n([ \t]+)", text)
    return Document(cast(Json, value), indent[1] if indent else DEFAULT_INDENT)


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
    data = durable.read_regular(path)
    try:
        document = parse(data or b"")
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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
