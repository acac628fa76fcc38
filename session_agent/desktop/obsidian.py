"""Obsidian's settings in the vault, the folder `.obsidian`: all files of it, in their order.

The agent owns a few named keys and one group of bookmarks, an administrator may give a template, and
both only as long as the user leaves them as written (see `layers`, `merge`). Everything else keeps its
value and its place. A file that is not understood is left alone, copied aside and reported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from session_agent.desktop import (
    jsonfile,
    obsidian_bookmarks,
    obsidian_files,
    obsidian_paths,
    obsidian_plugin,
    obsidian_template,
)
from session_agent.desktop.changes import Change, attempt, make_folders, unless_changed
from session_agent.desktop.memory import Memory, Notes
from session_agent.desktop.merge import Json, Remembered, Rendered, intend, same
from session_agent.desktop.obsidian_paths import INBOX, PathSetting, folder_of
from session_agent.desktop.obsidian_settings import ATTACHMENTS, SettingsFile, kinds_of
from session_agent.desktop.obsidian_template import Template
from session_agent.desktop.pointers import flatten
from session_agent.errors import AgentError
from session_agent.fsutil import durable
from session_agent.model import Branch
from session_agent.settings_types import ObsidianSettings

FOLDER = ".obsidian"
_BOOKMARKS = "bookmarks.json"
_ALWAYS = ("app.json", "core-plugins.json")

Render = Callable[[Json, Remembered, bool], Rendered]


@dataclass(frozen=True, slots=True)
class Terms:
    """What the administrator says. `root_only`: the template must be root's alone."""

    settings: ObsidianSettings = field(default_factory=ObsidianSettings)
    root_only: bool = False


def apply(
    folder: str,
    branches: Sequence[Branch],
    memory: Memory,
    terms: Terms = Terms(),
    *,
    known_as: str = "",
    plugin: Mapping[str, bytes] | None = None,
) -> list[Change]:
    """Bring `folder`/.obsidian up to date, and create the inbox beside it.

    `folder` is where the vault's top level is kept; the memory knows it as `known_as`, since the same
    one is reached by two paths, through the overlay and beside it. `plugin`: the files of our own, where
    it is to be installed. One change a file; expected failures are the changes' `problem`, and keep no
    other file from being written.
    """
    inbox = os.path.join(folder, INBOX)
    changes = [attempt("Obsidian inbox", inbox, lambda: _make_inbox(folder))]
    settings = os.path.join(folder, FOLDER)
    try:
        with memory.locked() as notes:
            work = _Work(settings, os.path.join(known_as or folder, FOLDER), notes)
            changes += work.run(folder, branches, terms)
            if plugin is not None:
                changes.append(work.install(plugin))
            if notes.problem:
                changes.append(Change("desktop memory", memory.state_dir, False, "", notes.problem))
    except AgentError as error:
        changes.append(Change("Obsidian settings", settings, False, "", str(error)))
    return changes


