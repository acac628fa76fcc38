"""CLOUD_MOUNTS, in which Kasm names a session's cloud drives: a pure parser.

The documented form is `<path>|<type>,<path2>|<type2>`. Administrators write it by hand, so
spaces, empty entries, trailing commas and percent-encoding are taken in good part. A comma or a
bar within a path has to be percent-encoded (%2C, %7C).
"""

from __future__ import annotations

import os
from urllib.parse import unquote_to_bytes

from session_agent.model import CloudMount

TYPES = frozenset({"s3", "nextcloud", "onedrive", "gdrive", "dropbox", "kasm"})


def parse(value: str) -> tuple[list[CloudMount], list[str]]:
    """The entries in their order, and a warning for each bad one that names it.

    An entry whose type is missing or unknown is kept with the type "". One without a usable path is
    left out. Of two entries with one path the first stays.
    """
    found: dict[str, CloudMount] = {}
    warnings = []
    for text in filter(None, map(str.strip, value.split(","))):
        entry, fault = _parse_entry(text)
        if entry is not None and entry.path in found:
            same = found[entry.path] == entry
            fault = fault or ("" if same else "an earlier entry gives this path another type")
        elif entry is not None:
            found[entry.path] = entry
        if fault:
            # repr() shows control characters and undecodable bytes without passing them on.
            warnings.append(f"CLOUD_MOUNTS entry {text!r}: {fault}.")
    return list(found.values()), warnings


def _parse_entry(text: str) -> tuple[CloudMount | None, str]:
    """One entry, or None, and what is wrong with it, or ""."""
    path_text, _, type_text = text.partition("|")
    path, kind = _path(path_text.strip()), type_text.strip().lower()
    if path is None:
        return None, "its path is not absolute, or is no path at all; left out"
    if not kind:
        return CloudMount(path, ""), f"it has no type, which is one of {', '.join(sorted(TYPES))}"
    if kind not in TYPES:
        return CloudMount(path, ""), f"its type is not one of {', '.join(sorted(TYPES))}"
    return CloudMount(path, kind), ""


def _path(text: str) -> str | None:
    try:
        path = os.fsdecode(unquote_to_bytes(os.fsencode(text)))
    except UnicodeEncodeError:  # no environment holds such text
        return None
    if not path.startswith("/") or "\0" in path:
        return None
    # normpath keeps two leading slashes, as POSIX allows.
    path = os.path.normpath("/" + path.lstrip("/"))
    return None if path == "/" else path
