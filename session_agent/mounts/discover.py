"""Joins what is known of mounts: the kernel's list, CLOUD_MOUNTS, settings, and what answers.

A path that CLOUD_MOUNTS names counts even where nothing is mounted, if a folder is there: the
provider's client may have put it on a mount that the container has anyhow. It takes its kind, mode
and file system from the mount it lies in, so it is LOCAL on the container's own file system.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from session_agent.model import Mode, Mount, MountKind, MountState, printable
from session_agent.mounts import cloud_mounts as cloud_mounts_parser
from session_agent.mounts import names, probe
from session_agent.mounts.kinds import kind_of
from session_agent.mounts.mountinfo import MountEntry
from session_agent.mounts.storage import StorageRules
from session_agent.mounts.tree import MountTree


@dataclass(frozen=True, slots=True)
class Discovery:
    """The user's mounts by name, what the user should know, and what only a log should.

    A mount at the vault's own path has the name "."; it is no branch, but may be the root branch.
    The warnings say nothing of mounts that are dead or hung: their `state` does.
    """

    mounts: tuple[Mount, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """A mount without its name. `entry` is None only where the kernel lists no root."""

    path: str
    entry: MountEntry | None
    state: MountState


def discover(
    entries: Iterable[MountEntry],
    *,
    cloud_mounts: str = "",
    vault: str,
    home: str,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    time_limit: float = 2.0,
    known_states: Mapping[str, MountState] | None = None,
) -> Discovery:
    """The user's storage among `entries` (`mountinfo.read()`), and the folders of CLOUD_MOUNTS.

    `vault` and `home` are absolute and without symbolic links, as the kernel lists them.
    `include` and `exclude` are path patterns, see `storage`. All mounts are probed at once for
    `time_limit` seconds in total, except those in `known_states` (path -> state): what a running
    overlay covers can be reached through it only, and the agent that serves it knows better.
    Raises OSError if no process can be started.
    """
    rules = StorageRules(vault=vault, home=home, include=include, exclude=exclude)
    tree = MountTree(entries)
    cloud, warnings = cloud_mounts_parser.parse(cloud_mounts)
    types = {entry.path: entry.type for entry in cloud}
    visible = {entry.path: entry for entry in tree.visible()}
    candidates = {
        path: entry
        for path, entry in visible.items()
        if rules.is_storage(entry, wanted=path in types)
    }
    for path in [path for path in candidates if rules.holds_vault(path)]:
        warnings.append(f"{printable(path)} holds the vault, so it cannot be shown in it.")
        del candidates[path]
    folders = [path for path in types if path not in visible]

    known = known_states or {}
    sights = {path: probe.Sight(state, real_path=path) for path, state in known.items()}
    sights |= probe.look((p for p in (*candidates, *folders) if p not in known), time_limit)
    found = {
        path: _Found(path, entry, sights[path].state)
        for path, entry in candidates.items()
        if sights[path].exists and sights[path].directory
    }
    notes = [
        f"The mount {printable(path)} is no folder, or is the container's own; left out."
        for path in visible
        if path not in found and (path in candidates or path in types)
    ]
    for path in folders:
        place = sights[path].real_path  # a symbolic link stands for what it leads to
        fault = _why_no_folder(sights[path], rules)
        if fault:
            notes.append(f"CLOUD_MOUNTS names {printable(path)}, but {fault}; left out.")
            continue
        types[place] = types.get(place) or types[path]
        found.setdefault(place, _Found(place, tree.at(place), sights[path].state))
    return Discovery(_named(found, types, vault), tuple(warnings), tuple(notes))


def _why_no_folder(sight: probe.Sight, rules: StorageRules) -> str:
    """Why a path of CLOUD_MOUNTS at which nothing is mounted is not shown, or "" if it is."""
    if not sight.exists:
        return "there is nothing"
    if sight.state is not MountState.ALIVE:
        return "what it lies on does not answer"
    if not sight.directory or not sight.real_path:
        return "it is no folder, or nobody may look"
    if rules.is_vault_or_above(sight.real_path):
        return "the vault is in it"
    if rules.is_home(sight.real_path):
        return "that is the user's home"
    return "the settings exclude it" if rules.excludes(sight.real_path) else ""


def _named(found: Mapping[str, _Found], types: Mapping[str, str], vault: str) -> tuple[Mount, ...]:
    name = names.assign(found, vault)
    mounts = [_mount(one, name[path], types.get(path, "")) for path, one in found.items()]
    return tuple(sorted(mounts, key=lambda mount: mount.name))


def _mount(found: _Found, name: str, cloud_type: str) -> Mount:
    entry = found.entry
    if entry is None:
        return Mount(
            name, found.path, "", "", MountKind.LOCAL, Mode.RW, found.state, cloud_type, "", ""
        )
    within = names.below(found.path, entry.path)
    root = entry.root if found.path == entry.path else posixpath.join(entry.root, within or "")
    return Mount(
        name=name,
        path=found.path,
        source=entry.source,
        fstype=entry.fstype,
        kind=kind_of(entry),
        mode=Mode.RO if entry.read_only else Mode.RW,
        state=found.state,
        cloud_type=cloud_type,
        root=root,
        device=entry.device,
    )
