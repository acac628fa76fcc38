"""Whether mounts answer, found out without waiting on one that does not."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from session_agent.fsutil import bounded
from session_agent.model import MountState

Place = TypeVar("Place", str, int)

# What calls into a mount return once its server, its network or its device is gone. Any other error
# is an answer: the mount is alive, and will not let this caller in.
_DEAD = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENODEV,
        errno.ENOLINK,
        errno.ENOTCONN,
        errno.ENXIO,
        errno.EREMOTEIO,
        errno.ESHUTDOWN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen at a path. Of a mount that does not answer only the state is known."""

    state: MountState
    exists: bool = True
    directory: bool = True  # taken for one where it cannot be told
    real_path: str = ""  # without symbolic links; "" where it cannot be told


def probe(places: Iterable[Place], time_limit: float) -> dict[Place, MountState]:
    """The state of each mount, given by path or by a directory fd on it; see `look`.

    An fd reaches a mount that another covers. A path at which there is nothing counts as dead.
    """
    return {
        place: sight.state if sight.exists else MountState.DEAD
        for place, sight in look(places, time_limit).items()
    }


def look(places: Iterable[Place], time_limit: float) -> dict[Place, Sight]:
    """All places at once, one child process each, `time_limit` seconds in total.

    The caller's own rights apply. Every call on a hung mount leaves behind one child that the
    system may not be able to end before that mount answers: do not ask more often than necessary.
    Raises OSError if no process can be started.
    """
    steps: dict[Place, bounded.Step[Sight]] = {}
    try:
        for place in places:
            if place not in steps:
                steps[place] = _start(place)
    except BaseException:
        bounded.collect(steps, 0)
        raise
    outcomes = bounded.collect(steps, time_limit)
    hung = Sight(MountState.HUNG)
    return {
        place: outcome if isinstance(outcome, Sight) else hung
        for place, outcome in outcomes.items()
    }


def _start(place: str | int) -> bounded.Step[Sight]:
    keep = (place,) if isinstance(place, int) else ()
    return bounded.start(lambda: look_here(place), Sight, keep=keep)


def look_here(place: str | int) -> Sight:
    """In this very thread, which waits as long as the mount hangs.

    statvfs, because the kernel may answer stat from what it has cached.
    """
    try:
        status = os.stat(place)
        os.statvfs(place)
    except OSError as error:
        if error.errno in _DEAD:
            return Sight(MountState.DEAD)
        return Sight(MountState.ALIVE, exists=error.errno not in _ABSENT)
    real_path = os.path.realpath(place) if isinstance(place, str) else ""
    return Sight(MountState.ALIVE, True, stat.S_ISDIR(status.st_mode), real_path)
