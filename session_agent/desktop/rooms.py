"""The sync daemon's rooms: one for each folder of the user's, in one YAML file.

In that file, `sync.folders` and `sync.vault` are the agent's; `sync.user` and `sync.server` are unless
the user changes them; other keys are kept. schemas/rooms.json describes it.

Who has one room's name sees what is in it, so a name must tell apart what is apart, and be the same
for everybody who mounts the same folder, whatever else is mounted. It follows from the branch's path
below the vault, else from its absolute path, and never from a number that the vault gave it:

- ASCII letters, digits and `._-@+` stay as they are, `/` becomes `--`;
- every other byte becomes `~` and two hex digits, and so does a `-` at the beginning or end of a
  component or after another `-`. So any name can be read back: no two paths share one.

A personal folder's room bears the user's name too, in which every `-` is rewritten: it ends where the
first `-` is. That one template's rooms are none of the other's is what settings_checks sees to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from session_agent.desktop.changes import Change, attempt, unless_changed, write
from session_agent.desktop.memory import Memory, keep_aside
from session_agent.desktop.merge import Remembered, merge
from session_agent.errors import UserFileError
from session_agent.fsutil import durable
from session_agent.model import Branch, Mode, Room, printable
from session_agent.mounts.names import below
from session_agent.settings_file import YAML_ERRORS
from session_agent.settings_types import RoomSettings

WHAT = "sync rooms"
_PERSONAL = "personal"
_HEADING = (
    "# session-agent writes sync.vault and sync.folders at each start; other keys are kept.\n"
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What rooms are made by, besides the branches.

    `username` is who works in this session in the words of whoever runs the sync server (Kasm's user
    name, not the image's one local user), and "" if nobody has told: then personal folders have no
    room, since everybody's would be the same. `user_id` is Kasm's number for the user, `server` the
    sync server's URL, or "".
    """

    file: str
    vault: str
    settings: RoomSettings = field(default_factory=RoomSettings)
    username: str = ""
    user_id: str = ""
    server: str = ""


def rooms(branches: Sequence[Branch], terms: Terms) -> tuple[Room, ...]:
    """A room for every folder that `branches` show, by path.

    Where several show the same one, the shortest path names the room, and the first of them that can
    be written is the path, so that no file is synced with itself. A folder whose path is not UTF-8 has no
    room, since YAML cannot name it; a personal one has none while the user's name is not known.
    """
    result = []
    for same in _folders(branches, terms):
        shortest, *others = sorted(same, key=lambda branch: _order(_place(branch, terms)))
        personal = _personal(same, terms)
        room = room_name(_place(shortest, terms), terms, personal=personal)
        if room:
            shown = next((b for b in (shortest, *others) if b.mode is Mode.RW), shortest)
            path = os.path.join(terms.vault, shown.name)
            result.append(Room(path, room, shown.mode is Mode.RO))
    return tuple(sorted(result, key=lambda room: room.path))


def warnings(branches: Sequence[Branch], terms: Terms) -> tuple[str, ...]:
    """What the user should know of folders that have no room."""
    if terms.username or not any(_personal(same, terms) for same in _folders(branches, terms)):
        return ()
    told = (
        "Personal folders and drives have no sync room, since the user's name is not known: set"
        " KASM_USER_NAME, or `rooms.username` where there is only one user."
    )
    return (told,)


def room_name(place: str, terms: Terms, *, personal: bool) -> str:
    """The room of the folder at `place`, relative if that is in the vault; "" if it can have none."""
    name = "--".join(map(_component, place.split("/")))
    if not personal:
        return terms.settings.shared.replace("{name}", name)
    if not terms.username:
        return ""
    username = _escaped(terms.username, _UNSAFE)
    return terms.settings.personal.replace("{username}", username).replace("{name}", name)


def _folders(branches: Sequence[Branch], terms: Terms) -> list[list[Branch]]:
    """The branches by the folder that they show: the same one of the same file system."""
    found: dict[tuple[str, str], list[Branch]] = {}
    for branch in branches:
        path = os.path.join(terms.vault, branch.name)
        if printable(path) == path:
            key = (branch.device, branch.root) if branch.device else ("", branch.path)
            found.setdefault(key, []).append(branch)
    return list(found.values())


def _place(branch: Branch, terms: Terms) -> str:
    return below(branch.path, terms.vault) or branch.path


