"""The sync daemon's rooms: one for each branch, in one YAML file.

The list `sync.folders` in that file is the agent's; other keys in it are kept. Room names follow
from the branch's name alone, so that two sessions that show a folder under one name meet in one
room:

- letters, digits and `._-@+` stay as they are, `/` becomes `-`;
- a name with anything else in it also gets 8 hex digits of its hash, since it would not be unique
  without.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence

import yaml

from session_agent.desktop.changes import Change, attempt, write
from session_agent.desktop.memory import Memory, keep_aside
from session_agent.errors import UserFileError
from session_agent.fsutil import durable
from session_agent.model import Branch, Mode, Room, printable

WHAT = "sync rooms"
_PERSONAL = "personal"
_HEADING = "# session-agent writes sync.folders at each start; other keys are kept.\n"


def rooms(vault: str, branches: Sequence[Branch], username: str) -> tuple[Room, ...]:
    """A room for every branch, by path.

    `username` is who works in this session, in the words of whoever runs the sync server (Kasm's
    user name, not the image's one local user): personal folders of two people must not share a
    room, so with no `username` they have none. Nor has a branch whose name is not UTF-8, since YAML
    cannot name it.
    """
    named = sorted(b.name for b in branches if printable(b.name) == b.name)
    names = {name: room_name(name, username) for name in named}
    if not username:
        names = {name: room for name, room in names.items() if not room.startswith("user-")}
    taken = Counter(names.values())
    modes = {branch.name: branch.mode for branch in branches}
    result = []
    for name, room in names.items():
        # "wiki/nested" beside "wiki-nested": the one that had to be rewritten gets its hash.
        shared = taken[room] > 1 and not room.endswith(f"-{name}")
        unique = f"{room}-{_hash(name)}" if shared else room
        result.append(Room(os.path.join(vault, name), unique, modes[name] is Mode.RO))
    return tuple(result)


def room_name(name: str, username: str) -> str:
    """The room of the branch `name`: `folder-…`, or `user-<username>-personal…` for a personal one.

    A branch is personal if "personal" or the user's own name is among the folders of its name.
    """
    parts = name.split("/")
    for index, part in enumerate(parts):
        if part in (_PERSONAL, username):
            rest = [p for p in parts[index + 1 :] if p != _PERSONAL]
            return "-".join(
                ["user", _slug(username), _PERSONAL, *([_slug("/".join(rest))] if rest else [])]
            )
    return f"folder-{_slug(name)}"


def render(current: bytes, folders: Sequence[Room]) -> bytes:
    """The file with `folders` in it; `current` itself if it says the same already.

    Raises ValueError if `current` is not YAML, or not built as the sync daemon expects.
    """
    try:
        document = yaml.safe_load(current.decode("utf-8-sig"))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error
    document = {} if document is None else document
    sync = (document.get("sync") or {}) if isinstance(document, dict) else None
    if not isinstance(sync, dict):
        raise ValueError('a mapping that holds a mapping "sync" is expected')
    wanted = [{"path": r.path, "room": r.room, "readOnly": r.read_only} for r in folders]
    if sync.get("folders") == wanted:
        return current
    document = {**document, "sync": {**sync, "folders": wanted}}
    text = yaml.safe_dump(
        document, default_flow_style=None, sort_keys=False, allow_unicode=True, width=1 << 20
    )
    return (_HEADING + text).encode()


def apply(path: str, folders: Sequence[Room], memory: Memory) -> Change:
    """Bring the rooms file up to date. Expected failures are the change's `problem`."""

    def step() -> Change:
        with memory.locked():
            current = durable.read_regular(path)
            try:
                data = render(current or b"", folders)
            except ValueError as error:
                aside = keep_aside(path, current or b"")
                raise UserFileError(
                    f"{printable(path)} is not understood ({' '.join(str(error).split())}); it is "
                    f"left alone, and kept as {printable(os.path.basename(aside))}.",
                    "Mend it, or delete it to have it written anew.",
                ) from error
            changed = current is None or data != current
            if changed:
                write(path, data)
            return Change(WHAT, path, changed, f"{len(folders)} rooms")

    return attempt(WHAT, path, step)


def _slug(name: str) -> str:
    flat = name.replace("/", "-")
    kept = "".join(c if c.isalnum() or c in "._-@+" else "-" for c in flat)
    return kept if kept == flat else f"{kept}-{_hash(name)}"


def _hash(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
