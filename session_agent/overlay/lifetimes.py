"""For how long the kernel may answer from what it was told of names and attributes.

A short time (`cache_seconds`) bounds how old an answer can be where nothing tells of foreign changes. In
folders that are watched every change is heard of, and what it concerns runs out at once (see expiry); there
the time can be long. It still bounds what inotify does not tell of (docs/foreign-changes.md).
"""

from __future__ import annotations

import os
import stat

from session_agent.overlay.nodes import FolderNode, Node
from session_agent.overlay.vault import Vault

LONG_SECONDS = 30.0


class Lifetimes:
    """In seconds. With `short` 0 nothing is kept anywhere."""

    def __init__(self, vault: Vault, short: float) -> None:
        self._background = vault.background
        self._foreign = vault.foreign
        self._short = short
        self._long = max(short, LONG_SECONDS) if short else 0.0

    def is_lasting(self, folder: FolderNode) -> bool:
        """Whether all that changes in it is heard of, and all in the vault is shown where it lies."""
        watch = folder.watch
        return (
            watch is not None
            and watch.lasting
            and self._foreign.active
            and not self._background.live
        )

    def absent(self, folder: FolderNode, name: bytes) -> float:
        """Of a name that is not in the folder."""
        if self.is_lasting(folder) and self._foreign.absent.add(folder.id, name, self._long):
            return self._long
        return self._short

    def of(self, node: Node, status: os.stat_result) -> tuple[float, float]:
        """Of the name, and of the attributes."""
        if not status.st_ino:  # a stand-in
            return 0, 0
        parent, short = node.parent, self._short
        is_folder = node.format == stat.S_IFDIR
        if status.st_nlink > 1 and not is_folder:
            # Another of its names may move to another branch (see Tree.disown), or be written to unheard.
            return 0, short
        if parent is None or not self.is_lasting(parent):
            return short, short
        if not isinstance(node, FolderNode):
            return self._long, self._long
        if node.branch is not parent.branch:  # a branch may come and go
            return short, short
        # A folder's own times change with what is in it.
        return self._long, self._long if self.is_lasting(node) else short
