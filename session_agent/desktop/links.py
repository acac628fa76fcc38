"""Symbolic links that compose the vault where there is no overlay: `vault/s3` leads to `/s3`.

Mounts below the vault's path are in it already; the others get a link of their branch's name. A mount
that does not answer has none, since a program that walks through the vault would hang in it, nor has one
that holds the vault, since that walk would have no end.

A link is the agent's if it is remembered with its target and belongs to the session user. Nothing
else is ever replaced or removed. All is done with that user's rights, except in a vault that root
alone can change (container engines make the folders above a mount so): there root makes the link,
by the folder's descriptor, and gives it to the user, who cannot change it. So a forged memory makes root
remove no more than links that root made for this user.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from session_agent.desktop.changes import Change
from session_agent.desktop.dry_run import is_dry, planned
from session_agent.desktop.memory import Memory
from session_agent.desktop.merge import Json, Merged, Remembered, intend, merge
from session_agent.errors import AgentError
from session_agent.fsutil import at
from session_agent.fsutil.credentials import AGENT, acting_as
from session_agent.model import Branch, MountState, SessionUser, printable
from session_agent.mounts.names import below

WHAT = "links in the vault"
_TAKEN = False  # stands for whatever is no link of the session user's


@dataclass(frozen=True, slots=True)
class Linked:
    """What was done, and the branches that a link in the vault leads to now, by name."""

    change: Change
    names: list[str]


def wanted(branches: Iterable[Branch], vault: str) -> dict[str, str]:
    """The targets of the links that there should be, by the branch's name."""
    return {
        branch.name: branch.path
        for branch in branches
        if branch.state is MountState.ALIVE
        and below(branch.path, vault) is None
        and below(vault, branch.path) is None
    }


def render(
    current: Mapping[str, Json], targets: Mapping[str, str], remembered: Remembered
) -> Merged:
    """What to make and remove. In `current` every name that is there has its target, or False.

    A link that somebody has removed is made again: the vault may be a new container's.
    """
    return merge(current, targets, remembered, fresh=True)


def apply(vault: str, targets: Mapping[str, str], user: SessionUser, memory: Memory) -> Linked:
    """Make the links `targets` in the folder `vault`, and remove those wanted no more.

    To be called with the agent's own rights. Expected failures are the change's `problem`.
    """
    try:
        return _Folder(vault, user).bring(targets, memory)
    except AgentError as error:
        return Linked(Change(WHAT, vault, False, problem=str(error)), [])
    except OSError as error:
        problem = f"{printable(vault)}: {error.strerror}."
        return Linked(Change(WHAT, vault, False, problem=problem), [])


