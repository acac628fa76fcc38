"""Two folders, in two branches, between which a test moves things."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.vault import Vault

# Two mounts of one ext4, ext4 to xfs, xfs to tmpfs, and from and to the root branch.
PAIRS = [("alpha", "beta"), ("alpha", "gamma"), ("gamma", "delta"), ("", "alpha"), ("delta", "")]


def pair_name(pair: tuple[str, str]) -> str:
    """The pair as part of a test's name."""
    return "-".join(name or "root" for name in pair)


@contextmanager
def folders_in(vault: Vault, pair: tuple[str, str]) -> Iterator[tuple[Path, Path]]:
    """A folder in each of the two branches, seen in the vault."""
    first, second = (vault.path / branch / "folder" for branch in pair)
    first.mkdir()
    second.mkdir()
    yield first, second
    shutil.rmtree(first)
    shutil.rmtree(second)


def names_in_branches(vault: Vault) -> set[str]:
    """Everything at the top of the branches, hidden names too."""
    branches = ("", *vault.branches)
    return {f"{branch}:{name}" for branch in branches for name in os.listdir(vault.backing(branch))}


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def behind(vault: Vault, path: Path) -> Path:
    """Where `path` lies behind the vault."""
    first, *rest = path.relative_to(vault.path).parts
    return (
        vault.backing(first).joinpath(*rest)
        if first in vault.branches
        else vault.root / first / Path(*rest)
    )
