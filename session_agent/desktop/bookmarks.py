"""GTK bookmarks: what the side pane of Thunar and the GTK file dialogs show.

The file belongs to the user, to Thunar, and in Kasm's images to an autostart script, `emblems.sh`:
for each entry of CLOUD_MOUNTS that is a folder it appends `file://<path>`, just as the path is
written, unless a line equals that. So a branch that the script would add gets that very line from
us as well (no label, nothing encoded), whenever GLib reads it as that path; whichever runs first,
there is one bookmark. All other branches get a labelled line, encoded as GLib does. See
docs/desktop.md for the cases.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote_to_bytes

from session_agent.desktop.changes import READ_LIMIT, Change, attempt, joined, unless_changed, write
from session_agent.desktop.labels import human, labels
from session_agent.desktop.memory import Memory
from session_agent.desktop.merge import Json, Remembered, intend, merge
from session_agent.fsutil import durable
from session_agent.model import Branch, printable

WHAT = "bookmarks"
LINE_LIMIT = 1023  # bytes, with the line's end: what Thunar reads of a line
# What GLib leaves unencoded in a path; found equal to what `gio info` prints.
_SAFE = "!$&'()*+,-./:=@_~"


@dataclass(frozen=True, slots=True)
class Bookmark:
    """One bookmark: where it leads, its label ("" shows the folder's own name), and its line."""

    path: str
    label: str
    line: bytes


@dataclass(frozen=True, slots=True)
class Rendered:
    """The file's new content, what to remember once it is written, and the labels `found` so far."""

    data: bytes
    remembered: Remembered
    found: Mapping[str, Json]


def bookmarks_path(config_home: str) -> str:
    """The file, below `$XDG_CONFIG_HOME`."""
    return os.path.join(config_home, "gtk-3.0", "bookmarks")


def wanted(
    vault: str, branches: Sequence[Branch], cloud_mounts: str = ""
) -> tuple[tuple[Bookmark, ...], tuple[str, ...]]:
    """The bookmarks for the vault and its branches in order, and a problem for each left out.

    A branch that is not below the vault has an absolute path for its name. `cloud_mounts` is
    CLOUD_MOUNTS as the environment has it, which is what emblems.sh goes by.
    """
    # A line that GLib takes for another path (a space, a percent sign, …) is of no use.
    script_lines = {
        path: line
        for line in script_additions(cloud_mounts)
        if (path := os.path.normpath(os.fsdecode(line[7:]))) == path_of(line) and path.isprintable()
    }
    names = labels(branches)
    places = [(os.path.normpath(vault), human(os.path.basename(os.path.normpath(vault))))]
    for branch in sorted(branches, key=_order):
        places.append((os.path.normpath(os.path.join(vault, branch.name)), names[branch.name]))
    found: dict[str, Bookmark] = {}
    problems = []
    for path, label in places:
        bookmark = _bookmark(path, label, script_lines.get(path))
        if len(bookmark.line) >= LINE_LIMIT:
            problems.append(f"The path of {printable(path)} is too long for a bookmark.")
        else:
            found.setdefault(path, bookmark)
    return tuple(found.values()), tuple(problems)


def script_additions(cloud_mounts: str) -> list[bytes]:
    """The lines that emblems.sh appends for this CLOUD_MOUNTS, if its folders are there."""
    paths = (entry.split("|")[0] for entry in cloud_mounts.split(","))
    # A path that does not start with a slash (a space after the comma) is no folder to the script.
    return [b"file://" + os.fsencode(path) for path in paths if path.startswith("/")]


def path_of(line: bytes) -> str | None:
    """Where GLib takes the bookmark `line` to lead, None if not to a local path."""
    uri = line.rstrip(b"\r\n").split(b" ", 1)[0]
    if uri[:7].lower() != b"file://":
        return None
    place = uri[7:].removeprefix(b"localhost")
    # GLib: an encoded slash or NUL makes the URI invalid, as a lone percent sign does; "#" ends the
    # path. GTK skips a line that is not UTF-8.
    if not place.startswith(b"/") or b"#" in place or not _is_utf8(line):
        return None
    for escape in place.split(b"%")[1:]:
        digits = escape[:2].lower()
        if len(digits) < 2 or digits.strip(b"0123456789abcdef") or digits in (b"2f", b"00"):
            return None
    return os.path.normpath(os.fsdecode(unquote_to_bytes(place)))


def label_of(line: bytes) -> str:
    """The label of the bookmark `line`, "" if it has none."""
    return line.rstrip(b"\r\n").partition(b" ")[2].decode("utf-8", "surrogateescape")


def render(
    current: bytes,
    bookmarks: Sequence[Bookmark],
    remembered: Remembered,
    ignored: Iterable[bytes] = (),
) -> Rendered:
    """`current` with `bookmarks` in it, without the agent's lines that are not among them.

    All other lines keep their bytes and their order. Lines equal to one of `ignored` are foreign
    and lead nowhere that counts. New lines go beside their neighbours in `bookmarks`, else to the
    end.
    """
    lines = current.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    by_path = {bookmark.path: bookmark for bookmark in bookmarks}
    dull = set(ignored)
    kept, labels_found, yielded = _sift(lines, by_path, remembered, dull)
    known = replace(
        remembered,
        written={path: label for path, label in remembered.written.items() if path not in yielded},
        pending={path: label for path, label in remembered.pending.items() if path not in yielded},
    )
    merged = merge(
        labels_found,
        {bookmark.path: bookmark.label for bookmark in bookmarks},
        known,
        fresh=not known.seen_in(labels_found),
    )
    result: list[tuple[str | None, bytes]] = []
    for path, line in kept:
        if path is None or path not in merged.put:
            if path not in merged.remove:
                result.append((path, line))
        else:
            result.append((path, by_path[path].line))
    missing = {path for path in merged.put if path not in labels_found}
    ordered = _insert(result, bookmarks, missing)
    if ordered == lines:
        return Rendered(current, merged.remembered, labels_found)
    data = b"".join(line + b"\n" for line in ordered)
    return Rendered(data, merged.remembered, labels_found)


def apply(
    config_home: str,
    vault: str,
    branches: Sequence[Branch],
    memory: Memory,
    *,
    cloud_mounts: str = "",
) -> Change:
    """Bring the bookmarks of the user whose `$XDG_CONFIG_HOME` is `config_home` up to date.

    Expected failures are the change's `problem`.
    """
    path = bookmarks_path(config_home)

    def step() -> Change:
        marks, problems = wanted(vault, branches, cloud_mounts)
        misread = [line for line in script_additions(cloud_mounts) if b" " in line]
        with memory.locked() as notes:
            current = durable.read_regular(path, READ_LIMIT)
            before = notes.about(path)
            after = render(current or b"", marks, before, misread)
            changed = after.data != (current or b"")
            if changed:
                # If this run is killed now, the next one still knows its own lines.
                notes.note(path, intend(before, after.found, after.remembered))
                write(path, after.data, current)
            notes.note(path, after.remembered)
            detail = f"{len(marks)} places"
            return Change(WHAT, path, changed, detail, joined(*problems, notes.problem))

    return attempt(WHAT, path, lambda: unless_changed(step))


def _order(branch: Branch) -> list[tuple[str, str]]:
    """As people sort: capitals mean nothing, a folder comes before what is in it."""
    return [(part.casefold(), part) for part in branch.name.split("/")]


def _bookmark(path: str, label: str, script_line: bytes | None) -> Bookmark:
    if script_line is not None:
        return Bookmark(path, "", script_line)
    uri = b"file://" + quote(os.fsencode(path), safe=_SAFE).encode()
    line = uri + b" " + label.encode()
    if len(line) >= LINE_LIMIT:
        return Bookmark(path, "", uri)
    return Bookmark(path, label, line)


def _sift(
    lines: Sequence[bytes],
    by_path: Mapping[str, Bookmark],
    remembered: Remembered,
    ignored: set[bytes],
) -> tuple[list[tuple[str | None, bytes]], dict[str, str], set[str]]:
    """The lines to keep, each with the path it covers if that is wanted or was the agent's.

    A path that a line of somebody else covers needs none of ours, and one of ours is enough.
    Returns the lines, the labels found by path, and the paths at which our line gave way to
    somebody else's.
    """
    of_interest = {*by_path, *remembered.written, *remembered.pending}
    covering: dict[str, list[int]] = {}
    for index, line in enumerate(lines):
        path = None if line in ignored else path_of(line)
        if path is not None and path in of_interest:
            covering.setdefault(path, []).append(index)
    drop: set[int] = set()
    cover: dict[int, str] = {}
    found: dict[str, str] = {}
    yielded: set[str] = set()
    for path, indexes in covering.items():
        own = [i for i in indexes if remembered.owns(path, label_of(lines[i]))]
        foreign = [i for i in indexes if not remembered.owns(path, label_of(lines[i]))]
        if foreign:
            keep = foreign[0]
            drop.update(own)
            if own:
                yielded.add(path)
        else:
            # Of several equal ones the line that emblems.sh recognises is worth most.
            exact = [i for i in own if path in by_path and lines[i] == by_path[path].line]
            keep = (exact or own)[0]
            drop.update(i for i in own if i != keep)
        cover[keep] = path
        found[path] = label_of(lines[keep])
    kept = [(cover.get(i), line) for i, line in enumerate(lines) if i not in drop]
    return kept, found, yielded


def _insert(
    lines: Sequence[tuple[str | None, bytes]], bookmarks: Sequence[Bookmark], missing: set[str]
) -> list[bytes]:
    """`lines` and, of `bookmarks`, the `missing`: each after its predecessor, if that is there."""
    present = {path for path, _ in lines if path is not None}
    after: dict[str, list[bytes]] = {}
    waiting: list[bytes] = []  # those before the first bookmark that is present
    anchor: str | None = None
    before: str | None = None
    for bookmark in bookmarks:
        if bookmark.path in missing:
            (waiting if anchor is None else after[anchor]).append(bookmark.line)
        elif bookmark.path in present:
            if anchor is None:
                before = bookmark.path
            anchor = bookmark.path
            after[anchor] = []
    result: list[bytes] = []
    for path, line in lines:
        if path is not None and path == before:
            result += waiting
        result.append(line)
        if path is not None:
            result += after.get(path, [])
    return result + waiting if before is None else result


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
