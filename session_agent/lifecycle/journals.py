"""The journal of moves: opened for the agent that serves, or for `recover` when none does."""

from __future__ import annotations

import os
from collections.abc import Sequence

from session_agent.errors import ControlError, UserFileError
from session_agent.fsutil.credentials import Caller, acting_as
from session_agent.lifecycle import session as sessions
from session_agent.lifecycle import state, vault
from session_agent.lifecycle.session import Place
from session_agent.model import SessionUser, printable
from session_agent.mounts import mountinfo
from session_agent.moves import copier_process
from session_agent.moves.journal import Journal
from session_agent.moves.record import End, decode, encode
from session_agent.moves.recover import Finding, Found, OpenFolder, open_below, recover, redo
from session_agent.moves.strategy import MountPoint, Options
from session_agent.settings import Loaded


def open_journal(folder: int, user: SessionUser) -> tuple[Journal | None, list[str]]:
    """The journal in the state directory, and what is to be told of it.

    Without one the vault works all the same: every move is then done while its caller waits.
    """
    try:
        journal = Journal(folder, user)
    except UserFileError as error:
        return None, [str(error)]
    return journal, list(journal.problems)


def told(findings: Sequence[Finding]) -> list[str]:
    """The warnings that recovery gives reason for."""
    warnings = [
        f"A move that was cut off waits: {one.why}."
        for one in findings
        if one.found is Found.WAITING
    ]
    warnings += [
        f"{one.record.source.shown} and {one.record.target.shown} are both kept: a move between"
        " them was cut off, and they differ by now."
        for one in findings
        if one.found is Found.KEPT
    ]
    return warnings


def mount_points() -> list[MountPoint]:
    """The mounts there are now, as moves need to know them."""
    return [MountPoint(one.mount_id, one.path, one.root, one.device) for one in mountinfo.read()]


def recover_without_agent(loaded: Loaded, place: Place) -> tuple[list[Finding], list[str]]:
    """Do what the start of an agent would do with the moves in flight, and carry out accepted ones.

    A mount that a killed agent left behind is removed: it hides the branches below the vault. Answers what
    was found, and what else is to be told. Raises ControlError while an agent runs, and
    UserFileError where the journal cannot be used.
    """
    folder = state.create(place.state_dir, place.user)
    try:
        if not state.lock(folder, place.user):
            raise ControlError(
                f"The agent (process {state.holder(folder)}) is running, and has done it at its start.",
                "`session-agent moves` shows the moves; `session-agent stop` ends the agent.",
            )
        vault.take_over(place.vault, place.user)
        session = sessions.build(loaded, place)
        journal = Journal(folder, place.user)
    finally:
        os.close(folder)
    copiers = copier_process.start()
    options = Options(loaded.settings.moves.handle_rename, mount_points, copiers)
    user = Caller(place.user.uid, place.user.gid, place.user.groups)
    tops = {"": session.root_branch}
    tops |= {encode(os.fsencode(one.name)): one.path for one in session.branches}

    def open_folder(end: End) -> int:
        path = tops.get(end.branch)
        if path is None:
            name = printable(os.fsdecode(decode(end.branch)))
            raise FileNotFoundError(2, f"the branch {name} is not mounted")
        with acting_as(user):
            top = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return open_below(top, end.steps)
            finally:
                os.close(top)

    try:
        findings = recover(journal, journal.records(), open_folder, user)
        for index, one in enumerate(findings):
            if one.found is Found.AGAIN:
                findings[index] = _redone(journal, one, open_folder, user, options)
        return findings, journal.problems
    finally:
        copiers.end()
        journal.close()


def _redone(
    journal: Journal,
    finding: Finding,
    open_folder: OpenFolder,
    user: Caller,
    options: Options,
) -> Finding:
    try:
        outcome = redo(journal, finding.record, open_folder, user, options)
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding(finding.record, Found.UNDONE, reason)
    return Finding(finding.record, Found.KEPT if outcome.kept else Found.FINISHED)
