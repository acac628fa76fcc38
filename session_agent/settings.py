"""What administrator and environment say: the only reader of os.environ.

The settings file is /etc/session-agent/config.yaml, or the one that `--config` or
SESSION_AGENT_CONFIG names. An absent default file, or an empty one, means the defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from session_agent import redaction
from session_agent.errors import SettingsError
from session_agent.settings_checks import FOLDER, is_folder
from session_agent.settings_file import DEFAULT_FILE, parse, read
from session_agent.settings_types import Settings


class Kasm(msgspec.Struct, frozen=True):
    """Where Kasm's session log is, and whose session this is."""

    host: str = ""  # KASM_API_HOST
    port: str = ""  # KASM_API_PORT
    token: str = ""  # KASM_API_JWT; a secret
    session: str = ""  # KASM_ID

    def __repr__(self) -> str:  # it would show the secret
        return f"Kasm({self.host!r})"


class Environment(msgspec.Struct, frozen=True):
    """What the container's environment tells. "" where a variable is absent."""

    home: str = ""
    config_home: str = ""  # XDG_CONFIG_HOME
    cloud_mounts: str = ""
    kasm_user_name: str = ""
    kasm_user_id: str = ""
    sync_server_url: str = ""
    identity: str = ""  # SESSION_AGENT_IDENTITY
    identity_token: str = ""  # SESSION_AGENT_IDENTITY_TOKEN; a secret
    kasm: Kasm = Kasm()
    restricted_file_chooser: str = ""  # KASM_RESTRICTED_FILE_CHOOSER
    bus: str = ""  # DBUS_SESSION_BUS_ADDRESS

    def __repr__(self) -> str:  # it would show the secrets
        return f"Environment({self.home!r})"


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
    redaction.know(redaction.secrets_of(variables))
    named = config or variables.get("SESSION_AGENT_CONFIG") or None
    path = os.path.abspath(named or DEFAULT_FILE)
    data = read(path, required=named is not None)
    settings = Settings() if data is None else parse(data, path)
    return Loaded(
        settings=_override(settings, variables),
        environment=_environment(variables),
        file="" if data is None else path,
    )


def without_file(environ: Mapping[str, str] | None = None) -> Loaded:
    """What would hold were there neither a settings file nor a variable that overrides it: to look around."""
    return Loaded(environment=_environment(os.environ if environ is None else environ))


def _environment(variables: Mapping[str, str]) -> Environment:
    return Environment(
        home=_absolute(variables.get("HOME", "")),
        config_home=_absolute(variables.get("XDG_CONFIG_HOME", "")),
        cloud_mounts=variables.get("CLOUD_MOUNTS", ""),
        kasm_user_name=variables.get("KASM_USER_NAME", ""),
        kasm_user_id=variables.get("KASM_USER_ID", ""),
        sync_server_url=variables.get("SYNC_SERVER_URL", ""),
        identity=variables.get("SESSION_AGENT_IDENTITY", ""),
        identity_token=variables.get("SESSION_AGENT_IDENTITY_TOKEN", ""),
        kasm=Kasm(
            host=variables.get("KASM_API_HOST", ""),
            port=variables.get("KASM_API_PORT", ""),
            token=variables.get("KASM_API_JWT", ""),
            session=variables.get("KASM_ID", ""),
        ),
        restricted_file_chooser=variables.get("KASM_RESTRICTED_FILE_CHOOSER", ""),
        bus=variables.get("DBUS_SESSION_BUS_ADDRESS", ""),
    )


def _absolute(value: str) -> str:
    """`value`, or "" for a path that is not absolute: the XDG specification says to ignore such."""
    return os.path.normpath(value) if value.startswith("/") else ""


def _override(settings: Settings, variables: Mapping[str, str]) -> Settings:
    """`settings` with the paths that variables give, and with every path normalised."""
    changes: dict[str, str] = {}
    for field in ("vault", "root_branch", "state_dir"):
        value = getattr(settings, field)
        variable = f"SESSION_AGENT_{field.upper()}"
        given = variables.get(variable)
        if given:
            if not is_folder(given):
                raise SettingsError(
                    f"The environment variable {variable}: {FOLDER.format('/vault')}.",
                    f"Correct or unset {variable}.",
                )
            value = given
        if value is not None:
            # normpath keeps a leading double slash, which means nothing on Linux.
            changes[field] = "/" + os.path.normpath(value).lstrip("/")
    return msgspec.structs.replace(settings, **changes)
