"""Obsidian's settings in the vault (`.obsidian`: app.json, core-plugins.json, bookmarks.json), and
its list of vaults (obsidian.json in the user's home).

The agent owns a few named keys and one group of bookmarks, and only as long as the user leaves them
as written (see `merge`). Everything else keeps its value and its place. A file that is not
understood is left alone, copied aside and reported.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from session_agent.desktop import jsonfile
from session_agent.desktop.changes import Change, attempt, make_folders, write
from session_agent.desktop.labels import labels
from session_agent.desktop.memory import Memory, Notes
from session_agent.desktop.merge import Json, Remembered, merge, same
from session_agent.errors import AgentError, UserFileError
from session_agent.fsutil import durable
from session_agent.model import Branch, printable

INBOX = "_inbox"
ATTACHMENTS = "_inbox/attachments"
GROUP_TITLE = "Mounted folders"
# In the memory, the group itself stands beside the paths of its items.
_GROUP = ""

# New notes and attachments have a home that is writable however few folders are mounted, and what
# is deleted stays in the vault: the desktop's trash cannot take files from most mounts.
APP_SETTINGS: Mapping[str, Json] = {
    "newFileLocation": "folder",
    "newFileFolderPath": INBOX,
    "attachmentFolderPath": ATTACHMENTS,
    "trashOption": "local",
}
# Two keys that make one setting: who has chosen one has chosen both.
_PAIR = {"newFileLocation": "newFileFolderPath", "newFileFolderPath": "newFileLocation"}

CORE_PLUGINS: Mapping[str, Json] = {"file-explorer": True, "bookmarks": True}
# What Obsidian writes for a new vault. An older array names those that are on; the others were off.
DEFAULT_CORE_PLUGINS: Mapping[str, Json] = {
    "file-explorer": True,
    "global-search": True,
    "switcher": True,
    "graph": True,
    "backlink": True,
    "canvas": True,
    "outgoing-link": True,
    "tag-pane": True,
    "footnotes": False,
    "properties": True,
    "page-preview": True,
    "daily-notes": True,
    "templates": True,
    "note-composer": True,
    "command-palette": True,
    "slash-command": False,
    "editor-status": True,
    "bookmarks": True,
    "markdown-importer": False,
    "zk-prefixer": False,
    "random-note": False,
    "outline": True,
    "word-count": True,
    "slides": False,
    "audio-recorder": False,
    "workspaces": False,
    "file-recovery": True,
    "publish": False,
    "sync": True,
    "bases": True,
    "webviewer": False,
}

Render = Callable[[Json, Remembered, bool], tuple[Json, Remembered]]


def render_app(current: Json, remembered: Remembered, fresh: bool) -> tuple[Json, Remembered]:
    """app.json with the agent's settings, from `current` (an object, or None if there is none)."""
    settings = dict(current) if isinstance(current, dict) else {}
    wanted = {
        key: value
        for key, value in APP_SETTINGS.items()
        if key in settings or not _chosen(_PAIR.get(key), settings, remembered)
    }
    merged = merge(settings, wanted, remembered, fresh=fresh)
    return {**settings, **merged.put}, merged.remembered


def render_core_plugins(
    current: Json, remembered: Remembered, fresh: bool
) -> tuple[Json, Remembered]:
    """core-plugins.json as an object, from an object, an array of the older form, or None."""
    if isinstance(current, list):
        names = [name for name in current if isinstance(name, str)]
        off = {name: False for name in DEFAULT_CORE_PLUGINS if name not in names}
        plugins: dict[str, Json] = {**dict.fromkeys(names, True), **off}
    elif isinstance(current, dict):
        plugins = current
    else:
        return dict(DEFAULT_CORE_PLUGINS), merge(
            {}, CORE_PLUGINS, remembered, fresh=True
        ).remembered
    merged = merge(plugins, CORE_PLUGINS, remembered, fresh=fresh)
    return {**plugins, **merged.put}, merged.remembered


def render_bookmarks(
    current: Json, remembered: Remembered, fresh: bool, *, branches: Sequence[Branch], now_ms: int
) -> tuple[Json, Remembered]:
    """bookmarks.json with one group of ours, a folder item a branch. `now_ms` dates what is new.

    The group is known by its title, at the top level: one that the user deleted, renamed or put
    away is the user's, and none is made again. Raises UserFileError if the file is not built as
    Obsidian builds it.
    """
    document = dict(current) if isinstance(current, dict) else {}
    items = _item_list(document)
    place = next((i for i, item in enumerate(items) if _is_our_group(item)), None)
    group = {} if place is None else cast("dict[str, Json]", items[place])
    entries = _item_list(group)
    titles: dict[str, Json] = {}
    for item in entries:
        if (path := _folder_path(item)) is not None:
            titles.setdefault(path, cast("dict[str, Json]", item).get("title"))
    if place is not None:
        titles[_GROUP] = GROUP_TITLE
    wanted = _wanted_items(branches)
    merged = merge(titles, wanted, remembered, fresh=fresh)
    if place is None and _GROUP not in merged.put:
        return current, Remembered(left=merged.remembered.left)
    after: list[Json] = []
    for item in entries:
        path = _folder_path(item)
        if path is not None and path in merged.put:
            after.append({**cast("dict[str, Json]", item), "title": wanted[path]})
        elif path not in merged.remove:
            after.append(item)
    after += [
        {"type": "folder", "ctime": now_ms, "path": path, "title": title}
        for path, title in merged.put.items()
        if path != _GROUP and path not in titles
    ]
    if place is None:
        fresh_group: Json = {"type": "group", "ctime": now_ms, "items": after, "title": GROUP_TITLE}
        items = [*items, fresh_group]
    elif _GROUP in merged.remove and not after:
        items = [*items[:place], *items[place + 1 :]]
    else:
        items = [*items[:place], {**group, "items": after}, *items[place + 1 :]]
    return {**document, "items": items}, merged.remembered


