"""Branches that come, go or come back while the vault is served.

The supervising process looks for them, as the one that serves cannot: a child of a process that has the
branches' files open would tell their servers, when it ends, that each was closed (see overlay/branches.py).
The kernel tells when the mounts of this namespace change (poll(2) on mountinfo).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace

from session_agent.errors import AgentError
from session_agent.fsutil.credentials import acting_as
from session_agent.lifecycle import session as sessions
from session_agent.lifecycle.handover import Handover, Plug
from session_agent.model import Mount, MountState, Session, printable
from session_agent.mounts import mountinfo
from session_agent.mounts.names import below
from session_agent.mounts.tree import OWN_FSTYPE
from session_agent.overlay.roots import mount_id, open_root

log = logging.getLogger(__name__)

_GATHER = 1.0  # seconds from a change to the look at it: mounts often come several at a time


class Arrivals:
    """Keeps the session and the roots as they are now, for every worker to come."""

    def __init__(self, given: Handover) -> None:
        self.session = given.session
        self._given = given
        self._roots = given.roots.branches
        self.file = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        with acting_as(self.session.user):
            self._covered = open_root(self.session.vault, careful=False)
        self._seen = _mounts()
        self._due: float | None = None

    def noticed(self) -> None:
        """The mounts have changed."""
        if self._due is None:
            self._due = time.monotonic() + _GATHER

    def patience(self) -> float | None:
        """Seconds until there is something to look at; None if only a change brings it."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def look(self) -> list[Plug]:
        """What has come, or gone, if it is time to look. The descriptor of what has gone is the caller's."""
        if self._due is None or time.monotonic() < self._due:
            return []
        self._due = None
        now = _mounts()
        if now == self._seen:
            return []  # that was the overlay itself
        self._seen = now
        gone = [*self._gone(now)]
        for plug in gone:
            self._roots[plug.mount.name] = -1
            self._know(plug.mount)
        plugs = [*self._back(now)]
        try:
            plugs += self._new()
        except (AgentError, OSError) as error:
            log.warning("the mounts have changed, but cannot be looked at: %s", error)
        for plug in plugs:
            self._take(plug)
        return [*gone, *plugs]

    def _gone(self, now: dict[int, str]) -> Iterator[Plug]:
        """Branches whose mount is not there any more: a folder that goes on answering is nobody's storage."""
        for mount in self.session.mounts:
            held = self._roots.get(mount.name, -1)
            if held >= 0 and mount_id(held) not in now:
                yield Plug(replace(mount, state=MountState.DEAD), held)

    def _back(self, now: dict[int, str]) -> Iterator[Plug]:
        """Branches at whose path another mount lies than the one that is shown."""
        for mount in self.session.mounts:
            held = self._roots.get(mount.name)
            if held is None:
                continue
            fd = self._open(mount.path)
            if fd < 0:
                continue
            if now.get(mount_id(fd)) == mount.path and (held < 0 or mount_id(held) != mount_id(fd)):
                yield Plug(replace(mount, state=MountState.ALIVE), fd)
            else:
                os.close(fd)

    def _new(self) -> list[Plug]:
        """Branches that are not shown yet. What comes below the vault's path is for the overlay to show."""
        known = {mount.path: MountState.ALIVE for mount in self.session.mounts}
        names = {mount.name for mount in self.session.mounts}
        plugs = []
        for mount in sessions.build(self._given.loaded, self._given.place, known).mounts:
            if mount.path in known or below(mount.path, self.session.vault) is not None:
                continue
            if mount.name in names:
                log.warning("%s is not shown before the next start", printable(mount.path))
                continue
            fd = self._open(mount.path)
            if fd >= 0:
                plugs.append(Plug(mount, fd))
        return plugs

    def _open(self, path: str) -> int:
        """With the user's rights. The overlay covers what lies below the vault's path: round it."""
        inside = below(path, self.session.vault)
        with acting_as(self.session.user):
            if inside is None:
                return open_root(path, careful=True)
            return open_root(inside, careful=True, start=self._covered)

    def _take(self, plug: Plug) -> None:
        former = self._roots.get(plug.mount.name, -1)
        self._roots[plug.mount.name] = plug.fd
        if former >= 0:
            os.close(former)
        self._know(plug.mount)

    def _know(self, mount: Mount) -> None:
        others = [one for one in self.session.mounts if one.name != mount.name]
        self.session = with_mounts(self.session, [*others, mount])


def with_mounts(session: Session, mounts: list[Mount]) -> Session:
    """The session with other mounts, in the order of their names."""
    return replace(session, mounts=tuple(sorted(mounts, key=lambda mount: mount.name)))


def _mounts() -> dict[int, str]:
    """The path of every mount but the overlay's own, by number."""
    return {one.mount_id: one.path for one in mountinfo.read() if one.fstype != OWN_FSTYPE}
