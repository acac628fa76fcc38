"""The plugin `session-agent-moves`, put into Obsidian's folder where there is no overlay.

It is part of the package (`plugin/`), appears as installed, and is switched on by nobody but the user.
Its manifest holds the hash of its code: code that has that hash is as the agent wrote it, whichever
agent it was and whatever is remembered, and may be brought up to date. All else in the folder is the
user's, `data.json` for one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib import resources

from session_agent.desktop.changes import Change, attempt, unless_changed, write
from session_agent.desktop.memory import Notes
from session_agent.desktop.merge import Json, Remembered
from session_agent.fsutil import durable

WHAT = "Obsidian plugin"
ID = "session-agent-moves"
_CODE, _MANIFEST = "main.js", "manifest.json"
_HASH = "sha256"  # a key of the manifest that Obsidian does not know, and ignores
_VERSION = "version"


def files() -> dict[str, bytes]:
    """The plugin's files by name. The session user may not be able to read them where they are kept."""
    folder = resources.files(__package__).joinpath("plugin")
    code = folder.joinpath(_CODE).read_bytes()
    manifest = json.loads(folder.joinpath(_MANIFEST).read_bytes())
    manifest[_HASH] = hashlib.sha256(code).hexdigest()
    return {_CODE: code, _MANIFEST: json.dumps(manifest, indent=2).encode() + b"\n"}


def render(
    current: Mapping[str, bytes], wanted: Mapping[str, bytes], *, removed: bool
) -> tuple[Mapping[str, bytes], str]:
    """What to write, and what to say of it. `removed`: it was there, and the user took it away."""
    if not current:
        if removed:
            return {}, "removed by the user, and left so"
        return wanted, "installed, to be switched on in Obsidian"
    if current == wanted:
        return {}, ""
    ours, theirs = _manifest(wanted), _manifest(current)
    code = current.get(_CODE, b"")
    # Equal code under another manifest is what a run that was killed leaves.
    if code != wanted[_CODE] and hashlib.sha256(code).hexdigest() != theirs.get(_HASH):
        return {}, "changed by the user, and left so"
    if _number(theirs.get(_VERSION)) > _number(ours.get(_VERSION)):
        return {}, "a newer one is installed"
    return wanted, "brought up to date"


def apply(
    settings: str, wanted: Mapping[str, bytes], notes: Notes, known_as: str, *, fresh: bool
) -> Change:
    """Bring the plugin in the folder `settings` (`.obsidian`) up to date; `known_as` in the memory.

    `fresh`: this `.obsidian` is not the one remembered. What cannot be done is the change's problem.
    """
    folder = os.path.join(settings, "plugins", ID)

    def step() -> Change:
        found = {name: durable.read_regular(os.path.join(folder, name)) for name in wanted}
        current = {name: data for name, data in found.items() if data is not None}
        before = notes.about(known_as)
        put, detail = render(current, wanted, removed=bool(before.written) and not fresh)
        for name, data in put.items():
            if current.get(name) != data:
                write(os.path.join(folder, name), data, current.get(name))
        if put or current:
            notes.note(known_as, Remembered(written={ID: True}))
        return Change(WHAT, folder, bool(put), detail)

    return attempt(WHAT, folder, lambda: unless_changed(step))


def _manifest(files: Mapping[str, bytes]) -> dict[str, Json]:
    try:
        value = json.loads(files.get(_MANIFEST, b""))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(version: Json) -> tuple[int, ...]:
    if not isinstance(version, str):
        return ()
    return tuple(int(part) for part in version[:64].split(".") if part.isascii() and part.isdigit())
