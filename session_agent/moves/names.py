"""Reserved names: what bears one is garbage by construction, and any later run may delete it."""

from __future__ import annotations

import os
import secrets
import stat

RESERVED_PREFIX = b".~session-agent-"
"""Before its commit a move's source is whole, afterwards its target is: neither has such a name."""


def new_id() -> str:
    """A new move's identifier."""
    return secrets.token_hex(6)


def stage_name(move_id: str, number: int = 0) -> bytes:
    """Under which the copies of that move are built; an exchange has two of them."""
    return RESERVED_PREFIX + f"{move_id}-{number}".encode()


def grave_name(move_id: str, number: int = 0) -> bytes:
    """Under which the old tree of that move is removed."""
    return RESERVED_PREFIX + f"{move_id}-old-{number}".encode()


def plain_names(folder: int) -> list[bytes]:
    """The names in a folder, but for the reserved ones. `folder` must be open for reading."""
    return list(plain_entries(folder))


def plain_entries(folder: int) -> dict[bytes, int]:
    """The same, each with S_IFDIR for a folder, S_IFREG for a regular file, 0 for anything else."""
    with os.scandir(folder) as entries:
        found = {os.fsencode(entry.name): _kind(entry) for entry in entries}
    return {name: one for name, one in found.items() if not name.startswith(RESERVED_PREFIX)}


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else 0
