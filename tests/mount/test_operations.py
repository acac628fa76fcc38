"""Operation × condition × errno: the same calls in a branch's own folder and in the vault, compared.

Every case runs twice, in an empty folder each time: first directly on the file system behind a branch, then
on that branch in the vault. A case makes its calls and answers what came of them; it knows nothing of where
it is. What may differ is not asked for, with the reason beside it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from session_agent.fsutil.syscalls import renameat2
from tests.support.vault import Storage, Vault, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

Case = Callable[[Path], object]

CASES: dict[str, Case] = {}
# The root branch and a bind mount (ext4), an xfs, a tmpfs.
BRANCHES = ("", "alpha", "gamma", "delta")

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY
NOREPLACE, EXCHANGE = 1, 2


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def rename(source: object, target: object, flags: int) -> None:
    renameat2(-100, os.fsencode(str(source)), -100, os.fsencode(str(target)), flags)


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
        "as a folder": opened(FOLDER_FLAGS),
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


@case
def long_names(folder: Path) -> object:
    lengths = (1, 254, 255, 256, 1023, 1024, 1025, 4095, 4096)
    return [everything(f"{folder}/{'n' * length}", f"{folder}/other") for length in lengths]


@case
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


@case
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


@case
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


@case
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


@case
def nothing_there(folder: Path) -> object:
    return everything(str(folder / "nothing"), str(folder / "other"))


@case
def nothing_above(folder: Path) -> object:
    return everything(str(folder / "nothing/x"), str(folder / "other"))


@case
def a_file(folder: Path) -> object:
    (folder / "x").write_bytes(b"content")
    return everything(str(folder / "x"), str(folder / "other"))


@case
def a_file_as_a_folder(folder: Path) -> object:
    (folder / "f").write_bytes(b"1")
    return everything(str(folder / "f/x"), str(folder / "other"))


@case
def a_folder(folder: Path) -> object:
    (folder / "x").mkdir()
    return everything(str(folder / "x"), str(folder / "other"))


@case
def a_full_folder(folder: Path) -> object:
    (folder / "x/y").mkdir(parents=True)
    return everything(str(folder / "x"), str(folder / "other"))


@case
def a_link_to_a_file(folder: Path) -> object:
    (folder / "f").write_bytes(b"1")
    os.symlink("f", folder / "x")
    return everything(str(folder / "x"), str(folder / "other"))


@case
def a_link_to_a_folder(folder: Path) -> object:
    (folder / "d").mkdir()
    os.symlink("d", folder / "x")
    return everything(str(folder / "x"), str(folder / "other"))


@case
def a_link_to_nothing(folder: Path) -> object:
    os.symlink("nothing", folder / "x")
    return everything(str(folder / "x"), str(folder / "other"))


@case
def a_link_to_itself(folder: Path) -> object:
    os.symlink("x", folder / "x")
    return everything(str(folder / "x"), str(folder / "other"))


@case
def below_a_link_to_itself(folder: Path) -> object:
    os.symlink("x", folder / "x")
    return everything(str(folder / "x/y"), str(folder / "other"))


@case
def a_chain_of_links(folder: Path) -> object:
    (folder / "0").write_bytes(b"end")
    for number in range(1, 45):
        os.symlink(str(number - 1), folder / str(number))
    return [outcome((folder / str(number)).read_bytes) for number in (39, 40, 41, 44)]


@case
def targets_of_symbolic_links(folder: Path) -> object:
    texts = ["x" * 4095, "x" * 4096, "", "/", "\udcff\n", "a//b/../c", "x" * 60, "x" * 59]
    answers = []
    for number, text in enumerate(texts):
        path = folder / str(number)
        answers.append(outcome(lambda: os.symlink(text, path)))  # noqa: B023
        answers.append(outcome(lambda: (os.readlink(path), os.lstat(path).st_size)))  # noqa: B023
    return answers


@case
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


@case
def devices_and_sockets(folder: Path) -> object:
    # Not opened: the vault's mount has `nodev`, as every mount made by fusermount3.
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(folder / "file", stat.S_IFREG | 0o600)
    kinds = [shown(os.lstat(folder / name)) for name in ("null", "disk", "socket", "file")]
    return kinds, outcome(lambda: os.mknod(folder / "null", stat.S_IFIFO))


# Renames


@case
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


@case
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


# Content


@case
def sizes(folder: Path) -> object:
    (folder / "x").write_bytes(b"content")
    fd = os.open(folder / "x", os.O_RDWR)
    reading = os.open(folder / "x", os.O_RDONLY)
    try:
        return [
            outcome(lambda: os.truncate(folder / "x", -1)),
            outcome(lambda: os.ftruncate(fd, 1 << 62)),
            outcome(lambda: os.pwrite(fd, b"x", (1 << 63) - 2)),
            outcome(lambda: os.pread(fd, 10, 1 << 62)),
            outcome(lambda: os.ftruncate(reading, 0)),
            outcome(lambda: os.write(reading, b"x")),
            outcome(lambda: os.pread(fd, 100, 0)),
            outcome(lambda: os.lseek(fd, -1, os.SEEK_SET)),
            outcome(lambda: os.lseek(fd, 0, os.SEEK_END)),
            outcome(lambda: os.fstat(fd).st_size),
        ]
    finally:
        os.close(fd)
        os.close(reading)


@case
def opening(folder: Path) -> object:
    (folder / "x").write_bytes(b"content")
    (folder / "d").mkdir()
    os.symlink("x", folder / "to-x")
    os.symlink("new", folder / "to-new")
    flags = {
        "truncate": os.O_WRONLY | os.O_TRUNC,
        "truncate, reading": os.O_RDONLY | os.O_TRUNC,
        "create": os.O_RDWR | os.O_CREAT,
        "create new": os.O_RDWR | os.O_CREAT | os.O_EXCL,
        "create, no follow": os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW,
        "folder": FOLDER_FLAGS,
        "folder, writing": os.O_RDWR | os.O_DIRECTORY,
        "no access time": os.O_RDONLY | os.O_NOATIME,
        "synchronous": os.O_WRONLY | os.O_SYNC,
        "both": 3,
    }
    answers = []
    for path in ("d", "to-x", "to-new", "x"):
        for name, flag in flags.items():

            def step(path: str = path, flag: int = flag) -> object:
                fd = os.open(folder / path, flag, 0o604)
                with _closing(fd):
                    return shown(os.fstat(fd))

            answers.append((path, name, outcome(step)))
    return answers


class _closing:  # noqa: N801 - used as contextlib.closing is
    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


@case
def copying_in_the_kernel(folder: Path) -> object:
    (folder / "x").write_bytes(b"0123456789" * 1000)
    fd = os.open(folder / "x", os.O_RDONLY)
    new = os.open(folder / "new", os.O_RDWR | os.O_CREAT)
    with _closing(fd), _closing(new):
        done = [
            # A whole block: an xfs stops at its end.
            outcome(lambda: os.copy_file_range(fd, new, 4096, 0, 0)),
            outcome(lambda: os.sendfile(new, fd, 100, 1000)),
            outcome(lambda: os.copy_file_range(fd, new, 10, 20_000, 0)),
        ]
    return done, (folder / "new").read_bytes()


@case
def holes(folder: Path) -> object:
    with open(folder / "x", "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())  # until then an xfs reports what it has set aside
    os.truncate(folder / "x", 65 << 20)
    status = os.stat(folder / "x")
    # SEEK_HOLE is not compared: libfuse's lseek is not among pyfuse3's handlers.
    content = (folder / "x").read_bytes()
    return status.st_size, status.st_blocks, content.count(0), content[(32 << 20) - 1 :][:3]


@case
def attributes(folder: Path) -> object:
    (folder / "x").write_bytes(b"")
    (folder / "d").mkdir()
    os.symlink("x", folder / "to-x")
    create, replace = os.XATTR_CREATE, os.XATTR_REPLACE

    def one(path: Path, name: str, value: bytes, flags: int) -> list[object]:
        return [
            outcome(lambda: os.setxattr(path, name, value, flags, follow_symlinks=False)),
            outcome(lambda: os.getxattr(path, name, follow_symlinks=False)),
        ]

    answers: list[object] = []
    for name in ("x", "d", "to-x", "none"):
        path = folder / name
        answers += one(path, "user.a", b"1", replace) + one(path, "user.a", b"", create)
        answers += one(path, "user.a", b"2", create) + one(path, "user.a", b"\0\xff" * 50, replace)
        answers += one(path, "trusted.b", b"3", 0) + one(path, "security.c", b"4", 0)
        answers += one(path, "wrong.d", b"5", 0) + one(path, "nothing", b"6", 0)
        answers += one(path, "user." + "n" * 250, b"7", 0) + one(path, "user." + "n" * 251, b"8", 0)
        answers += one(path, "user.", b"9", 0) + one(path, "user.ä\udcff", b"10", 0)
        answers += one(path, "user.big", b"x" * 65537, 0)
        answers.append(outcome(lambda: sorted(os.listxattr(path, follow_symlinks=False))))  # noqa: B023
        answers.append(outcome(lambda: os.removexattr(path, "user.a", follow_symlinks=False)))  # noqa: B023
        answers.append(outcome(lambda: os.removexattr(path, "user.a", follow_symlinks=False)))  # noqa: B023
        answers.append(outcome(lambda: os.removexattr(path, "user.none", follow_symlinks=False)))  # noqa: B023
    return answers


@case
def the_size_of_an_attribute(folder: Path) -> object:
    (folder / "x").write_bytes(b"")
    os.setxattr(folder / "x", "user.a", b"12345")
    library = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(folder / "x")

    def ask(size: int) -> object:
        buffer = ctypes.create_string_buffer(16)
        got = library.getxattr(path, b"user.a", buffer, size)
        listed = library.listxattr(path, buffer, size)
        return got, listed, ctypes.get_errno() if got < 0 or listed < 0 else 0

    return [ask(size) for size in (0, 1, 4, 5, 16)]


@case
def times(folder: Path) -> object:
    (folder / "x").write_bytes(b"1")
    answers = []
    for accessed, modified in (
        (1, 2),
        (1_700_000_000_123_456_789, 1_600_000_000_987_654_321),
        (-1, -1_000_000_001),
        (5_000_000_000_000_000_000, 4_294_967_296_000_000_001),
        (0, 0),
    ):
        answers.append(outcome(lambda: os.utime(folder / "x", ns=(accessed, modified))))  # noqa: B023
        status = os.stat(folder / "x")
        answers.append((status.st_atime_ns, status.st_mtime_ns))
    return answers


@case
def modes(folder: Path) -> object:
    (folder / "x").write_bytes(b"")
    (folder / "d").mkdir()
    answers = []
    for name in ("x", "d"):
        for mode in (0, 0o777, 0o7777, 0o4711, 0o2711, 0o1777, 0o100644):
            os.chmod(folder / name, mode)
            answers.append(oct(os.stat(folder / name).st_mode))
    return answers


@case
def new_modes(folder: Path) -> object:
    """The mask for new files, and a set-group-ID folder's group."""
    os.chown(folder, 7, 8)
    os.chmod(folder, 0o2755)
    answers = []
    for mask in (0o000, 0o022, 0o777):
        before = os.umask(mask)
        try:
            base = folder / oct(mask)
            os.mkdir(base, 0o1777)
            os.chmod(base, 0o2777)
            os.close(os.open(base / "x", os.O_WRONLY | os.O_CREAT, 0o6777))
            os.mkfifo(base / "fifo", 0o777)
            os.mkdir(base / "d", 0o777)
            os.symlink("x", base / "to-x")
            answers += [shown(os.lstat(path)) for path in (base, *sorted(base.iterdir()))]
        finally:
            os.umask(before)
    return answers


