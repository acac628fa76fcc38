"""Emblems: the small signs that Thunar draws on a folder, in its side pane too.

They are GVfs metadata of a path, kept by a service on the session bus, so nothing is written to the
folder itself. Kasm's `emblems.sh` sets `<type>-emblem` for the entries of CLOUD_MOUNTS, in place of
whatever is there; the same name is used here, so that it does not matter who comes first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from session_agent.desktop import bus
from session_agent.desktop.bus import Desktop
from session_agent.desktop.changes import Change, attempt, joined
from session_agent.desktop.dry_run import is_dry, planned
from session_agent.desktop.icons import NAMES
from session_agent.desktop.memory import Memory
from session_agent.desktop.merge import Json, Remembered, intend, merge
from session_agent.errors import UserFileError
from session_agent.model import Branch, Mode, MountState, printable

WHAT = "emblems"
STORAGE = "session-agent-storage"
READ_ONLY = "session-agent-read-only"
UNAVAILABLE = "session-agent-unavailable"
_ATTRIBUTE = "metadata::emblems"
_AT_ONCE = 8  # gio processes
_GIO_SECONDS = 5.0  # as long as a call into a remote branch may take, see OverlaySettings

Emblems = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The paths whose emblems are to be set, to what, what to remember then, and what was `found`."""

    put: Mapping[str, Emblems]
    remembered: Remembered
    found: Mapping[str, Json]


def of_branch(branch: Branch) -> Emblems:
    """The emblems that `branch` is to bear: where it comes from, and what is special about it now."""
    named = f"{branch.cloud_type}-emblem"
    found = [named if named in NAMES else STORAGE]
    if branch.mode is Mode.RO:
        found.append(READ_ONLY)
    if branch.state is not MountState.ALIVE:
        found.append(UNAVAILABLE)
    return tuple(found)


def wanted(vault: str, branches: Sequence[Branch]) -> dict[str, Emblems]:
    """The emblems of all branches by path. A branch that is not below the vault has an absolute name."""
    return {
        os.path.normpath(os.path.join(vault, branch.name)): of_branch(branch) for branch in branches
    }


def render(
    current: Mapping[str, Emblems],
    branches: Mapping[str, Emblems],
    scripts: Mapping[str, str],
    remembered: Remembered,
) -> Rendered:
    """What to set so that the paths in `branches` bear their emblems beside the user's own.

    `current` are the emblems found, by path; a path that is not in it could not be asked. `scripts`
    are the emblems that emblems.sh gives, by path: finding one of those alone tells nothing of the
    user's wishes. Emblems of ours that the user took away, or added to, stay so.
    """
    known = {*NAMES, *scripts.values()}
    ours: dict[str, Json] = {}
    for path, emblems in current.items():
        found: list[Json] = [name for name in emblems if name in known]
        last = remembered.written.get(path, remembered.pending.get(path))
        if found and last is not None:
            ours[path] = last if found == [scripts.get(path)] else found
    asked: dict[str, Json] = {
        path: list(emblems) for path, emblems in branches.items() if path in current
    }
    merged = merge(ours, asked, remembered, fresh=not remembered.seen_in(ours))
    put: dict[str, Emblems] = {}
    for path, emblems in current.items():
        foreign = [name for name in emblems if name not in known]
        if path in merged.remembered.written:
            after = (*branches[path], *foreign)
        elif path in merged.remove:
            after = tuple(foreign)
        else:
            continue
        if sorted(after) != sorted(emblems):
            put[path] = after
    # What could not be asked is as it was, for all that is known.
    unasked = {p: v for p, v in remembered.written.items() if p in branches and p not in current}
    written = {**unasked, **merged.remembered.written}
    return Rendered(put, replace(merged.remembered, written=written), ours)


