"""Writing the desktop's files: each writer in a process of the session user, with a time limit."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from session_agent.desktop import (
    bookmarks,
    emblems,
    icons,
    links,
    obsidian,
    obsidian_plugin,
    obsidian_registry,
    rooms,
)
from session_agent.desktop.bus import find
from session_agent.desktop.changes import Change
from session_agent.desktop.dry_run import Difference, dry_run
from session_agent.desktop.memory import Memory
from session_agent.errors import AgentError
from session_agent.fsutil import bounded
from session_agent.lifecycle.report import StepReport, StepState
from session_agent.lifecycle.session import Place
from session_agent.model import Branch, Mount, Session, SessionUser, printable
from session_agent.mounts.names import below
from session_agent.overlay import connection

Writer = Callable[[], list[Change]]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a writer's process answers."""

    changes: list[Change]
    differences: list[Difference]


@dataclass(frozen=True, slots=True)
class _LinksOutcome:
    """What the links' process answers."""

    written: _Outcome
    names: list[str]


def write_home(
    place: Place,
    session: Session,
    cloud_mounts: str,
    *,
    overlay: bool,
    time_limit: float,
    dry: bool = False,
) -> list[StepReport]:
    """Bookmarks, Obsidian's list of vaults, and rooms, all at once. `overlay`: there will be one.

    With `dry`, nothing is written, and the reports tell the differences.
    """
    memory = Memory(place.state_dir)
    shown = _shown(session, overlay=overlay)
    reachable = _reachable(session, overlay=overlay)
    folders = rooms.rooms(reachable, place.rooms)
    return _run(
        {
            "bookmarks": lambda: [
                bookmarks.apply(
                    place.config_home, place.vault, shown, memory, cloud_mounts=cloud_mounts
                )
            ],
            "Obsidian vault list": lambda: obsidian_registry.register(
                place.user.home, place.config_home, place.vault, memory
            ),
            "sync rooms": lambda: [rooms.apply(folders, place.rooms, memory)],
        },
        place.user,
        time_limit,
        dry,
    )


def follow(
    place: Place, branches: Sequence[Branch], cloud_mounts: str, *, time_limit: float
) -> list[StepReport]:
    """Write everything anew for the branches that the served vault shows by now."""
    mounts = tuple(
        Mount(b.name, b.path, "", "", b.kind, b.mode, b.state, b.cloud_type, b.root, b.device)
        for b in branches
    )
    session = Session(place.user, place.vault, place.vault, place.state_dir, mounts)
    home = write_home(place, session, cloud_mounts, overlay=True, time_limit=time_limit)
    return [*home, *write_vault(place, session, place.vault, overlay=True, time_limit=time_limit)]


def write_vault(
    place: Place,
    session: Session,
    folder: str,
    *,
    overlay: bool,
    time_limit: float,
    dry: bool = False,
) -> list[StepReport]:
    """The links that compose a vault without an overlay, and Obsidian's settings in `folder`.

    `folder` is or becomes the vault's top level.
    """
    memory = Memory(place.state_dir)
    reports, linked = _write_links(place, session, memory, overlay, time_limit / 3, dry)
    reachable = _reachable(session, overlay=overlay)
    branches = [b for b in session.branches if b in reachable or b.name in linked]
    # The vault is reached through the overlay and beside it; without one it may be another folder.
    alone = not overlay and session.root_branch != session.vault
    known_as = f"{session.vault} without the overlay" if alone else session.vault
    plugin = None if overlay else obsidian_plugin.files()
    writer = {
        "Obsidian settings": lambda: obsidian.apply(
            folder, branches, memory, place.obsidian, known_as=known_as, plugin=plugin
        )
    }
    return [*reports, *_run(writer, place.user, time_limit / 3 * 2, dry)]


def _write_links(
    place: Place, session: Session, memory: Memory, overlay: bool, time_limit: float, dry: bool
) -> tuple[list[StepReport], list[str]]:
    """The links' step, if there is anything to say, and the branches that are linked.

    Where there will be an overlay the links go, or it would hide, or show, what nobody put there.
    """
    if connection.is_mounted(place.vault):  # the folder is out of reach, and without links
        return [], []
    targets = {} if overlay else links.wanted(session.branches, place.vault)

    def write() -> _LinksOutcome:
        names: list[str] = []

        def writer() -> list[Change]:
            linked = links.apply(place.vault, targets, place.user, memory)
            names.extend(linked.names)
            return [linked.change]

        return _LinksOutcome(_perform(writer, dry), names)

    try:
        outcome = bounded.run(write, _LinksOutcome, time_limit=time_limit)
    except (AgentError, OSError) as error:
        return [_failed(links.WHAT, str(error))], []
    told = targets or any(c.changed or c.problem for c in outcome.written.changes)
    return _reports(outcome.written) if told else [], outcome.names


