"""File systems of several kinds on one machine, and pictures of what lies in a folder."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.storage import run

_PATIENCE = 60.0  # seconds for mkfs, mount and umount


class Seen(NamedTuple):
    """All that a move has to carry over, of one file."""

    format: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    device: int
    content: bytes  # a file's bytes, a symbolic link's target
    attributes: tuple[tuple[str, bytes], ...]
    links: tuple[str, ...]  # the names in the picture that are the same file, if several


def picture(top: Path) -> dict[str, Seen]:
    """What `top` is, and all below it, by path relative to `top` ("" for itself). {} if it is not there."""
    paths = _below(top, "")
    groups: dict[tuple[int, int], list[str]] = {}
    for name in paths:
        status = os.lstat(top / name)
        if not stat.S_ISDIR(status.st_mode):
            groups.setdefault((status.st_dev, status.st_ino), []).append(name)
    linked = {name: tuple(names) for names in groups.values() if len(names) > 1 for name in names}
    return {name: _seen(top / name, linked.get(name, ())) for name in paths}


def contents(top: Path) -> dict[str, bytes]:
    """The bytes of every regular file at and below `top`, by path relative to it."""
    return {
        name: seen.content for name, seen in picture(top).items() if seen.format == stat.S_IFREG
    }


def _below(top: Path, name: str) -> list[str]:
    try:
        status = os.lstat(top / name)
    except FileNotFoundError:
        return []
    paths = [name]
    if stat.S_ISDIR(status.st_mode):
        for entry in sorted(os.listdir(top / name)):
            paths += _below(top, f"{name}/{entry}" if name else entry)
    return paths


def _seen(path: Path, links: tuple[str, ...]) -> Seen:
    status = os.lstat(path)
    content = b""
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(os.fsencode(path))
    elif stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError:  # rclone
        names = []
    values = [os.getxattr(path, name, follow_symlinks=False) for name in names]
    return Seen(
        stat.S_IFMT(status.st_mode),
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_rdev,
        content,
        tuple((name, _same_acl(name, value)) for name, value in zip(names, values, strict=True)),
        links,
    )


def _same_acl(name: str, value: bytes) -> bytes:
    """An ACL's entries of no user or group have an id that means nothing, and file systems differ in it."""
    if not name.startswith("system.posix_acl_"):
        return value
    entries = [value[start : start + 8] for start in range(4, len(value), 8)]
    return value[:4] + b"".join(
        entry if entry[0] in (0x02, 0x08) else entry[:4] + bytes(4) for entry in entries
    )


@contextlib.contextmanager
def image(path: Path, fstype: str, *, size: str = "64M") -> Iterator[Path]:
    """A file system of that type, as mkfs makes it, in an image beside `path`, mounted there."""
    path.mkdir(parents=True)
    file = path.with_name(f"{path.name}.{fstype}")
    with open(file, "wb"):
        os.truncate(file, int(size.removesuffix("M")) << 20)
    run(f"mkfs.{fstype}", "-q", str(file), patience=_PATIENCE)
    run("mount", "-t", fstype, "-o", "loop", str(file), str(path), patience=_PATIENCE)
    try:
        yield path
    finally:
        run("umount", "--lazy", str(path), patience=_PATIENCE)