def compared(function: Case, plain: Path, served: Path) -> None:
    plain.mkdir()
    served.mkdir()
    try:
        expected = function(plain)
        got = function(served)
        assert got == expected
    finally:
        shutil.rmtree(plain)
        shutil.rmtree(served)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", CASES)
def test_as_in_the_branch_itself(vault: Vault, name: str, branch: str) -> None:
    compared(CASES[name], vault.backing(branch) / "directly", vault.path / branch / "in-the-vault")


# Branches


def test_a_branch_is_as_busy_as_a_mount_point(vault: Vault, place: Storage) -> None:
    def tried(base: Path) -> object:
        branch, other = base / "alpha", base / "beta"
        folder = branch / "folder"
        folder.mkdir()
        answers = [
            outcome(lambda: os.rmdir(branch)),
            outcome(lambda: os.unlink(branch)),
            outcome(lambda: os.mkdir(branch)),
            outcome(lambda: os.symlink("x", branch)),
            outcome(lambda: os.rename(branch, other)),
            outcome(lambda: os.rename(branch, base / "new")),
            outcome(lambda: rename(branch, other, EXCHANGE)),
            outcome(lambda: rename(branch, other, NOREPLACE)),
            outcome(lambda: os.close(os.open(branch, os.O_WRONLY))),
            sorted(os.listdir(branch)),
        ]
        folder.rmdir()
        return answers

    assert tried(vault.path) == tried(place.base / "branches")


