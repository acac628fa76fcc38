"""Cases that run twice, directly in a branch and in the vault, and have to answer the same.

A case makes its calls in an empty folder and answers what came of them; it knows nothing of where it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from session_agent.fsutil.syscalls import renameat2
from tests.support.vault import Vault

Case = Callable[[Path], object]

_AT_FDCWD = -100


class Cases(dict[str, Case]):
    """The cases of a module, by name. To be used as a decorator."""

    def __call__(self, case: Case) -> Case:
        self[case.__name__] = case
        return case

    def compare(self, name: str, vault: Vault, branch: str) -> None:
        """Run the case on the file system behind the branch first, then on that branch in the vault."""
        answers = []
        for folder in (vault.backing(branch) / "directly", vault.path / branch / "in-the-vault"):
            folder.mkdir()
            folder.chmod(0o755)
            try:
                answers.append(self[name](folder))
            finally:
                shutil.rmtree(folder)
        expected, got = answers
        assert got == expected


class Closing:
    """`with` for a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def rename(source: str | Path, target: str | Path, flags: int = 0) -> None:
    """renameat2(2)."""
    renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags)
