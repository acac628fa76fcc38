"""Whether a permission policy binds the session user, or only the programs that mean well."""

from __future__ import annotations

import grp
import os
import stat

from session_agent.model import Session, printable
from session_agent.mounts.names import below

_SUDO_GROUPS = ("sudo", "wheel", "admin")
_SUDO = ("/usr/bin/sudo", "/bin/sudo", "/usr/local/bin/sudo")


def loopholes(session: Session) -> tuple[str, ...]:
    """The ways that lead the user round the overlay, as far as they can be told. A sentence for each."""
    if os.geteuid() != 0:
        return (
            "The policy binds no user who wants more: the agent runs as the user. Run it as root.",
        )
    found = []
    outside = [b.path for b in session.branches if below(b.path, session.vault) is None]
    if outside:
        shown = ", ".join(map(printable, outside[:5])) + (", …" if len(outside) > 5 else "")
        found.append(
            f"The policy can be walked around at {shown}: the vault covers only what is mounted"
            f" below {printable(session.vault)}."
        )
    if session.user.uid == 0 or _may_become_root(session.user.groups):
        found.append("The policy does not bind the user, who may become root (sudo).")
    return tuple(found)


def _may_become_root(groups: tuple[int, ...]) -> bool:
    """Whether there is a sudo, and the user is in a group that by custom may use it.

    What else /etc/sudoers says is not read: it is a language of its own.
    """
    if not any(_is_set_uid(path) for path in _SUDO):
        return False
    for name in _SUDO_GROUPS:
        try:
            if grp.getgrnam(name).gr_gid in groups:
                return True
        except KeyError:
            continue
    return False


def _is_set_uid(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_ISUID)
    except OSError:
        return False
