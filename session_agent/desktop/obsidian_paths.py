"""Settings of Obsidian's that name a folder, and what stands in for one that is not there today.

A name is only taken for a folder that could be mounted if a branch has borne it before, or if the
administrator's template leads there: anything else may be a folder that Obsidian makes when it is
needed.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from session_agent.desktop.merge import Json
from session_agent.model import Branch, Mode, MountState, printable
from session_agent.mounts.names import below

INBOX = "_inbox"
PERSONAL = "personal"


@dataclass(frozen=True, slots=True)
class PathSetting:
    """The setting at `pointer` in `file` (below `.obsidian`).

    `writes`: files are made there, so a read-only branch does not do. `below`: the folder in the one
    that stands in. `drop`: it names a file that has to exist, so none stands in for it.
    """

    file: str
    pointer: str
    writes: bool = False
    below: str = ""
    drop: bool = False


KNOWN = (
    PathSetting("app.json", "/newFileFolderPath", writes=True),
    PathSetting("app.json", "/attachmentFolderPath", writes=True, below="attachments"),
    PathSetting("daily-notes.json", "/folder", writes=True),
    PathSetting("daily-notes.json", "/template", drop=True),
    PathSetting("templates.json", "/folder"),
)


@dataclass(frozen=True, slots=True)
class Today:
    """Which folders there are. `branches` by name: whether each answers, and can be written.

    `gone`: names of branches that are not there, and of folders that the template leads to.
    """

    branches: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    @property
    def home(self) -> str:
        """The folder that stands in for others."""
        return PERSONAL if self.branches.get(PERSONAL) == (True, True) else INBOX

    def usable(self, path: str, *, writes: bool) -> bool:
        """Whether `path` does not lead to a folder that is missing, or cannot be written."""
        known = [name for name in (*self.branches, *self.gone) if below(path, name) is not None]
        if not known:
            return True
        answers, writable = self.branches.get(max(known, key=len), (False, False))
        return answers and (writable or not writes)


def stand_in(setting: PathSetting, value: Json, today: Today) -> str | None:
    """What stands in for `value` today, None if it can be used."""
    path = folder_of(value)
    if path is None or today.usable(path, writes=setting.writes):
        return None
    if setting.drop:
        return ""
    last = posixpath.basename(path)
    file = last if posixpath.splitext(last)[1] else ""  # a file can be made where it is missing
    return posixpath.join(today.home, setting.below, file).rstrip("/")


def folder_of(value: Json) -> str | None:
    """The path in the vault that `value` is; None for its top, beside the note, or anything else."""
    if not isinstance(value, str) or value.startswith("./") or "\0" in value:
        return None
    path = posixpath.normpath(value.strip("/"))
    return None if path in (".", "..") or path.startswith("../") else path


def look(
    folder: str, branches: Sequence[Branch], seen: Iterable[str], template: Iterable[str]
) -> Today:
    """What there is in the vault whose own top level is `folder`.

    `seen`: every branch there ever was. `template`: the paths that the template's settings lead to.
    """
    found = {b.name: (b.state is MountState.ALIVE, b.mode is Mode.RW) for b in named(branches)}
    # What is mounted leaves an empty folder behind.
    gone = {name for name in seen if name not in found and not _filled(folder, name, found)}
    tops = {path.split("/")[0] for path in template} - {INBOX}
    for top in tops - gone:
        inside = [name for name in found if below(name, top) is not None]
        if not inside and not os.path.isdir(os.path.join(folder, top)):
            gone.add(top)
    return Today(found, frozenset(gone))


def named(branches: Iterable[Branch]) -> list[Branch]:
    """The branches that Obsidian can name: it shows nothing that begins with a dot, and knows UTF-8."""
    return [
        b
        for b in branches
        if printable(b.name) == b.name and not any(p[:1] == "." for p in b.name.split("/"))
    ]


def _filled(folder: str, name: str, branches: Collection[str]) -> bool:
    """Whether `name` is a folder of the top level's own that holds something."""
    if any(below(name, branch) is not None for branch in branches):
        return False  # in a branch, which may not answer
    try:
        with os.scandir(os.path.join(folder, name)) as entries:
            return any(True for _ in entries)
    except OSError:
        return False