class _Folder:
    """The vault's folder, as its user sees it."""

    def __init__(self, vault: str, user: SessionUser) -> None:
        self._vault, self._user = vault, user

    def bring(self, targets: Mapping[str, str], memory: Memory) -> Linked:
        key = f"links in {self._vault}"
        with acting_as(self._user), memory.locked() as notes:
            before = notes.about(key)
            # The memory is the user's to write: a path in it must not lead root out of the vault.
            known = {n for n in (*before.written, *before.pending) if os.path.basename(n) == n}
            names = (known | set(targets)) - {"", ".", ".."}
            if not names:
                return Linked(Change(WHAT, self._vault, False, "none needed", notes.problem), [])
            try:
                folder = os.open(self._vault, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                if targets and not is_dry():  # a dry run has not made it
                    raise
                return Linked(Change(WHAT, self._vault, bool(targets)), sorted(targets))
            try:
                current = self._current(folder, names)
                merged = render(current, targets, before)
                if merged.put or merged.remove:
                    notes.note(key, intend(before, current, merged.remembered))
                failed = self._change(folder, current, merged)
                there = {**self._targets(folder, names), **self._planned(merged, failed)}
            finally:
                os.close(folder)
            # One that could not be removed is still the agent's to remove.
            kept = {n: current[n] for n in failed if n in current and there.get(n) == current[n]}
            made = {n: t for n, t in merged.remembered.written.items() if n not in failed}
            notes.note(key, replace(merged.remembered, written={**kept, **made}))
            linked = sorted(name for name, path in targets.items() if there.get(name) == path)
            problems = [*failed.values(), *self._taken(targets, linked, failed)]
            detail = ", ".join(printable(name) for name in linked) or "none needed"
            changed = bool((merged.put.keys() | merged.remove) - failed.keys())
            problem = " ".join([*problems, notes.problem]).strip()
            return Linked(Change(WHAT, self._vault, changed, detail, problem), linked)

    def _current(self, folder: int, names: Collection[str]) -> dict[str, Json]:
        """What has each name that is there: the target of a link of the user's, or `_TAKEN`."""
        found: dict[str, Json] = {}
        for name in names:
            try:
                status = at.stat_at(folder, os.fsencode(name))
                own = stat.S_ISLNK(status.st_mode) and status.st_uid == self._user.uid
                found[name] = os.readlink(name, dir_fd=folder) if own else _TAKEN
            except FileNotFoundError:
                continue
        return found

    def _targets(self, folder: int, names: Collection[str]) -> dict[str, str]:
        """The targets of all links among `names`, whoever made them."""
        found = {}
        for name in names:
            try:
                found[name] = os.readlink(name, dir_fd=folder)
            except OSError:  # absent, or no link
                continue
        return found

    def _planned(self, merged: Merged, failed: Collection[str]) -> dict[str, str]:
        """The links that this run makes: those of a dry run are not there to be read."""
        return {name: str(path) for name, path in merged.put.items() if name not in failed}

    def _taken(
        self, targets: Collection[str], linked: Collection[str], failed: Collection[str]
    ) -> list[str]:
        return [
            f"{printable(os.path.join(self._vault, name))} is something else, and stays."
            for name in sorted(targets)
            if name not in linked and name not in failed
        ]

    def _change(self, folder: int, current: Mapping[str, Json], merged: Merged) -> dict[str, str]:
        """Do what `merged` says; what failed, by name, and why."""
        failed = {}
        old = {name: current[name] for name in (*merged.remove, *merged.put) if name in current}
        for name in sorted(merged.put.keys() | merged.remove):
            path = printable(os.path.join(self._vault, name))
            target = merged.put.get(name)
            told = f"a link to {printable(str(target))}" if target else "removed"
            if planned(os.path.join(self._vault, name), f"{path}: {told}"):
                continue
            try:
                if name in old:
                    self._with_rights(folder, partial(self._remove, name=name, target=old[name]))
                if target:
                    self._with_rights(folder, partial(self._make, name=name, target=str(target)))
            except OSError as error:
                failed[name] = f"{path}: {error.strerror}."
        if (merged.put or merged.remove) and not is_dry():
            at.fsync_folder(folder)
        return failed

    def _with_rights(self, folder: int, call: Callable[[int], None]) -> None:
        """`call` with the user's rights, else with root's in a folder that only root can change."""
        try:
            call(folder)
        except PermissionError:
            if AGENT.uid != 0 or self._user.uid == 0:
                raise
            with acting_as(AGENT):
                of_root = _open_of_root(self._vault)
                try:
                    call(of_root)
                finally:
                    os.close(of_root)

    def _make(self, folder: int, name: str, target: str) -> None:
        os.symlink(target, name, dir_fd=folder)  # replaces nothing, not even a dangling link
        if at.stat_at(folder, os.fsencode(name)).st_uid != self._user.uid:  # root has made it
            os.chown(name, self._user.uid, self._user.gid, dir_fd=folder, follow_symlinks=False)

    def _remove(self, folder: int, name: str, target: Json) -> None:
        """Looked at once more, just before."""
        if self._current(folder, [name]).get(name) == target:
            os.unlink(name, dir_fd=folder)


def _open_of_root(path: str) -> int:
    """The folder `path`, found as root without a link, where nobody else can change it.

    Nor any folder above it, but that root's entries in a sticky one (/tmp) are safe from others.
    """
    parts = path.strip("/").split("/")
    folder = os.open("/", at.FOLDER)
    try:
        for number, name in enumerate([*parts, ""]):
            status = os.fstat(folder)
            sticky = number < len(parts) and status.st_mode & stat.S_ISVTX
            if status.st_uid != 0 or (status.st_mode & 0o022 and not sticky):
                raise PermissionError(errno.EPERM, "neither its user nor root alone can change it")
            if name:
                below_it = os.open(name, at.FOLDER, dir_fd=folder)
                os.close(folder)
                folder = below_it
        return os.dup(folder)
    finally:
        os.close(folder)
