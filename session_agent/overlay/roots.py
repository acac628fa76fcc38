"""The roots of the branches, opened before the overlay covers the paths that lead to them.

Apart from the library that serves them: the supervising process opens them once, and each process that
serves has them from it. By path they could not be opened again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from session_agent.errors import MountError, TimeLimitError
from session_agent.fsutil import bounded
from session_agent.fsutil.at import FOLDER
from session_agent.model import Branch, MountState, Session, printable


@dataclass(frozen=True, slots=True)
class Roots:
    """O_PATH descriptors: of the root branch, and of the others by name, -1 where one cannot be opened."""

    root: int
    branches: dict[str, int] = field(default_factory=dict)


def open_roots(session: Session) -> Roots:
    """Open them all. MountError if the root branch cannot be opened: without it there is no vault."""
    path = session.root_branch
    try:
        root = os.open(path, FOLDER & ~os.O_NOFOLLOW)
    except OSError as error:
        raise MountError(
            f"The root branch {printable(path)} cannot be opened: {error.strerror}.",
            "Create the folder, or name another one as root_branch.",
        ) from error
    shown = [branch for branch in session.branches if branch.path != path]
    return Roots(root, {branch.name: _open(branch) for branch in shown})


def _open(branch: Branch) -> int:
    """The branch's descriptor, or -1. That needs nothing of the file system that is mounted there,

    unless the way to it leads through one that hangs: so another process tries first.
    """
    return open_root(branch.path, careful=branch.state is not MountState.ALIVE)


def open_root(path: str, *, careful: bool, start: int | None = None) -> int:
    """An O_PATH descriptor of the folder, or -1. A relative path begins at the folder `start`.

    `careful`: another process tries first, since it may hang.
    """

    def attempt() -> int:
        os.close(os.open(path, FOLDER & ~os.O_NOFOLLOW, dir_fd=start))
        return 0

    try:
        if careful:
            bounded.run(attempt, int, time_limit=1.0, keep=() if start is None else (start,))
        return os.open(path, FOLDER & ~os.O_NOFOLLOW, dir_fd=start)
    except (OSError, TimeLimitError):
        return -1


def mount_id(fd: int) -> int:
    """The number of the mount that the descriptor lies on, as mountinfo has it. Asks nothing of the mount."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
