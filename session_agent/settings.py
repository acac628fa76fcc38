"""What administrator and environment say: the only reader of config.yaml and of os.environ.

The file is /etc/session-agent/config.yaml, or the one that `--config` or SESSION_AGENT_CONFIG
names. An absent default file, or an empty one, means the defaults; anything not understood is a
SettingsError that names the file, the line, the dotted key and what was expected.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
import yaml

from session_agent.errors import SettingsError
from session_agent.model import printable
from session_agent.rootfile import changeable_by

DEFAULT_FILE = "/etc/session-agent/config.yaml"
_SIZE_LIMIT = 256 * 1024  # bytes


class MountSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which mounts become branches. `include` and `exclude` are patterns of absolute paths."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    probe_seconds: float = 2.0


class RoomSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the sync daemon's rooms file goes; null: ~/.config/session-agent/rooms.yaml."""

    file: str | None = None


class OverlaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the vault is served. `remote_seconds`: how long a call into a remote branch may take.

    `foreign_events`: whether programs get inotify events for what others change behind the vault.
    """

    enabled: bool = True
    cache_seconds: float = 1.0
    remote_seconds: float = 5.0
    foreign_events: bool = False


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


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings file, typed. A null path: a default that depends on the session user."""

    vault: str = "/vault"
    root_branch: str | None = None
    state_dir: str | None = None
    user: str | int | None = None
    mounts: MountSettings = MountSettings()
    rooms: RoomSettings = RoomSettings()
    overlay: OverlaySettings = OverlaySettings()
    moves: MoveSettings = MoveSettings()
    policy: PolicySettings = PolicySettings()


class Environment(msgspec.Struct, frozen=True):
    """What the container's environment tells. "" where a variable is absent."""

    home: str = ""
    config_home: str = ""  # XDG_CONFIG_HOME
    cloud_mounts: str = ""
    kasm_user_name: str = ""
    identity: str = ""  # SESSION_AGENT_IDENTITY
    identity_token: str = ""  # SESSION_AGENT_IDENTITY_TOKEN; a secret


class Loaded(msgspec.Struct, frozen=True):
    """All that was configured. `file` is the absolute path that was read, "" if there is none."""

    settings: Settings = Settings()
    environment: Environment = Environment()
    file: str = ""


