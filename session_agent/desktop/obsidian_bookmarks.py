"""Obsidian's bookmarks (bookmarks.json in `.obsidian`): a group of ours, with an item for each branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from session_agent.desktop.labels import labels
from session_agent.desktop.merge import Json, Remembered, Rendered, merge
from session_agent.errors import UserFileError
from session_agent.model import Branch, printable

GROUP_TITLE = "Mounted folders"
# In the memory, the group itself stands beside the paths of its items.
_GROUP = ""


def render(
    current: Json, remembered: Remembered, fresh: bool, *, branches: Sequence[Branch], now_ms: int
) -> Rendered:
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
        return Rendered(current, Remembered(left=merged.remembered.left), titles)
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
    return Rendered({**document, "items": items}, merged.remembered, titles)


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