def write_icons(place: Place, *, time_limit: float, dry: bool = False) -> list[StepReport]:
    """The emblems' icons: for the whole system where that is possible, else in the user's home."""
    pictures = icons.images()
    if os.geteuid() == 0:
        writer: dict[str, Writer] = {icons.WHAT: lambda: [icons.apply(icons.SYSTEM, pictures)]}
        reports = _run(writer, None, time_limit, dry)
        if all(report.state is StepState.OK for report in reports):
            return reports
    theme = f"{place.user.home}/.local/share/icons/hicolor"
    return _run({icons.WHAT: lambda: [icons.apply(theme, pictures)]}, place.user, time_limit, dry)


def write_emblems(
    place: Place, session: Session, *, overlay: bool, time_limit: float, dry: bool = False
) -> list[StepReport]:
    """The branches' emblems, if the desktop is up; what no agent does later (see companion)."""
    branches = _shown(session, overlay=overlay)

    def writer() -> list[Change]:
        desktop = find(place.user.uid)
        if desktop is None:
            return [Change(emblems.WHAT, "", False, "the desktop is not up")]
        memory = Memory(place.state_dir)
        limit = time_limit / 3  # one to read, one to set, one to spare
        return [emblems.apply(desktop, place.vault, branches, memory, time_limit=limit)]

    return _run({emblems.WHAT: writer}, place.user, time_limit, dry)


def _shown(session: Session, *, overlay: bool) -> list[Branch]:
    """All branches; without the overlay one is found where it is mounted: an absolute name says that."""
    reachable = _reachable(session, overlay=overlay)
    elsewhere = [replace(b, name=b.path) for b in session.branches if b not in reachable]
    return [*reachable, *elsewhere]


def _reachable(session: Session, *, overlay: bool) -> list[Branch]:
    """The branches that a path below the vault leads to."""
    return [b for b in session.branches if overlay or below(b.path, session.vault) == b.name]


def _run(
    writers: Mapping[str, Writer], user: SessionUser | None, time_limit: float, dry: bool = False
) -> list[StepReport]:
    # A codec is a module that is imported when it is first used, and the session user may not be
    # able to read the interpreter's library.
    codecs.lookup("utf-8-sig")
    steps = {
        name: bounded.start(partial(_perform, writer, dry), _Outcome, user)
        for name, writer in writers.items()
    }
    reports = []
    for name, outcome in bounded.collect(steps, time_limit).items():
        if isinstance(outcome, AgentError):
            reports.append(_failed(name, outcome.message, outcome.hint))
        elif isinstance(outcome, Exception):
            reports.append(_failed(name, str(outcome)))
        else:
            reports.extend(_reports(outcome))
    return reports


def _perform(writer: Writer, dry: bool) -> _Outcome:
    if not dry:
        return _Outcome(writer(), [])
    with dry_run() as differences:
        return _Outcome(writer(), differences)


def _reports(outcome: _Outcome) -> list[StepReport]:
    """A report for each change; a difference at a path of no change goes with the last."""
    paths = [change.path for change in outcome.changes]
    texts: dict[int, list[str]] = {}
    for difference in outcome.differences:
        at = [i for i, path in enumerate(paths) if below(difference.path, path) is not None]
        index = at[0] if at else len(paths) - 1
        texts.setdefault(index, []).append(difference.text)
    return [
        _written(change, "\n".join(texts.get(index, ())))
        for index, change in enumerate(outcome.changes)
    ]


def _failed(name: str, message: str, hint: str = "") -> StepReport:
    return StepReport(name, StepState.DEGRADED, False, message, hint)


def _written(change: Change, difference: str) -> StepReport:
    state = StepState.DEGRADED if change.problem else StepState.OK
    detail = change.problem or change.detail
    return StepReport(
        change.what,
        state,
        change.changed,
        detail,
        path=printable(change.path),
        difference=difference,
    )
