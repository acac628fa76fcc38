"""What an administrator enters in Kasm Workspaces to come as near to the policy as Kasm alone can.

Kasm merges the mappings of a user and of all their groups. So it can say what is the union of groups and
users, each with one mode. What it cannot say is told, rule by rule, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from session_agent.policy.conditions import (
    All,
    Any,
    Condition,
    Everyone,
    HasAttribute,
    InGroup,
    IsUser,
    Not,
)
from session_agent.policy.model import Folder, Policy, Rule, Storage
from session_agent.policy.plan import Json

EVERYONE = "All Users"  # the group of Kasm's that everybody is in

# What each kind of rclone storage needs besides the policy's `options`. Secrets are never in a policy.
_NEEDED: dict[str, tuple[str, ...]] = {
    "s3": ("s3-provider", "s3-region", "s3-access-key-id", "s3-secret-access-key"),
    "nextcloud": ("webdav-url", "webdav-vendor", "webdav-user", "webdav-pass"),
    "gdrive": ("drive-client-id", "drive-client-secret", "drive-token"),
    "dropbox": ("dropbox-client-id", "dropbox-client-secret", "dropbox-token"),
    "onedrive": ("onedrive-client-id", "onedrive-client-secret", "onedrive-token"),
    "rclone": (),
}
_RCLONE_TYPES = {"gdrive": "drive", "nextcloud": "webdav"}
_PRESET = {"webdav-vendor": "nextcloud"}
_SECRET = re.compile(r"secret|pass|token|key|credential", re.IGNORECASE)
_COMMON = {
    "uid": "1000",
    "gid": "1000",
    "allow_other": "true",
    "vfs-cache-mode": "off",
    "dir-cache-time": "10s",
}


@dataclass(frozen=True, slots=True)
class Gap:
    """A part of the policy that Kasm's own mappings do not say."""

    folder: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Mapping:
    """A storage mapping: on a group or a user."""

    group: str
    user: str
    folder: Folder
    read_only: bool


def as_json(policy: Policy, only: frozenset[str] | None = None) -> Json:
    """Providers, mappings by group and by user, the workspace's run config, and what is missing.

    `only`: leave out the mappings of other groups.
    """
    mappings, gaps = translate(policy)
    kept = [one for one in mappings if only is None or one.group in only or one.user]
    groups: dict[str, list[Json]] = {}
    users: dict[str, list[Json]] = {}
    for mapping in kept:
        where = (
            groups.setdefault(mapping.group, [])
            if mapping.group
            else users.setdefault(mapping.user, [])
        )
        where.append(
            {
                "provider": mapping.folder.name,
                "target": mapping.folder.target,
                "read_only": mapping.read_only,
            }
        )
    used = {mapping.folder.name for mapping in kept}
    return {
        "storage_providers": [provider(folder) for folder in policy.folders if folder.name in used],
        "group_mappings": groups,
        "user_mappings": users,
        "run_config": {"environment": {"CLOUD_MOUNTS": cloud_mounts(policy, used)}},
        "not_expressible": [
            {"folder": gap.folder, "line": gap.line, "reason": gap.reason} for gap in gaps
        ],
    }


def cloud_mounts(policy: Policy, names: set[str]) -> str:
    """CLOUD_MOUNTS of the folders that lie in a cloud, as the core image reads it."""
    return ",".join(
        f"{folder.target}|{folder.storage.type}"
        for folder in policy.folders
        if folder.name in names and folder.storage.type not in ("bind", "custom")
    )


def provider(folder: Folder) -> Json:
    """The storage provider of one folder, with its volume and mount config."""
    storage = folder.storage
    if storage.type == "bind":
        volume: Json = {
            "driver": "local",
            "driver_opts": {"type": "none", "o": "bind", "device": folder.path},
        }
    elif storage.type == "custom":
        volume = {
            "driver": storage.options.get("driver", "local"),
            "driver_opts": {
                name: _safe(name, value)
                for name, value in storage.options.items()
                if name != "driver"
            },
        }
    else:
        volume = {"driver": "rclone", "driver_opts": _rclone(storage, folder.path)}
    kind = storage.type if storage.type not in ("bind", "rclone") else "custom"
    return {"name": folder.name, "type": kind, "volume_config": volume, "mount_config": {}}


def _rclone(storage: Storage, path: str) -> Json:
    options: Json = {"path": path.removeprefix("/"), **_COMMON}
    if storage.type != "rclone":
        options["type"] = _RCLONE_TYPES.get(storage.type, storage.type)
    for name in _NEEDED[storage.type]:
        options[name] = _PRESET.get(name, f"<{name}>")
    for name, value in storage.options.items():
        options[name] = _safe(name, value)
    return options


def _safe(name: str, value: str) -> str:
    """The option's value; a placeholder for one that is a secret by its name."""
    return f"<{name}>" if _SECRET.search(name) else value


def translate(policy: Policy) -> tuple[list[Mapping], list[Gap]]:
    """The mappings that Kasm can make, and what it cannot say."""
    mappings: list[Mapping] = []
    gaps: list[Gap] = []
    for folder in policy.folders:
        modes: dict[bool, set[str]] = {True: set(), False: set()}
        for rule in folder.access:
            reason = _why_not(rule)
            if reason:
                gaps.append(Gap(folder.name, rule.at.line, reason))
                continue
            read_only = rule.mode.value == "ro"
            for kind, name in _principals(rule.condition):
                modes[read_only].add(f"{kind} {name}")
                group, user = (name, "") if kind == "group" else ("", name)
                mappings.append(Mapping(group, user, folder, read_only))
        gaps += _folder_gaps(folder, two_levels=bool(modes[True] and modes[False]))
    return mappings, gaps


def _folder_gaps(folder: Folder, *, two_levels: bool) -> Iterator[Gap]:
    line = folder.at.line
    if two_levels:
        yield Gap(
            folder.name,
            line,
            "two modes for one folder: whoever is in groups of both gets two mappings on one target",
        )
    for rule in folder.deny:
        yield Gap(
            folder.name,
            rule.at.line,
            "deny: Kasm only adds mappings, so they show more than the policy does",
        )
    for implication in folder.implies:
        reason = f"implies {implication.folder}: Kasm derives no access from access"
        yield Gap(folder.name, implication.at.line, reason)
    for subfolder in folder.subfolders:
        reason = f"{subfolder.path}: a part with rules of its own; the mapping shows it as the rest"
        yield Gap(folder.name, subfolder.at.line, reason)


def _why_not(rule: Rule) -> str:
    """Why Kasm's mappings cannot say this rule; "" if they can."""
    if not rule.validity.always:
        return "limited in time: a mapping holds until somebody removes it"
    return _not_a_union(rule.condition)


def _not_a_union(condition: Condition) -> str:
    if isinstance(condition, All):
        return f"{condition}: Kasm has no intersection of groups"
    if isinstance(condition, Not):
        return f"{condition}: Kasm has no exception from a group"
    if isinstance(condition, HasAttribute):
        return f"{condition}: mappings know groups and users, no attributes"
    if isinstance(condition, Any):
        return next((reason for part in condition.parts if (reason := _not_a_union(part))), "")
    return ""


def _principals(condition: Condition) -> Iterator[tuple[str, str]]:
    if isinstance(condition, Any):
        for part in condition.parts:
            yield from _principals(part)
    elif isinstance(condition, InGroup):
        yield from (("group", name) for name in sorted(condition.groups))
    elif isinstance(condition, IsUser):
        yield from (("user", name) for name in sorted(condition.users))
    elif isinstance(condition, Everyone):
        yield "group", EVERYONE