def apply(folder: str, branches: Sequence[Branch], memory: Memory) -> list[Change]:
    """Bring `folder`/.obsidian up to date, and create the inbox beside it.

    `folder` is where the vault's top level is kept (the root branch). One change a file; expected
    failures are the changes' `problem`, and keep no other file from being written.
    """
    settings = os.path.join(folder, ".obsidian")
    now_ms = time.time_ns() // 1_000_000

    def bookmarks(current: Json, remembered: Remembered, fresh: bool) -> tuple[Json, Remembered]:
        return render_bookmarks(current, remembered, fresh, branches=branches, now_ms=now_ms)

    inbox = os.path.join(folder, INBOX)
    changes = [attempt("Obsidian inbox", inbox, lambda: _make_inbox(folder))]
    try:
        with memory.locked() as notes:
            fresh = _is_fresh(os.path.join(settings, "app.json"), notes)
            for name, render, kinds in (
                ("app.json", render_app, (dict,)),
                ("core-plugins.json", render_core_plugins, (dict, list)),
                ("bookmarks.json", bookmarks, (dict,)),
            ):
                changes.append(
                    _apply_one(os.path.join(settings, name), render, kinds, notes, fresh)
                )
            if notes.problem:
                changes.append(Change("desktop memory", memory.state_dir, False, "", notes.problem))
    except AgentError as error:
        changes.append(Change("Obsidian settings", settings, False, "", str(error)))
    return changes


def render_vaults(current: Json, vault: str, *, now_ms: int) -> Json:
    """obsidian.json with `vault` in it, marked as open unless another one is.

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
    if not any(isinstance(v, dict) and v.get("open") for v in vaults.values()):
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
    what = "Obsidian vault list"

    def step() -> Change:
        if printable(vault) != vault:
            raise UserFileError(f"Obsidian cannot open {printable(vault)}: its name is not UTF-8.")
        with memory.locked():
            document = jsonfile.load(path, dict)
            value = render_vaults(document.value, vault, now_ms=time.time_ns() // 1_000_000)
            changed = not same(value, document.value)
            if changed:
                write(path, jsonfile.dump(replace(document, value=value)))
            return Change(what, path, changed)

    return attempt(what, path, step)


def _same_path(one: str, other: str) -> bool:
    return os.path.normpath(one) == os.path.normpath(other)


def _free_id(vault: str, vaults: Mapping[str, Json]) -> str:
    """16 hex digits that follow from the path, and are not another vault's."""
    text = vault
    while (key := hashlib.sha256(os.fsencode(text)).hexdigest()[:16]) in vaults:
        text += "/"
    return key


def _apply_one(
    path: str, render: Render, kinds: tuple[type, ...], notes: Notes, fresh: bool
) -> Change:
    what = f"Obsidian {os.path.basename(path)}"

    def step() -> Change:
        document = jsonfile.load(path, *kinds)
        before = notes.about(path)
        value, after = render(document.value, before, fresh or document.value is None)
        changed = not same(value, document.value)
        if changed:
            notes.note(path, replace(before, pending=after.written))
            write(path, jsonfile.dump(replace(document, value=value)))
        notes.note(path, after)
        return Change(what, path, changed)

    return attempt(what, path, step)


def _is_fresh(app: str, notes: Notes) -> bool:
    """Whether this `.obsidian` is not the one remembered: its app.json has none of our keys.

    Where that cannot be read, the user's wishes are thought to be those remembered.
    """
    try:
        value = jsonfile.parse(durable.read_regular(app) or b"").value
    except (ValueError, OSError, AgentError):
        return False
    return not (isinstance(value, dict) and notes.about(app).seen_in(value))


def _make_inbox(folder: str) -> Change:
    inbox = os.path.join(folder, INBOX)
    there = os.path.isdir(os.path.join(folder, ATTACHMENTS))
    make_folders(os.path.join(folder, ATTACHMENTS))
    return Change("Obsidian inbox", inbox, not there)


def _chosen(key: str | None, settings: Mapping[str, Json], remembered: Remembered) -> bool:
    """Whether the user set `key`."""
    return key is not None and key in settings and not remembered.owns(key, settings[key])


def _wanted_items(branches: Sequence[Branch]) -> dict[str, Json]:
    """Title by path of what belongs into the group, and the group itself unless that is nothing."""
    titles = labels(branches)
    # Obsidian shows no folder that begins with a dot, and knows no name that is not UTF-8.
    names = [n for n in titles if printable(n) == n and not any(p[:1] == "." for p in n.split("/"))]
    if not names:
        return {}
    ordered = sorted(names, key=lambda name: name.split("/"))
    return {_GROUP: GROUP_TITLE, **{name: titles[name] for name in ordered}}


def _item_list(container: Mapping[str, Json]) -> list[Json]:
    items = container.get("items", [])
    if not isinstance(items, list):
        raise UserFileError(
            'Obsidian\'s bookmarks.json holds "items" that are no list; it is left alone.',
            "Mend it, or delete it to have it written anew.",
        )
    return items


def _is_our_group(item: Json) -> bool:
    return (
        isinstance(item, dict) and item.get("type") == "group" and item.get("title") == GROUP_TITLE
    )


def _folder_path(item: Json) -> str | None:
    if isinstance(item, dict) and item.get("type") == "folder":
        path = item.get("path")
        return path if isinstance(path, str) and path else None
    return None