def apply(
    desktop: Desktop,
    vault: str,
    branches: Sequence[Branch],
    memory: Memory,
    *,
    time_limit: float = _GIO_SECONDS,
) -> Change:
    """Give the branches their emblems, with the user's rights. `time_limit`: seconds for each call.

    Expected failures are the change's `problem`.
    """
    store = os.path.join(desktop.data_home, "gvfs-metadata")

    def step() -> Change:
        marks = wanted(vault, branches)
        scripts = {
            os.path.normpath(os.path.join(vault, branch.name)): f"{branch.cloud_type}-emblem"
            for branch in branches
            if branch.cloud_type
        }
        with memory.locked() as notes:
            before = notes.about(store)
            paths = list({**marks, **before.written, **before.pending})
            current, problems = _read(desktop, paths, time_limit)
            after = render(current, marks, scripts, before)
            notes.note(store, intend(before, after.found, after.remembered))
            if is_dry():
                return _told(store, after.put, current)
            failed = _set(desktop, after.put, time_limit)
            notes.note(store, _without(after.remembered, before, failed.keys()))
            changed = [path for path in after.put if path not in failed]
            for path in changed:
                _announce(path)
            told = [problem for path, problem in problems.items() if path in marks]
            told += failed.values()
            detail = f"{len(marks)} places"
            return Change(WHAT, store, bool(changed), detail, joined(*told, notes.problem))

    return attempt(WHAT, store, step)


def _told(store: str, put: Mapping[str, Emblems], current: Mapping[str, Emblems]) -> Change:
    """A dry run's change."""
    lines = [
        f"{printable(path)}: {', '.join(current[path]) or 'none'} -> {', '.join(emblems) or 'none'}"
        for path, emblems in put.items()
    ]
    if lines:
        planned(store, "\n".join(map(printable, lines)))
    return Change(WHAT, store, bool(lines))


def _without(after: Remembered, before: Remembered, failed: Collection[str]) -> Remembered:
    """What to remember if nothing is known of the paths in `failed`: they may bear either."""
    written = {path: value for path, value in after.written.items() if path not in failed}
    written |= {path: value for path, value in before.written.items() if path in failed}
    pending = {path: value for path, value in after.written.items() if path in failed}
    return replace(after, written=written, pending=pending)


def _announce(path: str) -> None:
    """Have a running Thunar look at the folder again: GVfs does not tell it.

    In the vault this touch is answered and not carried out (see overlay/operations.py); elsewhere it
    sets the folder's times, if that is allowed.
    """
    with contextlib.suppress(OSError):
        os.utime(path)


def _read(
    desktop: Desktop, paths: Sequence[str], time_limit: float
) -> tuple[dict[str, Emblems], dict[str, str]]:
    """The emblems of the paths that can be asked, and a problem for each other one."""
    commands = {path: ["gio", "info", "-a", _ATTRIBUTE, path] for path in paths}
    answers, problems = _run(desktop, commands, time_limit)
    return {path: _parse(output) for path, output in answers.items()}, problems


def _set(desktop: Desktop, put: Mapping[str, Emblems], time_limit: float) -> dict[str, str]:
    """Set emblems; a problem for each path where that failed."""
    commands = {
        path: ["gio", "set", "-t", "stringv", path, _ATTRIBUTE, *emblems]
        if emblems
        else ["gio", "set", "-t", "unset", path, _ATTRIBUTE]
        for path, emblems in put.items()
    }
    return _run(desktop, commands, time_limit)[1]


def _run(
    desktop: Desktop, commands: Mapping[str, Sequence[str]], time_limit: float
) -> tuple[dict[str, str], dict[str, str]]:
    """The output of each command, by path, or what went wrong with it."""
    answers: dict[str, str] = {}
    problems: dict[str, str] = {}
    paths = list(commands)
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        for path, ended in zip(
            some, bus.run(desktop, [commands[p] for p in some], time_limit=time_limit), strict=True
        ):
            if ended is None:
                raise UserFileError("gio is not installed.", "Install the package libglib2.0-bin.")
            if ended.code == 0:
                answers[path] = ended.output
            elif ended.code is None:
                problems[path] = f"{printable(path)} did not answer within {time_limit:g} s."
            else:
                problems[path] = f"{printable(path)}: {printable(ended.output.strip())}."
    return answers, problems


def _parse(output: str) -> Emblems:
    """What `gio info` prints of the attribute: `  metadata::emblems: [one, two]`."""
    for line in output.splitlines():
        name, _, value = line.strip().partition(": ")
        if name == _ATTRIBUTE and value.startswith("[") and value.endswith("]"):
            return tuple(emblem for emblem in value[1:-1].split(", ") if emblem)
    return ()