def test_nothing_replaces_a_branch(vault: Vault) -> None:
    # Natively that is EXDEV: a mount point's parent is another mount than what is to replace it.
    for source in ("file", "beta/file", "folder", "beta/folder"):
        path = vault.path / source
        path.mkdir() if source.endswith("folder") else path.write_bytes(b"")
        for flags in (0, EXCHANGE):
            done = outcome(lambda: rename(path, vault.path / "alpha", flags))  # noqa: B023
            assert done in ("EBUSY", "EISDIR")
            assert done == "EBUSY" or not source.endswith("folder")
        path.rmdir() if source.endswith("folder") else path.unlink()


def test_a_hard_link_to_another_branch(vault: Vault) -> None:
    (vault.path / "alpha/x").write_bytes(b"1")
    (vault.path / "beta/taken").write_bytes(b"2")
    for folder in ("", "beta", "gamma"):
        new = vault.path / folder / "new"
        assert outcome(lambda: os.link(vault.path / "alpha/x", new)) == "EXDEV"  # noqa: B023
        assert not new.exists()
    taken = vault.path / "beta/taken"
    assert outcome(lambda: os.link(vault.path / "alpha/x", taken)) == "EEXIST"
    (vault.path / "alpha/x").unlink()
    taken.unlink()


@pytest.fixture
def read_only(vault: Vault, place: Storage) -> tuple[Path, Path]:
    return place.branch("readonly"), vault.path / "readonly"


