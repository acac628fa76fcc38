"""The settings file: reading it, and its YAML as typed settings.

Anything not understood is a SettingsError that names the file, the line, the dotted key and what was
expected.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from session_agent.errors import SettingsError
from session_agent.model import printable
from session_agent.rootfile import changeable_by
from session_agent.settings_checks import checks
from session_agent.settings_types import ObsidianPath, Settings

DEFAULT_FILE = "/etc/session-agent/config.yaml"
# What PyYAML raises for what is not YAML. The last three: a value that does not fit its tag, such as
# `!!bool x` and `!!timestamp x`.
YAML_ERRORS = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError)
_SIZE_LIMIT = 256 * 1024  # bytes


def read(path: str, *, required: bool) -> bytes | None:
    """The file's bytes; None where it is absent and not `required`.

    Raises SettingsError; for root also where others than root can change the file.
    """
    try:
        if os.geteuid() == 0:
            _refuse_if_others_can_write(path)
        # O_NONBLOCK: a FIFO must not hold up the session.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if not required:
            return None
        raise SettingsError(
            f"The settings file {printable(path)} does not exist.",
            "Correct --config or SESSION_AGENT_CONFIG, or leave it out to use the defaults.",
        ) from None
    except ValueError:
        raise SettingsError(f"The settings file's name {path!r} is not a path.") from None
    except OSError as error:
        raise SettingsError(
            f"The settings file {printable(path)} cannot be read: {error.strerror}.",
            "Make it readable for everybody (chmod 644); it should hold no secrets.",
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SettingsError(
                f"The settings file {printable(path)} is not a regular file.",
                "Name a YAML file, such as " + DEFAULT_FILE + ".",
            )
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    finally:
        os.close(fd)
    if len(data) > _SIZE_LIMIT:
        raise SettingsError(
            f"The settings file {printable(path)} is larger than {_SIZE_LIMIT // 1024} KiB.",
            "Name the right file; settings need a few lines.",
        )
    return data


def _refuse_if_others_can_write(path: str) -> None:
    step = changeable_by(path)
    if step:
        raise SettingsError(
            f"The settings file {printable(path)} is refused: others than root can change {step}.",
            f"Run as root, the agent trusts only what root alone can write, such as {DEFAULT_FILE}"
            " (root:root, mode 644).",
        )


def parse(data: bytes, path: str) -> Settings:
    """`data` as settings. `path` is for the messages of the SettingsErrors that this raises."""
    document, lines = _yaml(data, path)
    if document is None:
        return Settings()
    if not isinstance(document, dict):
        raise _wrong(path, lines, "", "expected keys with values, such as `vault: /vault`")
    # A section whose every line is commented out is null.
    sections = {"mounts", "rooms", "obsidian", "overlay", "moves", "policy", "log"}
    document = {k: v for k, v in document.items() if v is not None or k not in sections}
    try:
        settings = msgspec.convert(document, Settings)
    except msgspec.ValidationError as error:
        key, expected = _explain(str(error))
        raise _wrong(path, lines, key, expected) from None
    for key, value, fits, expected in checks(settings):
        if not fits(value):
            raise _wrong(path, lines, key, expected)
    return settings


def _yaml(data: bytes, path: str) -> tuple[Any, dict[str, int]]:
    """The document, and the line of each dotted key."""
    where = printable(path)
    hint = "Correct the YAML; `vault: /vault` is the simplest settings file."
    lines: dict[str, int] = {}
    try:
        loader = yaml.SafeLoader(data.decode("utf-8"))
        try:
            node = loader.get_single_node()
            _note_lines(node, "", lines, where)
            document = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where}: byte {error.start} is not UTF-8 text.", hint) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{where}{place}: not YAML: {error.problem}.", hint) from None
    except YAML_ERRORS as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise SettingsError(f"{where}: not YAML: {reason}.", hint) from None
    return document, lines


def _note_lines(node: Any, key: str, lines: dict[str, int], where: str) -> None:
    """Note the lines of the keys, down to sections; refuse a key that is given twice."""
    if not isinstance(node, yaml.MappingNode) or "." in key:
        return
    for name, value in node.value:
        dotted = f"{key}.{name.value}" if key else str(name.value)
        line = name.start_mark.line + 1
        if dotted in lines:
            raise SettingsError(
                f"{where}, line {line}: {dotted}: given twice, first in line {lines[dotted]}.",
                "Remove one of them.",
            )
        lines[dotted] = line
        _note_lines(value, dotted, lines, where)


def _wrong(path: str, lines: Mapping[str, int], key: str, expected: str) -> SettingsError:
    line = lines.get(re.sub(r"\[.*", "", key))
    place = printable(path) + (f", line {line}" if line else "")
    return SettingsError(
        f"{place}: {key}: {expected}." if key else f"{place}: {expected}.",
        "The README lists the settings.",
    )


def _fields(key: str) -> tuple[str, ...]:
    """The names that the section at the dotted `key` knows; an element of a list has `[…]` there."""
    if key.endswith("]"):
        return ObsidianPath.__struct_fields__  # the only list of sections
    section = getattr(Settings(), key) if key else Settings()
    return tuple(section.__struct_fields__)


_WORDS = {
    "object": "a group of keys",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}


def _explain(message: str) -> tuple[str, str]:
    """The dotted key and the expectation behind one of msgspec's messages."""
    text, _, place = message.partition(" - at ")
    key = place.strip("`").removeprefix("$").removeprefix(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL)
    if unknown:
        known = _fields(key)
        close = difflib.get_close_matches(unknown[1], known, n=1)
        guess = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        return (f"{key}.{unknown[1]}" if key else unknown[1]), f"there is no such key; {guess}"
    if place.startswith("`key` in"):
        return "", "expected keys that are text"
    found = re.fullmatch(r"Expected `(.*)`, got `(.*)`", text)
    if found is None:
        return key, text
    wanted = " or ".join(_WORDS.get(word, word) for word in found[1].split(" | "))
    return key, f"expected {wanted}, not {_WORDS.get(found[2], found[2])}"
