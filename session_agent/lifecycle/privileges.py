"""What FUSE needs of the container, and how to say that it is missing."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from session_agent.errors import MountError
from session_agent.model import printable

RUN_CONFIG = (
    '{"devices":["/dev/fuse:/dev/fuse:rwm"],"cap_add":["SYS_ADMIN"],'
    '"security_opt":["apparmor:unconfined"]}'
)
_HINT = f"Add to the workspace's run config: {RUN_CONFIG}"
_SYS_ADMIN = 21  # capabilities(7)


def obstacle() -> MountError | None:
    """Why a FUSE file system cannot be mounted here, as far as can be told without trying."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return MountError("There is no /dev/fuse here, so no vault can be mounted.", _HINT)
    except OSError as error:
        return MountError(
            f"/dev/fuse cannot be opened ({error.strerror}), so no vault can be mounted.",
            _HINT if os.geteuid() == 0 else "Let the user open it (chmod 666), or run as root.",
        )
    if os.geteuid() == 0:
        if _has_capability(_SYS_ADMIN):
            return None
        return MountError("CAP_SYS_ADMIN is missing, so no vault can be mounted.", _HINT)
    if shutil.which("fusermount3") is None:
        return MountError(
            "fusermount3 is not installed, so no vault can be mounted.",
            "Install the package fuse3 in the image, or run as root.",
        )
    return None


def explain(error: MountError, vault: str) -> MountError:
    """A refused mount's error, with what such a mount at `vault` lacks, or usually lacks."""
    if os.geteuid() != 0 and not os.access(vault, os.W_OK):
        place = printable(vault)
        return MountError(
            f"{error.message} fusermount3 refuses a folder that the user cannot write: {place}.",
            f"Let {place} belong to the user; in a read-only container: --tmpfs {place}:uid=1000.",
        )
    return MountError(error.message, f"{error.hint} {_HINT}".lstrip())


def _has_capability(number: int) -> bool:
    """Whether this process has it in effect. CapEff, proc_pid_status(5)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is None or bool(int(found[1], 16) >> number & 1)