def load(config: str | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read the settings file that `config` or the environment selects, and the variables over it.

    Raises SettingsError. For root, a file that anybody else could change is refused, whichever way
    it was named: it decides what root mounts, and where.
    """
    variables = os.environ if environ is None else environ
    named = config or variables.get("SESSION_AGENT_CONFIG") or None
    path = os.path.abspath(named or DEFAULT_FILE)
    data = _read(path, required=named is not None)
    settings = Settings() if data is None else _parse(data, path)
    return Loaded(
        settings=_override(settings, variables),
        environment=Environment(
            home=_absolute(variables.get("HOME", "")),
            config_home=_absolute(variables.get("XDG_CONFIG_HOME", "")),
            cloud_mounts=variables.get("CLOUD_MOUNTS", ""),
            kasm_user_name=variables.get("KASM_USER_NAME", ""),
            identity=variables.get("SESSION_AGENT_IDENTITY", ""),
            identity_token=variables.get("SESSION_AGENT_IDENTITY_TOKEN", ""),
        ),
        file="" if data is None else path,
    )


def _absolute(value: str) -> str:
    """`value`, or "" for a path that is not absolute: the XDG specification says to ignore such."""
    return os.path.normpath(value) if value.startswith("/") else ""


# Reading


def _read(path: str, *, required: bool) -> bytes | None:
    try:
        if os.geteuid() == 0:
            _refuse_if_others_can_write(path)
        # O_NONBLOCK: a FIFO must not hold up the session.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if not required:
            return None
        raise SettingsError(
            f"The settings file {printable(path)} does not exist.",
            "Correct --config or SESSION_AGENT_CONFIG, or leave it out to use the defaults.",
        ) from None
    except ValueError:
        raise SettingsError(f"The settings file's name {path!r} is not a path.") from None
    except OSError as error:
        raise SettingsError(
            f"The settings file {printable(path)} cannot be read: {error.strerror}.",
            "Make it readable for everybody (chmod 644); it should hold no secrets.",
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SettingsError(
                f"The settings file {printable(path)} is not a regular file.",
                "Name a YAML file, such as " + DEFAULT_FILE + ".",
            )
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    finally:
        os.close(fd)
    if len(data) > _SIZE_LIMIT:
        raise SettingsError(
            f"The settings file {printable(path)} is larger than {_SIZE_LIMIT // 1024} KiB.",
            "Name the right file; settings need a few lines.",
        )
    return data


def _refuse_if_others_can_write(path: str) -> None:
    step = changeable_by(path)
    if step:
        raise SettingsError(
            f"The settings file {printable(path)} is refused: others than root can change {step}.",
            f"Run as root, the agent trusts only what root alone can write, such as {DEFAULT_FILE}"
            " (root:root, mode 644).",
        )


# Parsing


def _parse(data: bytes, path: str) -> Settings:
    document, lines = _yaml(data, path)
    if document is None:
        return Settings()
    if not isinstance(document, dict):
        raise _wrong(path, lines, "", "expected keys with values, such as `vault: /vault`")
    # A section whose every line is commented out is null.
    sections = {"mounts", "rooms", "overlay", "moves", "policy"}
    document = {k: v for k, v in document.items() if v is not None or k not in sections}
    try:
        settings = msgspec.convert(document, Settings)
    except msgspec.ValidationError as error:
        key, expected = _explain(str(error))
        raise _wrong(path, lines, key, expected) from None
    for key, value, fits, expected in _checks(settings):
        if not fits(value):
            raise _wrong(path, lines, key, expected)
    return settings


def _yaml(data: bytes, path: str) -> tuple[Any, dict[str, int]]:
    """The document, and the line of each dotted key."""
    where = printable(path)
    hint = "Correct the YAML; `vault: /vault` is the simplest settings file."
    lines: dict[str, int] = {}
    try:
        loader = yaml.SafeLoader(data.decode("utf-8"))
        try:
            node = loader.get_single_node()
            _note_lines(node, "", lines, where)
            document = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where}: byte {error.start} is not UTF-8 text.", hint) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{where}{place}: not YAML: {error.problem}.", hint) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise SettingsError(f"{where}: not YAML: {reason}.", hint) from None
    return document, lines


def _note_lines(node: Any, key: str, lines: dict[str, int], where: str) -> None:
    """Note the lines of the keys, down to sections; refuse a key that is given twice."""
    if not isinstance(node, yaml.MappingNode) or "." in key:
        return
    for name, value in node.value:
        dotted = f"{key}.{name.value}" if key else str(name.value)
        line = name.start_mark.line + 1
        if dotted in lines:
            raise SettingsError(
                f"{where}, line {line}: {dotted}: given twice, first in line {lines[dotted]}.",
                "Remove one of them.",
            )
        lines[dotted] = line
        _note_lines(value, dotted, lines, where)


def _wrong(path: str, lines: Mapping[str, int], key: str, expected: str) -> SettingsError:
    line = lines.get(re.sub(r"\[.*", "", key))
    place = printable(path) + (f", line {line}" if line else "")
    return SettingsError(
        f"{place}: {key}: {expected}." if key else f"{place}: {expected}.",
        "The README lists the settings.",
    )


_WORDS = {
    "object": "a group of keys",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}


def _explain(message: str) -> tuple[str, str]:
    """The dotted key and the expectation behind one of msgspec's messages."""
    text, _, place = message.partition(" - at ")
    key = place.strip("`").removeprefix("$").removeprefix(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL)
    if unknown:
        section = getattr(Settings(), key) if key else Settings()
        known = section.__struct_fields__
        close = difflib.get_close_matches(unknown[1], known, n=1)
        guess = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        return (f"{key}.{unknown[1]}" if key else unknown[1]), f"there is no such key; {guess}"
    if place.startswith("`key` in"):
        return "", "expected keys that are text"
    found = re.fullmatch(r"Expected `(.*)`, got `(.*)`", text)
    if found is None:
        return key, text
    wanted = " or ".join(_WORDS.get(word, word) for word in found[1].split(" | "))
    return key, f"expected {wanted}, not {_WORDS.get(found[2], found[2])}"


# Checking values


def _is_folder(value: Any) -> bool:
    """Whether it is an absolute path of something below the root folder."""
    if value is None:
        return True
    parts = value.split("/")
    return value.startswith("/") and "\0" not in value and ".." not in parts and any(parts)


def _is_pattern_list(value: Any) -> bool:
    return all(_is_folder(pattern) for pattern in value)


def _is_user(value: Any) -> bool:
    if isinstance(value, int):
        return 0 <= value < 0xFFFFFFFF
    return value is None or (bool(value) and "\0" not in value)


def _is_duration(low: float, high: float) -> Callable[[Any], bool]:
    # Not-a-number fails both comparisons.
    return lambda value: low <= value <= high


_FOLDER = "expected an absolute path below / and without `..`, such as {}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 60


def _checks(settings: Settings) -> list[tuple[str, Any, Callable[[Any], bool], str]]:
    """What the types do not say: dotted key, value, whether it fits, what was expected."""
    patterns = "expected a list of absolute paths or patterns of them, such as /mnt/team-*"
    mounts, overlay, moves = settings.mounts, settings.overlay, settings.moves
    return [
        ("vault", settings.vault, _is_folder, _FOLDER.format("/vault")),
        ("root_branch", settings.root_branch, _is_folder, _FOLDER.format("/srv/notes")),
        ("state_dir", settings.state_dir, _is_folder, _FOLDER.format("/var/lib/session-agent")),
        ("user", settings.user, _is_user, "expected a user's name or number"),
        ("mounts.include", mounts.include, _is_pattern_list, patterns),
        ("mounts.exclude", mounts.exclude, _is_pattern_list, patterns),
        (
            "mounts.probe_seconds",
            mounts.probe_seconds,
            _is_duration(0.05, 3),  # first-launch as a whole has ten
            "expected seconds, from 0.05 to 3",
        ),
        ("rooms.file", settings.rooms.file, _is_folder, _FOLDER.format("/vault/rooms.yaml")),
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
        *(
            (f"policy.{name}", getattr(settings.policy, name), _is_folder, _FOLDER.format("/etc/x"))
            for name in ("file", "identity_file", "jwt_keys", "jwt_file", "audit_file")
        ),
        ("moves.inline_bytes", moves.inline_bytes, _is_count, "expected a number of bytes"),
        ("moves.inline_files", moves.inline_files, _is_count, "expected a number of files"),
        (
            "moves.grace_seconds",
            moves.grace_seconds,
            _is_duration(0, 600),
            "expected seconds, from 0 to 600",
        ),
    ]


def _override(settings: Settings, variables: Mapping[str, str]) -> Settings:
    """`settings` with the paths that variables give, and with every path normalised."""
    changes: dict[str, str] = {}
    for field in ("vault", "root_branch", "state_dir"):
        value = getattr(settings, field)
        variable = f"SESSION_AGENT_{field.upper()}"
        given = variables.get(variable)
        if given:
            if not _is_folder(given):
                raise SettingsError(
                    f"The environment variable {variable}: {_FOLDER.format('/vault')}.",
                    f"Correct or unset {variable}.",
                )
            value = given
        if value is not None:
            # normpath keeps a leading double slash, which means nothing on Linux.
            changes[field] = "/" + os.path.normpath(value).lstrip("/")
    return msgspec.structs.replace(settings, **changes)
