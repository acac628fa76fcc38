"""Who this session belongs to, where its things are, and which mounts it has.

Everything that could hang (a home on a network, a dead mount) is asked in a child process with a
time limit, and below the user's home with the user's rights.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from session_agent.desktop import obsidian
from session_agent.desktop.rooms import Terms, warnings
from session_agent.errors import SettingsError, TimeLimitError
from session_agent.fsutil import bounded
from session_agent.model import MountState, Session, SessionUser, printable
from session_agent.mounts import discover, mountinfo
from session_agent.mounts.names import VAULT_ITSELF, below
from session_agent.settings import Loaded
from session_agent.settings_checks import SERVER, is_server

ASK_SECONDS = 1.0  # for what a healthy file system answers at once


@dataclass(frozen=True, slots=True)
class Place:
    """Where this session's things are: known before any mount is looked at. Paths are real ones.

    `only_root`: a policy holds and this is root, who then believes and keeps no agent but root's. The state
    directory is the user's, who could have started one first, or something that passes for one.
    """

    user: SessionUser
    vault: str
    state_dir: str
    config_home: str
    rooms: Terms
    warnings: tuple[str, ...] = ()
    obsidian: obsidian.Terms = field(default_factory=obsidian.Terms)
    only_root: bool = False


def find_place(loaded: Loaded) -> Place:
    """Determine the session user and the paths that follow from it.

    Raises SettingsError where they cannot be told or contradict each other, and TimeLimitError if
    the home does not answer.
    """
    user = session_user(loaded)
    settings, environment = loaded.settings, loaded.environment
    state_dir = settings.state_dir or f"{user.home}/.local/state/session-agent"
    # A variable of root's environment says nothing of where another user's settings are.
    own = user.uid == os.geteuid()
    config_home = (own and environment.config_home) or f"{user.home}/.config"
    given = [user.home, settings.vault, state_dir, config_home]
    try:
        real = bounded.run(
            lambda: [os.path.realpath(path) for path in given],
            list[str],
            time_limit=ASK_SECONDS,
            user=user,
        )
    except TimeLimitError:
        real = given
    home, vault, state_dir, config_home = real
    _refuse_inside(vault, home=home, state_dir=state_dir)
    return Place(
        user=replace(user, home=home),
        vault=vault,
        state_dir=state_dir,
        config_home=config_home,
        rooms=_terms(loaded, vault, f"{config_home}/session-agent/rooms.yaml"),
        # Told here, since the companion is the user whoever started the agent.
        obsidian=obsidian.Terms(settings.obsidian, root_only=os.geteuid() == 0),
        warnings=_warnings(loaded, user),
        only_root=settings.policy.file is not None and os.geteuid() == 0,
    )


def _terms(loaded: Loaded, vault: str, default_file: str) -> Terms:
    rooms, environment = loaded.settings.rooms, loaded.environment
    given = environment.sync_server_url
    return Terms(
        file=rooms.file or default_file,
        vault=vault,
        settings=rooms,
        # Never the local user's name: that is the same for everybody who uses an image.
        username=environment.kasm_user_name or rooms.username or "",
        user_id=environment.kasm_user_id,
        server=(given if is_server(given) else rooms.server) or "",
    )


def build(
    loaded: Loaded, place: Place, known_states: Mapping[str, MountState] | None = None
) -> Session:
    """Discover the mounts and describe the session.

    `known_states` (path to state) are not probed again: what the running overlay covers can be
    reached through it only. Raises SettingsError for a root branch that cannot be one.
    """
    settings = loaded.settings
    found = discover.discover(
        mountinfo.read(),
        cloud_mounts=loaded.environment.cloud_mounts,
        vault=place.vault,
        home=place.user.home,
        include=settings.mounts.include,
        exclude=settings.mounts.exclude,
        time_limit=settings.mounts.probe_seconds,
        known_states=known_states,
    )
    vault_is_mount = any(mount.name == VAULT_ITSELF for mount in found.mounts)
    default = f"{place.user.home}/.local/share/session-agent/root"
    root_branch = settings.root_branch or (place.vault if vault_is_mount else default)
    _refuse_root_branch(root_branch, place.vault)
    session = Session(
        user=place.user,
        vault=place.vault,
        root_branch=root_branch,
        state_dir=place.state_dir,
        # A mount that is the root branch is the vault's top level, and not shown in it once more.
        mounts=tuple(m for m in found.mounts if m.name != VAULT_ITSELF and m.path != root_branch),
        warnings=(*place.warnings, *found.warnings),
    )
    told = warnings(session.branches, place.rooms)
    return replace(session, warnings=(*session.warnings, *told))


def session_user(loaded: Loaded) -> SessionUser:
    """The configured user; for root else the owner of $HOME, for anybody else the caller.

    A uid without an entry in the user database is accepted. Raises SettingsError for a name without
    one, and for a user that the caller cannot act for.
    """
    configured, home = loaded.settings.user, loaded.environment.home
    try:
        return bounded.run(
            lambda: _session_user(configured, home), SessionUser, time_limit=ASK_SECONDS
        )
    except TimeLimitError:
        raise TimeLimitError(
            f"The home {printable(home)}, or the user database, does not answer.",
            "See what the home is mounted from; nothing can be done without it.",
        ) from None


def _session_user(configured: str | int | None, home: str) -> SessionUser:
    """Runs in a child: the user database may be on a network, and so may the home."""
    caller = os.geteuid()
    if isinstance(configured, str):
        try:
            uid = pwd.getpwnam(configured).pw_uid
        except KeyError:
            raise SettingsError(
                f"user: there is no user {configured!r} here.",
                "Correct `user` in the settings, or give the number.",
            ) from None
    elif configured is not None:
        uid = configured
    else:
        uid = _owner(home) if caller == 0 and home else caller
    if caller not in (0, uid):
        raise SettingsError(
            f"user: {configured!r} is not who runs this, and only root can act for another user.",
            "Run it as root, or remove `user` from the settings.",
        )
    return _describe(uid, home)


def _owner(home: str) -> int:
    try:
        return os.stat(home).st_uid
    except OSError as error:
        raise SettingsError(
            f"HOME={printable(home)}: {error.strerror}; its owner would be the session user.",
            "Set HOME to the session user's home, or `user` in the settings.",
        ) from None


def _owned_by(home: str, uid: int) -> bool:
    try:
        return os.stat(home).st_uid == uid
    except OSError:
        return False


def _describe(uid: int, home: str) -> SessionUser:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        entry = None
    if not home or (uid != os.geteuid() and not _owned_by(home, uid)):
        home = entry.pw_dir if entry else ""
    if not home.startswith("/"):
        raise SettingsError(
            f"The home of user {uid} is not known.", "Set HOME to the session user's home."
        )
    if uid == os.geteuid():
        name = entry.pw_name if entry else str(uid)
        return SessionUser(name, uid, os.getegid(), tuple(os.getgroups()), home)
    if entry is None:
        # Not the group of the home: Kasm's belong to group root.
        return SessionUser(str(uid), uid, uid, (), home)
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return SessionUser(entry.pw_name, uid, entry.pw_gid, tuple(groups), home)


def _refuse_inside(vault: str, *, home: str, state_dir: str) -> None:
    """The overlay would cover what it needs, or what it must not cover."""
    for what, path in (("the home", home), ("state_dir", state_dir)):
        if below(path, vault) is not None:
            raise SettingsError(
                f"vault: {printable(vault)} holds {what}, {printable(path)}, which it would cover.",
                "Set `vault` to a folder of its own, such as /vault.",
            )


def _refuse_root_branch(root_branch: str, vault: str) -> None:
    inside, around = below(root_branch, vault), below(vault, root_branch)
    if root_branch != vault and (inside or around):
        raise SettingsError(
            f"root_branch: {printable(root_branch)} and the vault {printable(vault)} lie in each"
            " other.",
            "Set `root_branch` to the vault itself, or to a folder apart from it.",
        )


def _warnings(loaded: Loaded, user: SessionUser) -> tuple[str, ...]:
    told = []
    home = loaded.environment.home
    if user.uid == 0 and loaded.settings.user is None and home not in ("", "/root"):
        told.append(
            f"{printable(home)} belongs to root, which is taken for the session user; `user` would"
            " name another."
        )
    server = loaded.environment.sync_server_url
    if server and not is_server(server):
        told.append(f"SYNC_SERVER_URL is not told to the sync daemon's rooms file: {SERVER}.")
    return tuple(told)
