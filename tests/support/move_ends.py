"""What may lie at an end of a move that is cut off: each makes it at `path`."""

from __future__ import annotations

import os
from pathlib import Path


def file(path: Path) -> None:
    path.write_bytes(b"one" * 2000)


def other_file(path: Path) -> None:
    path.write_bytes(b"another" * 1000)


def tree(path: Path) -> None:
    (path / "below/deep").mkdir(parents=True)
    (path / "below/deep/note").write_bytes(b"note" * 1000)
    (path / "below/hole").write_bytes(b"")
    os.truncate(path / "below/hole", 1 << 20)
    os.link(path / "below/deep/note", path / "linked")
    os.setxattr(path / "linked", "user.label", b"here")
    (path / "link").symlink_to("below")


def empty(path: Path) -> None:
    path.mkdir()


def absent(path: Path) -> None:
    assert not path.exists()
