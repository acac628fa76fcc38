"""The names of mounts as branches. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

VAULT_ITSELF = "."  # the name of a mount at the vault's own path

# The root branch has these at the vault's top.
_RESERVED = (".obsidian", ".trash", "_inbox")


def assign(paths: Iterable[str], vault: str) -> dict[str, str]:
    """A name for each path, unique, and the same whatever the order of `paths`.

    Below the vault it is the path from there ("wiki/nested"), else the last component. Where that
    is taken, "-2", "-3" and so on are added, in the order of the sorted paths. The folders above a
    nested branch are taken too, or it would come to lie in an unrelated one.
    """
    names: dict[str, str] = {}
    taken = set(_RESERVED)
    elsewhere = []
    for path in sorted(set(paths)):
        name = below(path, vault)
        if name is None:
            elsewhere.append(path)
            continue
        names[path] = name
        while name:
            taken.add(name)
            name = name.rpartition("/")[0]
    for path in elsewhere:
        last = path.rpartition("/")[2]
        numbered = (f"{last}-{number}" for number in itertools.count(2))
        names[path] = next(n for n in itertools.chain([last], numbered) if n not in taken)
        taken.add(names[path])
    return names


def below(path: str, folder: str) -> str | None:
    """`path` as seen from `folder`, "." for the folder itself; None if it lies elsewhere."""
    if path == folder:
        return VAULT_ITSELF
    start = folder.rstrip("/") + "/"
    return path[len(start) :] if path.startswith(start) else None
