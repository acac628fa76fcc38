"""Obsidian's settings in the vault: which there are, and what belongs into each of them.

From the bottom up: a few keys of the agent's own, the administrator's template, the user's values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from session_agent.desktop.layers import Values, settle
from session_agent.desktop.merge import Json, Remembered, Rendered
from session_agent.desktop.obsidian_paths import INBOX, PathSetting, Today, stand_in
from session_agent.desktop.pointers import escape, flatten, patch

ATTACHMENTS = "_inbox/attachments"
# Lists of strings in which only matters what is in them.
_SETS: Mapping[str, tuple[str, ...]] = {
    "app.json": ("/userIgnoreFilters",),
    "community-plugins.json": ("",),
}
# Folders that programs fill with files that nobody reads as notes, wherever they are.
_NOISE = r"node_modules|__pycache__|venv|lost\+found|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information"
IGNORED = f"/(^|\\/)({_NOISE})\\//"

# New notes and attachments have a home that is writable however few folders are mounted, and what
# is deleted stays in the vault: the desktop's trash cannot take files from most mounts.
APP: Mapping[str, Json] = MappingProxyType(
    {
        "newFileLocation": "folder",
        "newFileFolderPath": INBOX,
        "attachmentFolderPath": ATTACHMENTS,
        "trashOption": "local",
        "userIgnoreFilters": [IGNORED],
    }
)
# Two keys that make one setting: who has chosen one has chosen both.
_PAIR = {
    "/newFileLocation": "/newFileFolderPath",
    "/newFileFolderPath": "/newFileLocation",
}

CORE_PLUGINS: Mapping[str, Json] = MappingProxyType({"file-explorer": True, "bookmarks": True})
# What Obsidian writes for a new vault. An older array names those that are on; the others were off.
DEFAULT_CORE_PLUGINS: Mapping[str, Json] = MappingProxyType(
    {
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
)


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """One JSON file: its `name` below `.obsidian`, and what goes into its making.

    `template`: the administrator's values, None if there are none. `keep`: what was written because
    of a template stays, since that cannot be read now.
    """

    name: str
    template: Json = None
    paths: Sequence[PathSetting] = ()
    today: Today = field(default_factory=Today)
    keep: bool = False

    @property
    def sets(self) -> tuple[str, ...]:
        """Pointers of the lists that are sets."""
        return _SETS.get(self.name, ())

    def render(self, current: Json, remembered: Remembered, fresh: bool) -> Rendered:
        """The file's new value, None if there is to be none, and what to remember of it.

        `current` is of one of `kinds_of(name)`, or None if there is no file.
        """
        document = plugins_by_name(current) if self.name == "core-plugins.json" else current
        values = flatten(document, self.sets)
        after, memory = settle(
            values,
            lambda theirs, known: self._wanted(theirs, known, new=current is None),
            self._stand_in,
            remembered,
            fresh=fresh,
            sets=self.sets,
        )
        nothing = current is None and not after
        value = None if nothing else patch(document, after, self.sets)
        return Rendered(value, memory, values)

    def _wanted(self, theirs: Values, known: Remembered, *, new: bool) -> Values:
        kept = known.written if self.keep else {}
        template = flatten(_by_kind(self.name, self.template), self.sets)
        above = {**kept, **template}
        return {**self._own(theirs, known, above, new=new), **above}

    def _own(self, theirs: Values, known: Remembered, above: Values, *, new: bool) -> Values:
        """The agent's own keys, where nothing above them says otherwise."""
        if self.name == "core-plugins.json":
            own = {f"/{escape(name)}": value for name, value in CORE_PLUGINS.items()}
            # A file of the agent's own making holds what Obsidian's would.
            made = {f"/{escape(name)}": value for name, value in DEFAULT_CORE_PLUGINS.items()}
            return {k: v for k, v in made.items() if new or k in own or k in known.written}
        if self.name != "app.json":
            return {}
        own = flatten(dict(APP), self.sets)
        chosen = {key for key, value in theirs.items() if not known.owns(key, value)} | above.keys()
        return {
            key: value
            for key, value in own.items()
            if key in theirs or _PAIR.get(key) not in chosen
            if not _set_by(key, above)
        }

    def _stand_in(self, pointer: str, value: Json) -> Json:
        for setting in self.paths:
            if (setting.file, setting.pointer) == (self.name, pointer):
                return stand_in(setting, value, self.today)
        return None


def kinds_of(name: str) -> tuple[type, ...]:
    """What the settings file `name` may hold."""
    if name == "core-plugins.json":
        return (dict, list)
    return (list,) if "" in _SETS.get(name, ()) else (dict,)


def plugins_by_name(value: Json) -> Json:
    """core-plugins.json as an object: an older version's array names the plugins that are on."""
    if not isinstance(value, list):
        return value
    names = [name for name in value if isinstance(name, str)]
    off = {name: False for name in DEFAULT_CORE_PLUGINS if name not in names}
    return {**dict.fromkeys(names, True), **off}


def _by_kind(name: str, template: Json) -> Json:
    return plugins_by_name(template) if name == "core-plugins.json" else template


def _set_by(key: str, above: Values) -> bool:
    """Whether `above` has a list of its own where `key` is an element of the agent's."""
    pointer = key.rpartition("/")[0]
    return bool(pointer) and key not in above and any(k.startswith(pointer + "/") for k in above)
