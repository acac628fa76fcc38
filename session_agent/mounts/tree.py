"""Which mount a path leads to, when mounts cover each other. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from session_agent.mounts.mountinfo import MountEntry

OWN_FSTYPE = "fuse.session-agent"

_OUTSIDE = -1  # stands for any parent that is not listed, such as the root's


class MountTree:
    """The mounts of one namespace, as if the agent's own overlay were not there.

    A mount counts if walking to its path ends in it: of several at one path that is the top one,
    and none that a later mount on a folder above has covered. The overlay covers the very branches
    it shows, so it is taken out, and what is mounted on it moves down to what it covers.
    """

    def __init__(self, entries: Iterable[MountEntry]) -> None:
        by_id = {entry.mount_id: entry for entry in entries}  # unique, or `at` might not end
        self._entries = [entry for entry in by_id.values() if entry.fstype != OWN_FSTYPE]
        self._upon: dict[tuple[int, str], MountEntry] = {}
        for entry in self._entries:
            # The kernel lists a mount after those that were there before it: the last is on top.
            self._upon[_parent(entry, by_id), entry.path] = entry

    def visible(self) -> list[MountEntry]:
        """The mounts that a path leads to, in the kernel's order."""
        return [entry for entry in self._entries if self.at(entry.path) is entry]

    def at(self, path: str) -> MountEntry | None:
        """The mount that the absolute `path` lies in; None if not even the root is listed."""
        mount: MountEntry | None = None
        for folder in _folders(path):
            while (upper := self._upon.get((_id(mount), folder))) is not None:
                mount = upper
        return mount


def _id(mount: MountEntry | None) -> int:
    return _OUTSIDE if mount is None else mount.mount_id


def _parent(entry: MountEntry, by_id: Mapping[int, MountEntry]) -> int:
    """What `entry` is mounted on, looking through the overlay."""
    seen = {entry.mount_id}
    parent = by_id.get(entry.parent_id)
    while parent is not None and parent.fstype == OWN_FSTYPE and parent.mount_id not in seen:
        seen.add(parent.mount_id)
        parent = by_id.get(parent.parent_id)
    return _OUTSIDE if parent is None or parent.mount_id in seen else parent.mount_id


def _folders(path: str) -> Iterator[str]:
    """ "/", "/a" and "/a/b" of "/a/b"."""
    yield "/"
    end = 0
    while (end := path.find("/", end + 1)) > 0:
        yield path[:end]
    if path != "/":
        yield path
