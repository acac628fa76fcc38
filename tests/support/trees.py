"""Folders that hold one of everything, what tells two of them apart, and programs run on them."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

_YEAR = 31_557_600 * 10**9  # nanoseconds

_XFS_ACL = "trusted.SGI_ACL_"  # how xfs shows root its own form of an ACL, a second time

# The same bytes on every run, and no two files alike.
_POOL = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(1 << 15))


def content(seed: int, size: int) -> bytes:
    """`size` bytes that depend on `seed`: at most a MiB."""
    start = seed * 7919 % (len(_POOL) - size)
    return _POOL[start : start + size]


def needs(program: str) -> pytest.MarkDecorator:
    """The mark of a test that runs `program`."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run(
    *command: str | os.PathLike[str],
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    time_limit: float = 60.0,
) -> str:
    """What the program says. It must succeed within `time_limit` seconds."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        check=False,
        timeout=time_limit,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def make_tree(top: Path) -> None:
    """Make a folder with whatever a backup has to carry: about 300 entries, 4 MiB."""
    top.mkdir()
    for number in range(8):
        folder = top / f"folder {number}"
        folder.mkdir()
        for note in range(30):
            (folder / f"note {note}.md").write_bytes(content(note, number * 333 + note * 17))
    (top / "attachment").write_bytes(content(1, 1_000_000) * 2)
    (top / "empty").touch()
    (top / "empty folder").mkdir()
    _make_names(top / "names")
    _make_links(top / "links")
    _make_sparse(top / "sparse")
    _make_rights(top / "rights")
    _make_special(top / "special")
    _make_times(top)


def _make_names(folder: Path) -> None:
    folder.mkdir()
    names = [b"x" * 255, b"latin \xe9\xff", "ünï—✓".encode(), b"line\nbreak", b"-rf", b"a\\b\"'$`"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(name)
    (folder.joinpath(*["deep"] * 40)).mkdir(parents=True)
    (folder.joinpath(*["deep"] * 40, "bottom")).write_bytes(b"40 folders down")


def _make_links(folder: Path) -> None:
    (folder / "other").mkdir(parents=True)
    (folder / "first").write_bytes(content(2, 5000))
    os.link(folder / "first", folder / "second")
    os.link(folder / "first", folder / "other/third")
    targets = {"to file": "first", "dangling": "nothing/here", "absolute": "/etc/hostname"}
    for name, target in {**targets, "up": "../attachment", "long": "x" * 1000}.items():
        os.symlink(target, folder / name)
    os.link(folder / "dangling", folder / "dangling too", follow_symlinks=False)


def _make_sparse(folder: Path) -> None:
    folder.mkdir()
    with open(folder / "hole first", "wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    with open(folder / "holes between", "wb") as file:
        for part in range(5):
            file.seek(part * 500_000)
            file.write(content(part, 20_000))
        file.truncate(4_000_000)


def _make_rights(folder: Path) -> None:
    folder.mkdir()
    for mode in (0o000, 0o400, 0o600, 0o755, 0o4755, 0o2755, 0o1644, 0o777):
        file = folder / f"{mode:o}"
        file.write_bytes(b"%o" % mode)
        os.chown(file, mode, 1000)
        file.chmod(mode)
    for mode in (0o700, 0o1777, 0o2775):
        (folder / f"folder {mode:o}").mkdir()
        (folder / f"folder {mode:o}").chmod(mode)
    (folder / "access").write_bytes(b"for some")
    (folder / "inherited").mkdir()
    run("setfacl", "-m", "u:1001:rw,g:1002:r,m::rw", folder / "access")
    run("setfacl", "-m", "u:1001:rwx", "-d", "-m", "u:1003:rx,o::-", folder / "inherited")
    (folder / "inherited/heir").write_bytes(b"has an ACL of its folder")
    for number in range(4):
        os.setxattr(folder / "access", f"user.number {number}", content(number, number * 100))
    os.setxattr(folder / "inherited", "user.folder", b"value")
    os.setxattr(folder / "access", "trusted.secret", b"of root")


def _make_special(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "pipe", 0o640)
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "disk", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)


def _make_times(top: Path) -> None:
    paths = sorted(_paths(os.fsencode(top)), reverse=True)  # what is in a folder before the folder
    for number, path in enumerate(paths):
        # From 1970 to 2030, and every ninth one before or after that: all with odd nanoseconds.
        time_ns = number * 7919 % 60 * _YEAR + number * 123_456_789
        if number % 9 == 0:
            time_ns = -3 * _YEAR + 1 if number % 2 else 90 * _YEAR + 1
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


Description = dict[bytes, dict[str, object]]
"""What a faithful copy keeps, by the path below the top: all but numbers, blocks and ctime."""


def differences(one: Path | Description, other: Path | Description) -> list[str]:
    """How two trees differ in what a faithful copy keeps."""
    mine = describe(one) if isinstance(one, Path) else one
    theirs = describe(other) if isinstance(other, Path) else other
    found = [f"only in the first: {name!r}" for name in sorted(mine.keys() - theirs.keys())]
    found += [f"only in the second: {name!r}" for name in sorted(theirs.keys() - mine.keys())]
    for name in sorted(mine.keys() & theirs.keys()):
        for what, value in mine[name].items():
            if value != theirs[name][what]:
                found.append(f"{name!r}: {what} {value!r:.300} != {theirs[name][what]!r:.300}")
    return found


def describe(top: Path) -> Description:
    """Everything at and below `top`."""
    above = len(os.fsencode(top))
    # One status of each: numbers may change when the kernel has forgotten what was moved.
    found = {path: os.lstat(path) for path in _paths(os.fsencode(top))}
    links: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for path, status in found.items():
        links[status.st_dev, status.st_ino].append(path[above:])
    return {
        path[above:]: _describe_one(path, status)
        | {"links": sorted(links[status.st_dev, status.st_ino])}
        for path, status in found.items()
    }


def _paths(top: bytes) -> Iterator[bytes]:
    yield top
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            yield os.path.join(folder, name)


def _describe_one(path: bytes, status: os.stat_result) -> dict[str, object]:
    kind = stat.S_IFMT(status.st_mode)
    about: dict[str, object] = {
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "mtime": status.st_mtime_ns,
        "device": status.st_rdev,
        "attributes": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if not name.startswith(_XFS_ACL)
        },
        "content": None,
    }
    if kind != stat.S_IFDIR:  # a folder's are the file system's own business
        about["links count"] = status.st_nlink
        about["size"] = status.st_size
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            about["content"] = hashlib.sha256(file.read()).hexdigest()
    elif kind == stat.S_IFLNK:
        about["content"] = os.readlink(path)
    return about