def _order(place: str) -> tuple[bool, int, str]:
    """The shortest first, but what is in the vault before what is elsewhere."""
    return place.startswith("/"), len(place), place


def _personal(same: Sequence[Branch], terms: Terms) -> bool:
    """Whether a folder is its user's alone, by any of the branches that show it.

    It is if its drive is of a kind that everybody has an own one of, or if "personal" or the user's
    own name is among the folders of its path; of its path on the host, too: /srv/home/ann may be
    mounted at /vault/home.
    """
    words = {_PERSONAL, terms.username, terms.user_id} - {""}
    types = {name.lower() for name in terms.settings.personal_types}
    return any(
        branch.cloud_type in types
        or not words.isdisjoint(_place(branch, terms).split("/"))
        or not words.isdisjoint(branch.root.split("/"))
        for branch in same
    )


def render(
    current: bytes, folders: Sequence[Room], terms: Terms, remembered: Remembered
) -> tuple[bytes, Remembered]:
    """The file as it is to be, `current` itself if it says all of it already; and what to remember.

    Raises ValueError if `current` is not YAML, or not built as the sync daemon expects, and
    RecursionError if it is nested too deeply to be written again.
    """
    document = _parse(current)
    sync = document.get("sync") or {}
    known = {"user": terms.username, "server": terms.server}
    # No other value than text is the agent's; a hostile one may be too large to look into.
    found = {key: sync[key] if isinstance(sync[key], str) else None for key in known if key in sync}
    wanted = {key: value for key, value in known.items() if value and printable(value) == value}
    merged = merge(found, wanted, remembered, fresh="folders" not in sync)
    listed = [{"path": r.path, "room": r.room, "readOnly": r.read_only} for r in folders]
    after = {key: value for key, value in sync.items() if key not in merged.remove}
    after |= {**merged.put, "vault": printable(terms.vault), "folders": listed}
    if after == sync:
        return current, merged.remembered
    return (_HEADING + _text({**document, "sync": after})).encode(), merged.remembered


def _text(document: Any) -> str:
    def dump(*, allow_unicode: bool) -> str:
        return yaml.safe_dump(
            document,
            default_flow_style=None,
            sort_keys=False,
            allow_unicode=allow_unicode,
            width=1 << 20,
        )

    text = dump(allow_unicode=True)
    # PyYAML writes these as they are, and then reads them as the ends of lines.
    return dump(allow_unicode=False) if re.search("[\x85\u2028\u2029\ufeff]", text) else text


def _parse(data: bytes) -> dict[Any, Any]:
    try:
        document = yaml.safe_load(data.decode("utf-8-sig"))
    except YAML_ERRORS as error:
        raise ValueError(str(error)) from error
    document = {} if document is None else document
    if not isinstance(document, dict) or not isinstance(document.get("sync") or {}, dict):
        raise ValueError('a mapping that holds a mapping "sync" is expected')
    return document


def apply(folders: Sequence[Room], terms: Terms, memory: Memory) -> Change:
    """Bring the rooms file up to date. Expected failures are the change's `problem`."""
    path = terms.file

    def step() -> Change:
        with memory.locked() as notes:
            current = durable.read_regular(path)
            before = notes.about(path)
            try:
                data, after = render(current or b"", folders, terms, before)
            except (ValueError, RecursionError) as error:
                aside = keep_aside(path, current or b"")
                raise UserFileError(
                    f"{printable(path)} is not understood ({' '.join(str(error).split())}); it is "
                    f"left alone, and kept as {printable(os.path.basename(aside))}.",
                    "Mend it, or delete it to have it written anew.",
                ) from error
            changed = current is None or data != current
            if changed:
                notes.note(path, replace(before, pending=after.written))
                write(path, data, current)
            notes.note(path, after)
            return Change(WHAT, path, changed, f"{len(folders)} rooms", notes.problem)

    return attempt(WHAT, path, lambda: unless_changed(step))


_UNSAFE = re.compile(rb"[^A-Za-z0-9._@+]")
_UNSAFE_IN_COMPONENT = re.compile(rb"[^A-Za-z0-9._@+-]|\A-|(?<=-)-|-\Z")


def _component(part: str) -> str:
    return _escaped(part, _UNSAFE_IN_COMPONENT)


def _escaped(text: str, unsafe: re.Pattern[bytes]) -> str:
    return unsafe.sub(lambda found: b"~%02x" % found[0][0], os.fsencode(text)).decode("ascii")