class _Work:
    """One run over the files in `settings`, with the memory locked."""

    def __init__(self, settings: str, known_as: str, notes: Notes) -> None:
        self._settings = settings
        self._known_as = known_as
        self._notes = notes
        self._fresh = self._is_fresh()

    def run(self, folder: str, branches: Sequence[Branch], terms: Terms) -> list[Change]:
        template = Template()
        if terms.settings.template is not None:
            template = obsidian_template.read(terms.settings.template, root_only=terms.root_only)
        paths = (
            *obsidian_paths.KNOWN,
            *(PathSetting(p.file, p.pointer) for p in terms.settings.paths),
        )
        names = [branch.name for branch in obsidian_paths.named(branches)]
        seen = self._notes.see(names)
        today = obsidian_paths.look(folder, branches, seen, _leads(template, paths))
        changes = []
        for name in self._settings_files(template, paths):
            file = SettingsFile(
                name, template.settings.get(name), paths, today, keep=not template.whole
            )
            change = self._apply(name, file.render)
            # Of a file that may be absent, and needs nothing, there is nothing to tell.
            if name in _ALWAYS or name in template.settings or change.changed or change.problem:
                changes.append(change)
        changes.append(self._apply_bookmarks(branches, template.settings.get(_BOOKMARKS)))
        known_as = self._known_as + "/"  # the folder as a whole
        if terms.settings.template is not None or self._notes.about(known_as) != Remembered():
            changes.append(
                obsidian_files.apply(
                    self._settings, template, self._notes, known_as, fresh=self._fresh
                )
            )
        return changes

    def install(self, plugin: Mapping[str, bytes]) -> Change:
        """Put our own plugin there."""
        known_as = f"{self._known_as}, {obsidian_plugin.ID}"  # no name of a file below
        return obsidian_plugin.apply(
            self._settings, plugin, self._notes, known_as, fresh=self._fresh
        )

    def _settings_files(self, template: Template, paths: Sequence[PathSetting]) -> list[str]:
        """All that may need something: the usual ones first, then in the order of their names."""
        start = self._known_as + "/"
        known = [path[len(start) :] for path in self._notes.known_below(self._known_as)]
        others = {*template.settings, *(setting.file for setting in paths), *filter(None, known)}
        return [*_ALWAYS, *sorted(others - {*_ALWAYS, _BOOKMARKS})]

    def _apply_bookmarks(self, branches: Sequence[Branch], template: Json) -> Change:
        now_ms = time.time_ns() // 1_000_000

        def render(current: Json, remembered: Remembered, fresh: bool) -> Rendered:
            start = template if current is None and isinstance(template, dict) else current
            return obsidian_bookmarks.render(
                start, remembered, fresh, branches=branches, now_ms=now_ms
            )

        return self._apply(_BOOKMARKS, render)

    def _apply(self, name: str, render: Render) -> Change:
        what = f"Obsidian {name}"
        path, known_as = os.path.join(self._settings, name), os.path.join(self._known_as, name)

        def step() -> Change:
            document = jsonfile.load(path, *kinds_of(name))
            before = self._notes.about(known_as)
            fresh = self._fresh or document.value is None
            rendered = render(document.value, before, fresh)
            after = rendered.remembered
            changed = not same(rendered.value, document.value)
            if changed:
                safe = self._notes.note(known_as, intend(before, rendered.found, after))
                if after.parked and not safe:
                    # The user's value would be nowhere.
                    return Change(what, path, False)
                jsonfile.replace_value(path, document, rendered.value)
            self._notes.note(known_as, after)
            return Change(what, path, changed)

        return attempt(what, path, lambda: unless_changed(step))

    def _is_fresh(self) -> bool:
        """Whether this `.obsidian` is not the one remembered: its app.json has none of our keys.

        Where that cannot be read, the user's wishes are thought to be those remembered.
        """
        try:
            data = durable.read_regular(os.path.join(self._settings, _ALWAYS[0]))
            value = jsonfile.parse(data or b"").value
        except (ValueError, OSError, AgentError):
            return False
        remembered = self._notes.about(os.path.join(self._known_as, _ALWAYS[0]))
        return not remembered.seen_in(flatten(value, SettingsFile(_ALWAYS[0]).sets))


def _leads(template: Template, paths: Sequence[PathSetting]) -> list[str]:
    """The folders that path settings of the template lead to."""
    found = []
    for setting in paths:
        value = flatten(template.settings.get(setting.file)).get(setting.pointer)
        found.append(folder_of(value))
    return [path for path in found if path is not None]


def _make_inbox(folder: str) -> Change:
    inbox = os.path.join(folder, INBOX)
    there = os.path.isdir(os.path.join(folder, ATTACHMENTS))
    make_folders(os.path.join(folder, ATTACHMENTS))
    return Change("Obsidian inbox", inbox, not there)
