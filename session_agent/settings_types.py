"""What can be configured: the settings file, typed."""

from __future__ import annotations

from typing import Literal

import msgspec


class MountSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which mounts become branches. `include` and `exclude` are patterns of absolute paths."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    probe_seconds: float = 2.0


class RoomSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sync daemon's rooms: the file, and the names (desktop/rooms.py).

    `file`: null: ~/.config/session-agent/rooms.yaml. `shared` and `personal`: the names' templates.
    `personal_types`: cloud drives that are each user's own. `username`: if KASM_USER_NAME is not set.
    `server`: the sync server's URL, if SYNC_SERVER_URL is not set.
    """

    file: str | None = None
    shared: str = "folder-{name}"
    personal: str = "user-{username}-{name}"
    personal_types: tuple[str, ...] = ("dropbox", "gdrive", "onedrive")
    username: str | None = None
    server: str | None = None


class ObsidianPath(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plugin's setting that names a folder: `file` below `.obsidian`, `pointer` a JSON pointer."""

    file: str
    pointer: str


class ObsidianSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What users find in `.obsidian` (docs/desktop.md). `template`: a folder of files as in there.

    `paths`: settings of plugins that fall back where they lead to a folder that is not mounted.
    """

    template: str | None = None
    paths: tuple[ObsidianPath, ...] = ()


class OverlaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the vault is served. `remote_seconds`: how long a call into a remote branch may take.

    `foreign_events`: whether programs get inotify events for what others change behind the vault.
    `remote_polls_per_minute`: how many folders of a cloud drive may be looked at for that.
    """

    enabled: bool = True
    cache_seconds: float = 1.0
    remote_seconds: float = 5.0
    foreign_events: bool = True
    remote_polls_per_minute: int = 60


class MoveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How renames from branch to branch are done.

    What exceeds `inline_bytes` or `inline_files` is moved in the background. `handle_rename`: by file handle
    where one file system is mounted twice. `grace_seconds`: how long a stop waits for moves under way.
    """

    inline_bytes: int = 8 << 20
    inline_files: int = 200
    handle_rename: bool = True
    grace_seconds: float = 5.0


class PolicySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may see what, and whose word is taken for who somebody is (docs/policy.md).

    `file`: the permission policy. `ungoverned`: whether branches that it does not speak of are shown.
    """

    file: str | None = None
    ungoverned: Literal["hidden", "shown"] = "hidden"
    identity_file: str | None = None
    identity_from_environment: bool = False
    jwt_keys: str | None = None
    jwt_file: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_user_claim: str = "sub"
    jwt_groups_claim: str = "groups"
    audit_file: str | None = "/var/log/session-agent/audit.jsonl"


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the agent tells of its work. `kasm_ca_file`: PEM certificates that Kasm's API is checked by."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    kasm_ca_file: str | None = None


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings file, typed. A null path: a default that depends on the session user."""

    vault: str = "/vault"
    root_branch: str | None = None
    state_dir: str | None = None
    user: str | int | None = None
    mounts: MountSettings = MountSettings()
    rooms: RoomSettings = RoomSettings()
    obsidian: ObsidianSettings = ObsidianSettings()
    overlay: OverlaySettings = OverlaySettings()
    moves: MoveSettings = MoveSettings()
    policy: PolicySettings = PolicySettings()
    log: LogSettings = LogSettings()