def test_a_read_only_branch(read_only: tuple[Path, Path]) -> None:
    """Names that are not there are left out: natively EROFS comes before ENOENT, here after the lookup."""

    def tried(base: Path) -> list[object]:
        file, folder, new = base / "file", base / "folder", base / "new"
        return [
            outcome(step)
            for step in (
                lambda: os.close(os.open(file, os.O_WRONLY)),
                lambda: os.close(os.open(file, os.O_RDWR)),
                lambda: os.close(os.open(file, os.O_RDONLY | os.O_TRUNC)),
                lambda: os.close(os.open(new, os.O_WRONLY | os.O_CREAT)),
                lambda: os.close(os.open(new, os.O_RDONLY | os.O_CREAT | os.O_EXCL)),
                lambda: os.truncate(file, 0),
                lambda: os.mkdir(new),
                lambda: os.mkdir(folder),
                lambda: os.symlink("x", new),
                lambda: os.mkfifo(new),
                lambda: os.link(file, new),
                lambda: os.unlink(file),
                lambda: os.rmdir(folder),
                lambda: os.rename(file, new),
                lambda: os.rename(folder, new),
                lambda: os.chmod(file, 0o600),
                lambda: os.chown(file, 5, 5),
                lambda: os.utime(file, (1, 1)),
                lambda: os.utime(file),
                lambda: os.setxattr(file, "user.a", b"1"),
                lambda: os.removexattr(file, "user.none"),
                file.read_bytes,
                lambda: sorted(os.listdir(base)),
            )
        ]

    plain, served = read_only
    expected = tried(plain)
    assert expected.count("EROFS") > 15
    assert tried(served) == expected


