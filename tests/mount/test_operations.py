"""Operation × condition × errno: the same calls in a branch's own folder and in the vault, compared.

What may differ is not asked for, with the reason beside it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cases import Cases, rename
from tests.support.vault import Vault, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

CASES = Cases()
# The root branch and a bind mount (ext4), an xfs, a tmpfs.
BRANCHES = ("", "alpha", "gamma", "delta")

NOREPLACE, EXCHANGE = 1, 2


def shown(status: os.stat_result) -> tuple[object, ...]:
    links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return oct(status.st_mode), links, status.st_uid, status.st_gid, size, status.st_rdev


def everything(path: str, other: str) -> dict[str, object]:
    """What every operation on `path` answers; `other` is a free name beside it. Order matters."""
    create = os.O_WRONLY | os.O_CREAT

    def opened(flags: int) -> Callable[[], object]:
        return lambda: os.close(os.open(path, flags, 0o644))

    steps: dict[str, Callable[[], object]] = {
        "stat": lambda: shown(os.stat(path)),
        "lstat": lambda: shown(os.lstat(path)),
        "read": opened(os.O_RDONLY),
        "write": opened(os.O_WRONLY),
        "no follow": opened(os.O_RDONLY | os.O_NOFOLLOW),
        "as a folder": opened(os.O_RDONLY | os.O_DIRECTORY),
        "by path alone": opened(os.O_PATH | os.O_NOFOLLOW),
        "list": lambda: sorted(os.listdir(path)),
        "readlink": lambda: os.readlink(path),
        "truncate": lambda: os.truncate(path, 5),
        "chmod": lambda: os.chmod(path, 0o750),
        "chown": lambda: os.chown(path, 5, 6, follow_symlinks=False),
        "utime": lambda: os.utime(path, ns=(1, 2), follow_symlinks=False),
        "getxattr": lambda: os.getxattr(path, "user.none", follow_symlinks=False),
        "setxattr": lambda: os.setxattr(path, "user.some", b"1", follow_symlinks=False),
        "listxattr": lambda: os.listxattr(path, follow_symlinks=False),
        "removexattr": lambda: os.removexattr(path, "user.some", follow_symlinks=False),
        "new file": opened(create | os.O_EXCL),
        "mkdir": lambda: os.mkdir(path),
        "mkfifo": lambda: os.mkfifo(path),
        "symlink": lambda: os.symlink("x", path),
        "link to": lambda: os.link("/proc/self/mountinfo", path),
        "link": lambda: os.link(path, other, follow_symlinks=False),
        "unlink the link": lambda: os.unlink(other),
        "exchange": lambda: rename(path, other, EXCHANGE),
        "rename": lambda: os.rename(path, other),
        "rename back": lambda: os.rename(other, path),
        "rename new": lambda: rename(other, path, NOREPLACE),
        "rmdir": lambda: os.rmdir(path),
        "unlink": lambda: os.unlink(path),
        "create": opened(create),
        "unlink created": lambda: os.unlink(path),
    }
    return {name: outcome(step) for name, step in steps.items()}


# Names


@CASES
def long_names(folder: Path) -> object:
    lengths = (1, 254, 255, 256, 1023, 1024, 1025, 4095, 4096)
    return [everything(f"{folder}/{'n' * length}", f"{folder}/other") for length in lengths]


@CASES
def a_long_new_name(folder: Path) -> object:
    (folder / "file").write_bytes(b"")
    (folder / "folder").mkdir()
    names = [str(folder / ("n" * length)) for length in (255, 256, 1024, 1025)]
    return [
        (
            outcome(lambda: os.link(folder / "file", name)),  # noqa: B023 - called at once
            outcome(lambda: os.rename(folder / "file", name)),  # noqa: B023
            outcome(lambda: os.rename(name, folder / "file")),  # noqa: B023
            outcome(lambda: os.rename(folder / "folder", name)),  # noqa: B023
            outcome(lambda: os.rename(name, folder / "folder")),  # noqa: B023
        )
        for name in names
    ]


@CASES
def names_of_every_byte(folder: Path) -> object:
    base = os.fsencode(folder)
    names = [bytes([number]) for number in range(1, 256)]
    names += [
        b"\xff\xfe" * 127,
        b"\xc3(",
        b" ",
        b"\n\t",
        b"a" * 254 + b"\x80",
        b"...",
        "ä".encode(),
    ]
    made = [outcome(lambda: os.mkdir(base + b"/" + name)) for name in names]  # noqa: B023
    modes = [outcome(lambda: os.stat(base + b"/" + name).st_mode) for name in names]  # noqa: B023
    return made, modes, sorted(os.listdir(base))


@CASES
def dots(folder: Path) -> object:
    (folder / "d").mkdir()
    os.symlink("d", folder / "to-d")
    paths = [".", "..", "d/.", "d/..", "d/../d", "to-d/..", "to-d/.", "d//", ""]
    found = [outcome(lambda: os.stat(f"{folder}/{path}").st_mode) for path in paths]  # noqa: B023
    same = os.stat(folder / "d/..").st_ino == os.stat(folder).st_ino
    ends = [
        (
            outcome(lambda: os.rmdir(f"{folder}/{path}")),  # noqa: B023
            outcome(lambda: os.unlink(f"{folder}/{path}")),  # noqa: B023
            outcome(lambda: os.mkdir(f"{folder}/{path}")),  # noqa: B023
            outcome(lambda: os.rename(f"{folder}/{path}", folder / "new")),  # noqa: B023
            outcome(lambda: os.rename(folder / "d", f"{folder}/{path}")),  # noqa: B023
        )
        for path in ("d/.", "d/..", ".", "..")
    ]
    return found, same, ends


@CASES
def slash_at_the_end(folder: Path) -> object:
    (folder / "f").write_bytes(b"1")
    (folder / "d").mkdir()
    os.symlink("d", folder / "to-d")
    os.symlink("f", folder / "to-f")
    os.symlink("nothing", folder / "to-nothing")
    return [
        everything(f"{folder}/{name}/", f"{folder}/other")
        for name in ("f", "to-f", "to-nothing", "nothing", "to-d", "d")
    ]


# Kinds


@CASES
def nothing_there(folder: Path) -> object:
    return everything(str(folder / "nothing"), str(folder / "other"))


@CASES
def nothing_above(folder: Path) -> object:
    return everything(str(folder / "nothing/x"), str(folder / "other"))


@CASES
def a_file(folder: Path) -> object:
    (folder / "x").write_bytes(b"content")
    return everything(str(folder / "x"), str(folder / "other"))


@CASES
def a_file_as_a_folder(folder: Path) -> object:
    (folder / "f").write_bytes(b"1")
    return everything(str(folder / "f/x"), str(folder / "other"))


@CASES
def a_folder(folder: Path) -> object:
    (folder / "x").mkdir()
    return everything(str(folder / "x"), str(folder / "other"))


@CASES
def a_full_folder(folder: Path) -> object:
    (folder / "x/y").mkdir(parents=True)
    return everything(str(folder / "x"), str(folder / "other"))


@CASES
def a_link_to_a_file(folder: Path) -> object:
    (folder / "f").write_bytes(b"1")
    os.symlink("f", folder / "x")
    return everything(str(folder / "x"), str(folder / "other"))


@CASES
def a_link_to_a_folder(folder: Path) -> object:
    (folder / "d").mkdir()
    os.symlink("d", folder / "x")
    return everything(str(folder / "x"), str(folder / "other"))


@CASES
def a_link_to_nothing(folder: Path) -> object:
    os.symlink("nothing", folder / "x")
    return everything(str(folder / "x"), str(folder / "other"))


@CASES
def a_link_to_itself(folder: Path) -> object:
    os.symlink("x", folder / "x")
    return everything(str(folder / "x"), str(folder / "other"))


@CASES
def below_a_link_to_itself(folder: Path) -> object:
    os.symlink("x", folder / "x")
    return everything(str(folder / "x/y"), str(folder / "other"))


@CASES
def a_chain_of_links(folder: Path) -> object:
    (folder / "0").write_bytes(b"end")
    for number in range(1, 45):
        os.symlink(str(number - 1), folder / str(number))
    return [outcome((folder / str(number)).read_bytes) for number in (39, 40, 41, 44)]


@CASES
def targets_of_symbolic_links(folder: Path) -> object:
    texts = ["x" * 4095, "x" * 4096, "", "/", "\udcff\n", "a//b/../c", "x" * 60, "x" * 59]
    answers = []
    for number, text in enumerate(texts):
        path = folder / str(number)
        answers.append(outcome(lambda: os.symlink(text, path)))  # noqa: B023
        answers.append(outcome(lambda: (os.readlink(path), os.lstat(path).st_size)))  # noqa: B023
    return answers


@CASES
def a_fifo(folder: Path) -> object:
    os.mkfifo(folder / "x", 0o640)
    # Opened only in ways that do not wait for the other end.
    reading = os.open(folder / "x", os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(folder / "x", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writing, b"through")
    got = os.read(reading, 100)
    os.close(reading)
    alone = outcome(lambda: os.open(folder / "x", os.O_WRONLY | os.O_NONBLOCK))
    os.close(writing)
    attribute = outcome(lambda: os.setxattr(folder / "x", "user.a", b"1"))
    os.rename(folder / "x", folder / "y")
    return (
        got,
        alone,
        attribute,
        shown(os.stat(folder / "y")),
        outcome(lambda: os.unlink(folder / "y")),
    )


@CASES
def devices_and_sockets(folder: Path) -> object:
    # Not opened: the vault's mount has `nodev`, as every mount made by fusermount3.
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(folder / "file", stat.S_IFREG | 0o600)
    kinds = [shown(os.lstat(folder / name)) for name in ("null", "disk", "socket", "file")]
    return kinds, outcome(lambda: os.mknod(folder / "null", stat.S_IFIFO))


# Renames


@CASES
def renames(folder: Path) -> object:
    """Every kind onto every kind, with every flag."""
    kinds = ("file", "folder", "full", "link", "none")

    def make(kind: str, path: Path) -> None:
        if kind == "file":
            path.write_bytes(os.fsencode(path.name))
        elif kind in ("folder", "full"):
            path.mkdir()
            if kind == "full":
                (path / "below").write_bytes(b"")
        elif kind == "link":
            os.symlink("nothing", path)

    answers = []
    for first in kinds:
        for second in kinds:
            # 4 is RENAME_WHITEOUT, which only some file systems know: left out.
            for flags in (0, NOREPLACE, EXCHANGE, NOREPLACE | EXCHANGE, 8):
                base = folder / f"{first}-{second}-{flags}"
                base.mkdir()
                make(first, base / "a")
                make(second, base / "b")
                done = outcome(lambda: rename(base / "a", base / "b", flags))  # noqa: B023
                left = [(p.name, shown(p.lstat())[0]) for p in sorted(base.iterdir())]
                answers.append((first, second, flags, done, left))
    return answers


@CASES
def renames_of_oneself(folder: Path) -> object:
    (folder / "f").write_bytes(b"1")
    os.link(folder / "f", folder / "g")
    (folder / "d/e").mkdir(parents=True)
    pairs = [("f", "f"), ("f", "g"), ("d", "d"), ("d", "d/e"), ("d", "d/new"), ("d/e", "d")]
    done = [
        outcome(lambda: rename(folder / first, folder / second, flags))  # noqa: B023
        for first, second in pairs
        for flags in (0, NOREPLACE, EXCHANGE)
    ]
    return done, sorted(os.listdir(folder)), (folder / "f").stat().st_nlink


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", CASES)
def test_as_in_the_branch_itself(vault: Vault, name: str, branch: str) -> None:
    CASES.compare(name, vault, branch)
