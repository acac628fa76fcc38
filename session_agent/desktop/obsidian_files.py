"""Files of the administrator's template that are copied whole into `.obsidian`: plugins, themes, snippets.

Whose a file is follows from its content as it does for a value: see `merge`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

from session_agent.desktop.changes import READ_LIMIT, Change, attempt, joined, remove, write
from session_agent.desktop.memory import Notes
from session_agent.desktop.merge import Json, intend, merge
from session_agent.desktop.obsidian_template import Template
from session_agent.errors import UserFileError
from session_agent.fsutil import durable

WHAT = "Obsidian template"


def apply(settings: str, template: Template, notes: Notes, known_as: str, *, fresh: bool) -> Change:
    """Bring the template's files in the folder `settings` up to date; `known_as` in the memory.

    What cannot be done is the change's problem.
    """

    def step() -> Change:
        before = notes.about(known_as)
        names = {*template.files, *before.written, *before.pending}
        current, problems = _hashes(settings, names)
        wanted: dict[str, Json] = {
            name: _hash(data) for name, data in template.files.items() if name not in problems
        }
        kept = names - wanted.keys() if not template.whole else set(problems)
        merged = merge(
            {name: value for name, value in current.items() if name not in kept},
            wanted,
            before,
            fresh=fresh,
        )
        # What is about to be replaced or removed may be there already when this run is killed.
        notes.note(known_as, intend(before, current, merged.remembered))
        failed = dict(problems)
        for name in (*merged.put, *sorted(merged.remove)):
            data = template.files[name] if name in merged.put else None
            if problem := _bring(os.path.join(settings, name), data, current.get(name)):
                failed[name] = problem
        written = {k: v for k, v in merged.remembered.written.items() if k not in failed}
        written |= {k: v for k, v in before.written.items() if k in failed or k in kept}
        pending = {k: v for k, v in merged.remembered.written.items() if k in failed}
        notes.note(known_as, replace(merged.remembered, written=written, pending=pending))
        done = {*merged.put, *merged.remove} - failed.keys()
        told = joined(*template.problems, *failed.values())
        return Change(WHAT, settings, bool(done), f"{len(template.files)} files", told)

    return attempt(WHAT, settings, step)


def _bring(path: str, data: bytes | None, current: Json) -> str:
    """Give the file the content `data`, None for no file; the problem, if there is one."""

    def step() -> Change:
        old = durable.read_regular(path, READ_LIMIT)
        if old is not None and _hash(old) != current:
            raise UserFileError(f"{path} is being changed.")
        if data is None:
            remove(path)
        else:
            write(path, data, old)
        return Change(WHAT, path, True)

    return attempt(WHAT, path, step).problem


def _hashes(settings: str, names: set[str]) -> tuple[dict[str, Json], dict[str, str]]:
    """The hash of each file that is there, and a problem for each that cannot be read."""
    found: dict[str, Json] = {}
    problems: dict[str, str] = {}
    for name in sorted(names):
        path = os.path.join(settings, name)

        def step(name: str = name, path: str = path) -> Change:
            data = durable.read_regular(path, READ_LIMIT)
            if data is not None:
                found[name] = _hash(data)
            return Change(WHAT, path, False)

        if problem := attempt(WHAT, path, step).problem:
            problems[name] = problem
    return found, problems


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
