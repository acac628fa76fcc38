"""Which mounts are the user's storage, and which the container's own. Pure.

A container's mounts are many, and nothing marks those that the administrator added. So it is said
here what is the container's own, and the rest is the user's:

- at these paths and below: /proc, /sys, /dev, /run, /etc, /usr, /boot, /snap, the engines' own
  folders in /var, Kasm's /dockerstartup, and the agent's folders in the home;
- exactly at these: the root, the user's home (what lies below it is storage), /tmp, /var/tmp, and
  the X server's folders in /tmp;
- file systems that hold no files of a user: the kernel's pseudo file systems, and FUSE servers that
  belong to a desktop (gvfs, the document portal) or to the container engine (lxcfs).

Whatever lies in the vault is storage. So is a tmpfs elsewhere: somebody mounted it there for a
purpose, though its files end with it.

Paths that CLOUD_MOUNTS names, and the patterns of `mounts.include`, bring in what is left out here;
`mounts.exclude` wins over everything. Never brought in: the root, the pseudo file systems, the
agent's own overlay, and a mount that holds the vault.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from session_agent.mounts.mountinfo import MountEntry
from session_agent.mounts.names import below

_OWN_BELOW = (
    "/boot",
    "/dev",
    "/dockerstartup",
    "/etc",
    "/proc",
    "/run",
    "/snap",
    "/sys",
    "/usr",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/kubelet",
    "/var/run",
)
_OWN_EXACTLY = ("/tmp", "/tmp/.ICE-unix", "/tmp/.X11-unix", "/var/tmp")  # noqa: S108 - not used
_OWN_IN_HOME = (".local/share/session-agent", ".local/state/session-agent")

_PSEUDO = frozenset(
    {"autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "cpuset", "debugfs", "devpts"}
    | {"devtmpfs", "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore"}
    | {"rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs"}
)
_OTHERS_FUSE = frozenset({"fuse.gvfsd-fuse", "fuse.lxcfs", "fuse.portal", "fuse.snapfuse"})


class StorageRules:
    """The rules above for one session. All paths are absolute, without symbolic links or ".."."""

    def __init__(
        self, *, vault: str, home: str, include: Iterable[str] = (), exclude: Iterable[str] = ()
    ) -> None:
        self._vault = vault
        self._home = home
        self._include = [_pattern(pattern) for pattern in include]
        self._exclude = [_pattern(pattern) for pattern in exclude]

    def is_storage(self, entry: MountEntry, *, wanted: bool) -> bool:
        """`wanted`: CLOUD_MOUNTS names this mount's path. It cannot make the home a branch."""
        if entry.fstype in _PSEUDO or entry.path == "/" or self.excludes(entry.path):
            return False
        if (wanted and not self.is_home(entry.path)) or any(
            pattern.fullmatch(entry.path) for pattern in self._include
        ):
            return True
        if below(entry.path, self._vault) is not None:
            return True
        return entry.fstype not in _OTHERS_FUSE and not self._is_own(entry.path)

    def excludes(self, path: str) -> bool:
        """Whether a pattern of `mounts.exclude` matches."""
        return any(pattern.fullmatch(path) for pattern in self._exclude)

    def is_vault_or_above(self, path: str) -> bool:
        """Whether `path` is the vault or a folder that the vault lies in."""
        return below(self._vault, path) is not None

    def holds_vault(self, path: str) -> bool:
        """Whether the vault lies below `path`, so that a branch there would hold itself."""
        return path != self._vault and self.is_vault_or_above(path)

    def is_home(self, path: str) -> bool:
        """Whether this is the session user's home."""
        return path == self._home

    def _is_own(self, path: str) -> bool:
        if self.is_home(path) or path in _OWN_EXACTLY:
            return True
        in_home = (f"{self._home}/{folder}" for folder in _OWN_IN_HOME)
        return any(below(path, folder) is not None for folder in (*_OWN_BELOW, *in_home))


def _pattern(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay within a path's component; `**` does not, so "/mnt/**" is all below /mnt."""
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    wild = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts), re.DOTALL)
