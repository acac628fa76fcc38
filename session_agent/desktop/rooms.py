"""The sync daemon's rooms: one for each folder of the user's, in one YAML file.

The list `sync.folders` in that file is the agent's; other keys in it are kept.

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
from dataclasses import dataclass, field

import yaml

from session_agent.desktop.changes import Change, attempt, write
from session_agent.desktop.memory import Memory, keep_aside
from session_agent.errors import UserFileError
from session_agent.fsutil import durable
from session_agent.model import Branch, Mode, Room, printable
from session_agent.mounts.names import below
from session_agent.settings_types import RoomSettings

WHAT = "sync rooms"
_PERSONAL = "personal"
_HEADING = "# session-agent writes sync.folders at each start; other keys are kept.\n"


@dataclass(frozen=True, slots=True)
class Terms:
    """What rooms are made by, besides the branches.

    `username` is who works in this session in the words of whoever runs the sync server (Kasm's user
    name, not the image's one local user), and "" if nobody has told: then personal folders have no
    room, since everybody's would be the same. `user_id` is Kasm's number for the user.
    """

    file: str
    settings: RoomSettings = field(default_factory=RoomSettings)
    username: str = ""
    user_id: str = ""


def rooms(vault: str, branches: Sequence[Branch], terms: Terms) -> tuple[Room, ...]:
    """A room for every folder that `branches` show, by path.

    Where several show the same one, the shortest path names the room, and the first of them that can
    be written is the path, so that no file is synced with itself. A folder whose path is not UTF-8 has no
    room, since YAML cannot name it; a personal one has none while the user's name is not known.
    """
    result = []
    for same in _folders(vault, branches):
        shortest, *others = sorted(same, key=lambda branch: _order(_place(vault, branch)))
        personal = _personal(vault, same, terms)
        room = room_name(_place(vault, shortest), terms, personal=personal)
        if room:
            shown = next((b for b in (shortest, *others) if b.mode is Mode.RW), shortest)
            path = os.path.join(vault, shown.name)
            result.append(Room(path, room, shown.mode is Mode.RO))
    return tuple(sorted(result, key=lambda room: room.path))


def warnings(vault: str, branches: Sequence[Branch], terms: Terms) -> tuple[str, ...]:
    """What the user should know of folders that have no room."""
    if terms.username or not any(
        _personal(vault, same, terms) for same in _folders(vault, branches)
    ):
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


def _folders(vault: str, branches: Sequence[Branch]) -> list[list[Branch]]:
    """The branches by the folder that they show: the same one of the same file system."""
    found: dict[tuple[str, str], list[Branch]] = {}
    for branch in branches:
        path = os.path.join(vault, branch.name)
        if printable(path) == path:
            key = (branch.device, branch.root) if branch.device else ("", branch.path)
            found.setdefault(key, []).append(branch)
    return list(found.values())


def _place(vault: str, branch: Branch) -> str:
    return below(branch.path, vault) or branch.path


def _order(place: str) -> tuple[bool, int, str]:
    """The shortest first, but what is in the vault before what is elsewhere."""
    return place.startswith("/"), len(place), place


def _personal(vault: str, same: Sequence[Branch], terms: Terms) -> bool:
    """Whether a folder is its user's alone, by any of the branches that show it.

    It is if its drive is of a kind that everybody has an own one of, or if "personal" or the user's
    own name is among the folders of its path; of its path on the host, too: /srv/home/ann may be
    mounted at /vault/home.
    """
    words = {_PERSONAL, terms.username, terms.user_id} - {""}
    types = {name.lower() for name in terms.settings.personal_types}
    return any(
        branch.cloud_type in types
        or not words.isdisjoint(_place(vault, branch).split("/"))
        or not words.isdisjoint(branch.root.split("/"))
        for branch in same
    )


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


_UNSAFE = re.compile(rb"[^A-Za-z0-9._@+]")
_UNSAFE_IN_COMPONENT = re.compile(rb"[^A-Za-z0-9._@+-]|\A-|(?<=-)-|-\Z")


def _component(part: str) -> str:
    return _escaped(part, _UNSAFE_IN_COMPONENT)


def _escaped(text: str, unsafe: re.Pattern[bytes]) -> str:
    return unsafe.sub(lambda found: b"~%02x" % found[0][0], os.fsencode(text)).decode("ascii")