def test_a_full_branch(vault: Vault, place: Storage) -> None:
    def tried(base: Path) -> list[object]:
        big = base / "big"
        fd = os.open(big, os.O_WRONLY | os.O_CREAT)
        chunk = b"x" * 65536
        with _closing(fd):
            answers: list[object] = [outcome(lambda: os.write(fd, chunk)) for _ in range(20)]
            answers.append(os.fstat(fd).st_size)
        answers.append(outcome(lambda: (base / "more").write_bytes(b"x" * 9000)))
        with open(big, "r+b") as over:  # what is there
            answers.append(outcome(lambda: os.pwrite(over.fileno(), b"y", 0)))
        big.unlink()
        (base / "more").unlink()
        answers.append(outcome(lambda: (base / "again").write_bytes(b"x" * 9000)))
        (base / "again").unlink()
        return answers

    expected = tried(place.branch("tiny"))
    assert "ENOSPC" in expected
    assert tried(vault.path / "tiny") == expected


# Reserved names


def test_reserved_names_are_not_there(vault: Vault) -> None:
    for branch in BRANCHES:
        name = ".~session-agent-0123456789abcdef"
        hidden = vault.backing(branch) / name
        hidden.mkdir()
        (hidden / "below").write_bytes(b"")
        folder = vault.path / branch
        path = folder / name
        assert name not in os.listdir(folder)
        assert not path.exists()
        assert not (path / "below").exists()
        assert outcome(lambda: os.listdir(path)) == "ENOENT"  # noqa: B023
        assert outcome(lambda: os.unlink(path)) == "ENOENT"  # noqa: B023
        assert outcome(lambda: os.rmdir(path)) == "ENOENT"  # noqa: B023
        assert outcome(lambda: os.rename(path, folder / "new")) == "ENOENT"  # noqa: B023
        assert outcome(lambda: os.mkdir(path)) == "EPERM"  # noqa: B023
        assert outcome(lambda: os.symlink("x", path)) == "EPERM"  # noqa: B023
        assert outcome(lambda: path.write_bytes(b"")) == "EPERM"  # noqa: B023
        assert outcome(lambda: os.mkfifo(path)) == "EPERM"  # noqa: B023
        (folder / "file").write_bytes(b"")
        for step in (os.rename, os.link):
            assert outcome(lambda: step(folder / "file", path)) == "EPERM"  # noqa: B023
        (folder / "file").unlink()
        (hidden / "below").unlink()
        hidden.rmdir()


# Figures


def test_figures_of_the_file_systems(vault: Vault, place: Storage) -> None:
    """Each file system counts once: alpha, beta, readonly and the root branch are one."""
    served = os.statvfs(vault.path / "gamma")
    behind = [
        os.statvfs(path) for path in (place.root, *map(place.branch, ("gamma", "delta", "tiny")))
    ]
    assert served.f_namemax == 255
    total = sum(one.f_blocks * one.f_frsize for one in behind)
    assert abs(served.f_blocks * served.f_frsize - total) < 16384
    free = sum(one.f_bavail * one.f_frsize for one in behind)
    assert abs(served.f_bavail * served.f_frsize - free) < (1 << 20)
    assert served.f_files == sum(one.f_files for one in behind)
