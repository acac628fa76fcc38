"""Obsidian's list of vaults: obsidian.json in the user's home."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping

from session_agent.desktop import jsonfile
from session_agent.desktop.changes import Change, attempt, unless_changed
from session_agent.desktop.memory import Memory
from session_agent.desktop.merge import Json, same
from session_agent.errors import UserFileError
from session_agent.model import printable

WHAT = "Obsidian vault list"


def render_vaults(current: Json, vault: str, *, now_ms: int) -> Json:
    """obsidian.json with `vault` in it, marked as open if it is new there or if no other one is.

    A vault that is listed already keeps its id, and all others are untouched. Raises UserFileError
    if `current` is not built as Obsidian builds it.
    """
    document = dict(current) if isinstance(current, dict) else {}
    vaults = document.get("vaults", {})
    if not isinstance(vaults, dict):
        raise UserFileError(
            'Obsidian\'s obsidian.json holds "vaults" that are no object; it is left alone.',
            "Mend it, or delete it to have it written anew.",
        )
    paths = {key: v.get("path") for key, v in vaults.items() if isinstance(v, dict)}
    listed = [k for k, path in paths.items() if isinstance(path, str) and _same_path(path, vault)]
    key = listed[0] if listed else _free_id(vault, vaults)
    found = vaults.get(key)
    entry: dict[str, Json] = found if isinstance(found, dict) else {"path": vault, "ts": now_ms}
    if not listed or not any(isinstance(v, dict) and v.get("open") for v in vaults.values()):
        entry = {**entry, "open": True}
    return {**document, "vaults": {**vaults, key: entry}}


def register(home: str, config_home: str, vault: str, memory: Memory) -> list[Change]:
    """Add `vault` to the vaults that Obsidian knows, as a package, a flatpak and a snap keep them.

    Each where its folder exists; the package's one if none does. A running Obsidian writes the list
    back from its memory, so this belongs before its start.
    """
    package = os.path.join(config_home, "obsidian")
    folders = [
        package,
        os.path.join(home, ".var/app/md.obsidian.Obsidian/config/obsidian"),
        os.path.join(home, "snap/obsidian/current/.config/obsidian"),
    ]
    existing = [folder for folder in folders if os.path.isdir(folder)] or [package]
    return [_register_one(os.path.join(f, "obsidian.json"), vault, memory) for f in existing]


def _register_one(path: str, vault: str, memory: Memory) -> Change:
    def step() -> Change:
        if printable(vault) != vault:
            raise UserFileError(f"Obsidian cannot open {printable(vault)}: its name is not UTF-8.")
        with memory.locked():
            document = jsonfile.load(path, dict)
            value = render_vaults(document.value, vault, now_ms=time.time_ns() // 1_000_000)
            changed = not same(value, document.value)
            if changed:
                jsonfile.replace_value(path, document, value)
            return Change(WHAT, path, changed)

    return attempt(WHAT, path, lambda: unless_changed(step))


def _same_path(one: str, other: str) -> bool:
    return os.path.normpath(one) == os.path.normpath(other)


def _free_id(vault: str, vaults: Mapping[str, Json]) -> str:
    """16 hex digits that follow from the path, and are not another vault's."""
    text = vault
    while (key := hashlib.sha256(os.fsencode(text)).hexdigest()[:16]) in vaults:
        text += "/"
    return key
