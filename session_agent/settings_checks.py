"""What the settings' types do not say of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

from session_agent.settings_types import ObsidianSettings, RoomSettings, Settings


def is_folder(value: Any) -> bool:
    """Whether it is an absolute path of something below the root folder."""
    if value is None:
        return True
    parts = value.split("/")
    return value.startswith("/") and "\0" not in value and ".." not in parts and any(parts)


def _is_pattern_list(value: Any) -> bool:
    return all(is_folder(pattern) for pattern in value)


def _is_user(value: Any) -> bool:
    if isinstance(value, int):
        return 0 <= value < 0xFFFFFFFF
    return value is None or (bool(value) and "\0" not in value)


def _is_duration(low: float, high: float) -> Callable[[Any], bool]:
    # Not-a-number fails both comparisons.
    return lambda value: low <= value <= high


FOLDER = "expected an absolute path below / and without `..`, such as {}"


def _is_rate(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= 6000


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 60


# No room of one template may be one of the other's, nor one user's another's. So they begin
# differently, and a `-`, which the username is rewritten not to hold, is between it and the name.
_LITERAL = r"[A-Za-z0-9._@+-]*"
_BEGIN = "[A-Za-z0-9._@+-]+"
_BETWEEN = f"{_LITERAL}-{_LITERAL}"
_SHARED = re.compile(rf"({_BEGIN})\{{name\}}{_LITERAL}")
_PERSONAL = re.compile(
    rf"({_BEGIN})(\{{username\}}{_BETWEEN}\{{name\}}|\{{name\}}{_BETWEEN}\{{username\}}){_LITERAL}"
)


def _is_shared_template(value: Any) -> bool:
    return _SHARED.fullmatch(value) is not None


def _is_personal_template(shared: str) -> Callable[[Any], bool]:
    beside = _SHARED.fullmatch(shared)

    def fits(value: Any) -> bool:
        found = _PERSONAL.fullmatch(value)
        if found is None or beside is None:
            return False
        return not (found[1].startswith(beside[1]) or beside[1].startswith(found[1]))

    return fits


SERVER = "expected a URL such as ws://sync.example:1234, without a password or a query"
# No user, password or query: the rooms file is no place for secrets.
_SERVER = re.compile(
    r"wss?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?"
)


def is_server(value: str) -> bool:
    """Whether it is the URL of a WebSocket server that may stand in a file."""
    return _SERVER.fullmatch(value) is not None


Check: TypeAlias = tuple[str, Any, Callable[[Any], bool], str]


def _room_checks(rooms: RoomSettings) -> list[Check]:
    return [
        ("rooms.file", rooms.file, is_folder, FOLDER.format("/vault/rooms.yaml")),
        (
            "rooms.shared",
            rooms.shared,
            _is_shared_template,
            "expected letters, digits, any of ._-@+, and once {name}, such as folder-{name}",
        ),
        (
            "rooms.personal",
            rooms.personal,
            _is_personal_template(rooms.shared),
            "expected such as user-{username}-{name}: a `-` between, another beginning than rooms.shared",
        ),
        (
            "rooms.username",
            rooms.username,
            lambda value: value is None or bool(value.strip()),
            "expected the user's name at the sync server",
        ),
        ("rooms.server", rooms.server, lambda value: value is None or is_server(value), SERVER),
    ]


_JSON_FILE = re.compile(r"(?!([^\0]*/)?\.{1,2}/)([^/\0]+/)*[^/\0]+\.json")
_POINTER = re.compile(r"(/([^/~]|~[01])*)+")  # RFC 6901


def _is_obsidian_paths(value: Any) -> bool:
    return all(
        _JSON_FILE.fullmatch(entry.file) and _POINTER.fullmatch(entry.pointer) for entry in value
    )


def _obsidian_checks(obsidian: ObsidianSettings) -> list[Check]:
    return [
        (
            "obsidian.template",
            obsidian.template,
            is_folder,
            FOLDER.format("/etc/session-agent/obsidian"),
        ),
        (
            "obsidian.paths",
            obsidian.paths,
            _is_obsidian_paths,
            "expected a list of such as {file: plugins/x/data.json, pointer: /templates_folder}",
        ),
    ]


def checks(settings: Settings) -> list[Check]:
    """What the types do not say: dotted key, value, whether it fits, what was expected."""
    patterns = "expected a list of absolute paths or patterns of them, such as /mnt/team-*"
    mounts, overlay, moves = settings.mounts, settings.overlay, settings.moves
    return [
        ("vault", settings.vault, is_folder, FOLDER.format("/vault")),
        ("root_branch", settings.root_branch, is_folder, FOLDER.format("/srv/notes")),
        ("state_dir", settings.state_dir, is_folder, FOLDER.format("/var/lib/session-agent")),
        ("user", settings.user, _is_user, "expected a user's name or number"),
        ("mounts.include", mounts.include, _is_pattern_list, patterns),
        ("mounts.exclude", mounts.exclude, _is_pattern_list, patterns),
        (
            "mounts.probe_seconds",
            mounts.probe_seconds,
            _is_duration(0.05, 3),  # first-launch as a whole has ten
            "expected seconds, from 0.05 to 3",
        ),
        *_room_checks(settings.rooms),
        *_obsidian_checks(settings.obsidian),
        (
            "overlay.cache_seconds",
            overlay.cache_seconds,
            _is_duration(0, 3600),
            "expected seconds, from 0 to 3600",
        ),
        (
            "overlay.remote_seconds",
            overlay.remote_seconds,
            _is_duration(0.05, 600),
            "expected seconds, from 0.05 to 600",
        ),
        (
            "overlay.remote_polls_per_minute",
            overlay.remote_polls_per_minute,
            _is_rate,
            "expected a number of folders, from 0 to 6000",
        ),
        *(
            (f"policy.{name}", getattr(settings.policy, name), is_folder, FOLDER.format("/etc/x"))
            for name in ("file", "identity_file", "jwt_keys", "jwt_file", "audit_file")
        ),
        ("log.kasm_ca_file", settings.log.kasm_ca_file, is_folder, FOLDER.format("/etc/kasm.pem")),
        ("moves.inline_bytes", moves.inline_bytes, _is_count, "expected a number of bytes"),
        ("moves.inline_files", moves.inline_files, _is_count, "expected a number of files"),
        (
            "moves.grace_seconds",
            moves.grace_seconds,
            _is_duration(0, 600),
            "expected seconds, from 0 to 600",
        ),
    ]
