"""shutil.rmtree for a vault in which inode numbers are used again all the time."""

from __future__ import annotations

import shutil
from pathlib import Path


def remove_tree(path: Path | str) -> None:
    """Look twice: what has got the number of a removed file may change its own in the vault, once.

    Should that be between shutil's two looks at the path, it takes it for a link. See the limits in
    docs/foreign-changes.md.
    """
    try:
        shutil.rmtree(path)
    except OSError as failure:
        if failure.errno is not None:
            raise
        shutil.rmtree(path)
