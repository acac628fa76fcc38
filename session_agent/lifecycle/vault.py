"""The vault's folder: made where absent, checked, and freed of what a killed agent left mounted."""

from __future__ import annotations

import errno
import os
import stat

from session_agent.errors import MountError, SettingsError, TimeLimitError
from session_agent.fsutil import bounded
from session_agent.fsutil.credentials import acting_as
from session_agent.lifecycle.session import ASK_SECONDS
from session_agent.model import MountState, SessionUser, printable
from session_agent.mounts import mountinfo
from session_agent.mounts.names import below
from session_agent.overlay import connection

UNMOUNT_SECONDS = 3.0
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# What root must not cover with, or create for, a tree that the session user writes.
_SYSTEM = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc"),
    *("/root", "/run", "/sbin", "/sys", "/usr", "/var"),
)


def state(vault: str, user: SessionUser) -> MountState:
    """How the mount at `vault` answers to `user`: DEAD is what a killed agent leaves."""

    def ask() -> int:
        try:
            os.statvfs(vault)
        except OSError as error:
            return error.errno or 0
        return 0

    try:
        number = bounded.run(ask, int, time_limit=ASK_SECONDS, user=user)
    except TimeLimitError:
        return MountState.HUNG
    return MountState.DEAD if number in (errno.ENOTCONN, errno.ECONNABORTED) else MountState.ALIVE


def take_over(vault: str, user: SessionUser) -> bool:
    """Unmount what agents that were killed left at `vault`; whether there was any.

    To be called with the lock held: then no other agent of this state directory serves the vault.
    Raises MountError if another one does, or if the mount cannot be removed.
    """
    found = False
    while connection.is_mounted(vault):
        if state(vault, user) is MountState.ALIVE:
            raise MountError(
                f"The vault {printable(vault)} is served by another agent.",
                "Stop it first, with the settings (`state_dir`) that it was started with.",
            )
        unmount(vault, lazy=True)
        found = True
    return found


def remove_users(vault: str) -> None:
    """Unmount what agents of the session user's own, with whatever state directory, have mounted at `vault`.

    Raises MountError if one cannot be removed.
    """
    while connection.is_mounted(vault):
        here = [entry for entry in mountinfo.read() if entry.path == vault]
        if here and "user_id=0" in here[-1].super_options:
            return
        unmount(vault, lazy=True)


def unmount(vault: str, *, lazy: bool) -> None:
    """Unmount the agent's mount at `vault`.

    Raises MountError, for one if files in it are open and it is not to be done lazily.
    """
    try:
        bounded.run(
            lambda: connection.unmount(vault, lazy=lazy), type(None), time_limit=UNMOUNT_SECONDS
        )
    except TimeLimitError:
        raise MountError(f"Unmounting {printable(vault)} does not come to an end.") from None
    except OSError as error:
        raise MountError(f"{printable(vault)} cannot be unmounted: {error.strerror}.") from None


def prepare(vault: str, user: SessionUser) -> None:
    """See to it that `vault` is a folder; one that is made belongs to the session user.

    Raises SettingsError for a path that cannot be a vault, and MountError where it cannot be made.
    """
    if os.geteuid() == 0 and user.uid != 0:
        _refuse_system_folder(vault)
    try:
        bounded.run(lambda: _prepare(vault, user), bool, time_limit=ASK_SECONDS)
    except TimeLimitError:
        raise MountError(f"The vault {printable(vault)} does not answer.") from None
    except OSError as error:
        raise MountError(
            f"The vault {printable(vault)} cannot be made: {error.strerror}.",
            "Make the folder in the image, owned by the session user, or set `vault` to another.",
        ) from None


def _refuse_system_folder(vault: str) -> None:
    for folder in _SYSTEM:
        if below(vault, folder) is not None:
            raise SettingsError(
                f"vault: {printable(vault)} is refused: {folder} is the system's, and the vault the"
                " user's.",
                "Set `vault` to a folder of its own, such as /vault.",
            )


def _prepare(vault: str, user: SessionUser) -> bool:
    """Runs in a child, as root where the agent is root."""
    with acting_as(user):
        try:
            status = os.stat(vault)
        except FileNotFoundError:
            status = None
        except NotADirectoryError:
            raise _no_folder(vault) from None
        if status is None:
            try:
                os.makedirs(vault)
            except PermissionError:
                if os.geteuid() != 0 or user.uid == 0:
                    raise
            else:
                return True
    if status is None:
        _make_for(vault, user)
        return True
    if not stat.S_ISDIR(status.st_mode):
        raise _no_folder(vault)
    return False


def _no_folder(vault: str) -> SettingsError:
    return SettingsError(
        f"vault: {printable(vault)} is a file, or lies below one, instead of a folder.",
        "Move the file away, or set `vault` to another path.",
    )


def _make_for(vault: str, user: SessionUser) -> None:
    """Make, as root, what the user may not make: only below folders that nobody else can change.

    One folder after the other, each by its descriptor, so that nothing can be put in between.
    """
    folder = os.open("/", _FOLDER)
    made = False
    try:
        for name in vault.strip("/").split("/"):
            status = os.fstat(folder)
            # In a sticky folder nobody but root replaces what root has made.
            if status.st_uid != 0 or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
                raise PermissionError(errno.EPERM, "a folder above it can be changed by others")
            made = _make_folder(folder, name)
            below_it = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below_it
        if made:
            os.chown(f"/proc/self/fd/{folder}", user.uid, user.gid)
    finally:
        os.close(folder)


def _make_folder(folder: int, name: str) -> bool:
    try:
        os.mkdir(name, 0o755, dir_fd=folder)
    except FileExistsError:
        return False
    return True


def make_root_branch(path: str, user: SessionUser) -> None:
    """See to it that the root branch is a folder that the session user can write.

    Raises MountError where it is not.
    """

    def make() -> bool:
        os.makedirs(path, mode=0o700, exist_ok=True)
        return os.access(path, os.W_OK | os.X_OK, effective_ids=True)

    hint = "Make it a folder that the session user can write, or set `root_branch` to another."
    try:
        writable = bounded.run(make, bool, time_limit=ASK_SECONDS, user=user)
    except TimeLimitError:
        raise MountError(f"The root branch {printable(path)} does not answer.", hint) from None
    except OSError as error:
        reason = "it is no folder" if error.errno == errno.EEXIST else error.strerror
        raise MountError(
            f"The root branch {printable(path)} cannot be used: {reason}.", hint
        ) from None
    if not writable:
        raise MountError(f"The root branch {printable(path)} is not writable.", hint)


def hidden_entries(vault: str, user: SessionUser) -> list[str]:
    """Names in the vault's folder that are no mounts, nor lead to one: the overlay hides them.

    Empty where nobody may look, or nothing answers.
    """
    paths = [entry.path for entry in mountinfo.read()]

    def look() -> list[str]:
        return sorted(os.listdir(vault))

    try:
        names = bounded.run(look, list[str], time_limit=ASK_SECONDS, user=user)
    except (OSError, TimeLimitError):
        return []
    return [
        name
        for name in names
        if not any(below(path, os.path.join(vault, name)) is not None for path in paths)
    ]
