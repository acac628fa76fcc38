"""Branches for tests of what is made of them."""

from __future__ import annotations

from session_agent.model import Branch, Mode, MountKind, MountState


def branch(name: str, mode: Mode = Mode.RW, cloud_type: str = "", path: str = "") -> Branch:
    """A live local branch shown as `name`, mounted at `path`."""
    at = path or f"/mnt/{name}"
    return Branch(name, at, mode, MountState.ALIVE, MountKind.LOCAL, cloud_type)


def branches(*names: str) -> list[Branch]:
    """Writable branches of these names; one that ends in ":ro" is read-only."""
    return [
        branch(name.removesuffix(":ro"), Mode.RO if name.endswith(":ro") else Mode.RW)
        for name in names
    ]
