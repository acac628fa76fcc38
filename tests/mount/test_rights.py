"""Several users in one vault: what each may do is what the branch itself would let them.

As in test_operations, every case runs directly in a branch and in the vault, and the answers are compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cases import Cases
from tests.support.vault import Vault, as_person, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

BRANCHES = ("", "gamma", "delta")

OWNER, MEMBER, OTHER, GROUP = 4001, 4002, 4003, 5001

# name -> uid, gid, supplementary groups
PERSONS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "owner": (OWNER, OWNER, ()),
    "owner in the group": (OWNER, OWNER, (GROUP,)),
    "by primary group": (MEMBER, GROUP, ()),
    "by supplementary group": (MEMBER, MEMBER, (6001, GROUP, 6002)),
    "other": (OTHER, OTHER, (6001,)),
    "root": (0, 0, ()),
}


def act(person: str, step: Callable[[], object]) -> object:
    uid, gid, groups = PERSONS[person]
    return as_person(lambda: outcome(step), uid, gid, groups)


def shown(path: Path) -> tuple[str, int, int]:
    status = os.lstat(path)
    return oct(status.st_mode), status.st_uid, status.st_gid


CASES = Cases()


def written(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"new")


def made(path: Path, mode: int, uid: int = OWNER, gid: int = GROUP) -> Path:
    path.write_bytes(b"content")
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return path


@CASES
def files_by_mode(folder: Path) -> object:
    answers = []
    for mode in (0o000, 0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o060, 0o066, 0o644, 0o606):
        path = made(folder / oct(mode), mode)

        def all_ways(path: Path = path) -> object:
            return [
                outcome(path.read_bytes),
                outcome(lambda: written(path)),
                outcome(lambda: os.truncate(path, 7)),
                outcome(lambda: os.setxattr(path, "user.a", b"1")),
                outcome(lambda: os.getxattr(path, "user.a")),
                outcome(lambda: os.listxattr(path)),
                [os.access(path, way) for way in (os.R_OK, os.W_OK, os.X_OK)],
                outcome(lambda: os.utime(path)),
                outcome(lambda: os.utime(path, (1, 1))),
                outcome(lambda: os.close(os.open(path, os.O_RDONLY | os.O_NOATIME))),
                outcome(lambda: os.link(path, f"{path}-link")),
                outcome(lambda: os.unlink(f"{path}-link")),
            ]

        answers += [(oct(mode), person, act(person, all_ways)) for person in PERSONS]
    return answers


@CASES
def folders_by_mode(folder: Path) -> object:
    answers = []
    for mode in (0, 0o500, 0o300, 0o050, 0o070, 0o005, 0o007, 0o711, 0o770, 0o400, 0o200):
        base = folder / oct(mode)
        (base / "below").mkdir(parents=True)
        made(base / "file", 0o666, 0, 0)
        os.chown(base, OWNER, GROUP)
        os.chmod(base, mode)

        def all_ways(base: Path = base) -> object:
            return [
                outcome(lambda: sorted(os.listdir(base))),
                outcome(lambda: os.stat(base / "file").st_size),
                outcome((base / "file").read_bytes),
                outcome(lambda: os.stat(base / "nothing")),
                outcome(lambda: os.mkdir(base / "new")),
                outcome(lambda: os.rename(base / "new", base / "newer")),
                outcome(lambda: os.rmdir(base / "newer")),
                outcome(lambda: os.symlink("x", base / "link")),
                outcome(lambda: os.unlink(base / "link")),
                outcome(lambda: (base / "created").write_bytes(b"")),
                outcome(lambda: os.rename(base / "created", base / "file-2")),
                outcome(lambda: os.unlink(base / "file-2")),
                outcome(lambda: os.chdir(base)),
                outcome(lambda: os.rename(base / "below", base / "moved")),
                outcome(lambda: os.rename(base / "moved", base / "below")),
            ]

        answers += [(oct(mode), person, act(person, all_ways)) for person in PERSONS]
    return answers


@CASES
def sticky_folders(folder: Path) -> object:
    answers = []
    for person in PERSONS:
        base = folder / person
        base.mkdir()
        os.chown(base, OWNER, GROUP)
        os.chmod(base, 0o1777)
        for name, uid in (("owners", OWNER), ("members", MEMBER), ("others", OTHER), ("roots", 0)):
            made(base / name, 0o666, uid, GROUP)
            (base / f"d-{name}").mkdir()
            os.chown(base / f"d-{name}", uid, GROUP)
            os.chmod(base / f"d-{name}", 0o777)
            made(base / f"t-{name}", 0o666, uid, GROUP)

        def all_ways(base: Path = base) -> object:
            done: list[object] = [outcome(lambda: (base / "mine").write_bytes(b""))]
            for name in ("owners", "members", "others", "roots"):
                done += [
                    outcome(lambda: os.rename(base / name, base / "x")),  # noqa: B023
                    outcome(lambda: os.rename(base / "x", base / name)),  # noqa: B023
                    outcome(lambda: os.rename(base / "mine", base / f"t-{name}")),  # noqa: B023
                    outcome(lambda: (base / "mine").write_bytes(b"")),
                    outcome(lambda: os.unlink(base / name)),  # noqa: B023
                    outcome(lambda: os.rename(base / f"d-{name}", base / "y")),  # noqa: B023
                    outcome(lambda: os.rmdir(base / f"d-{name}")),  # noqa: B023
                ]
            return done

        answers.append((person, act(person, all_ways), sorted(os.listdir(base))))
    return answers


@CASES
def who_may_change_what(folder: Path) -> object:
    answers = []
    for person in PERSONS:
        for mode in (0o644, 0o6755, 0o2644):
            path = made(folder / f"{person}-{mode}", mode)

            def all_ways(path: Path = path) -> object:
                return [
                    (outcome(step), shown(path))
                    for step in (
                        lambda: os.chmod(path, 0o6770),
                        lambda: os.chmod(path, 0o2770),
                        lambda: os.chown(path, -1, GROUP),
                        lambda: os.chmod(path, 0o6755),
                        lambda: os.chown(path, OWNER, -1),
                        lambda: os.chmod(path, 0o6755),
                        lambda: os.chown(path, -1, 6001),
                        lambda: os.chown(path, OTHER, -1),
                        lambda: os.chown(path, OTHER, OTHER),
                    )
                ]

            answers.append((person, oct(mode), act(person, all_ways)))
    return answers


@CASES
def set_uid_is_cleared(folder: Path) -> object:
    """By every change of the content, made by whoever may not set it."""

    def append(path: Path) -> None:
        with open(path, "ab") as file:
            file.write(b"x")

    def shorten(path: Path) -> None:
        with open(path, "r+b") as file:
            file.truncate(1)

    ways: dict[str, Callable[[Path], object]] = {
        "write": written,
        "append": append,
        "truncate": lambda path: os.truncate(path, 3),
        "ftruncate": shorten,
        "truncate while opening": lambda path: path.write_bytes(b""),
        "chown": lambda path: os.chown(path, OWNER, -1),
    }
    answers = []
    for person in PERSONS:
        for mode in (0o6777, 0o6767, 0o2777, 0o4777, 0o2767):
            for way, step in ways.items():
                path = made(folder / "x", mode)
                done = act(person, lambda: step(path))  # noqa: B023
                answers.append((person, oct(mode), way, done, shown(path)))
                path.unlink()
    return answers


@CASES
def what_is_new_belongs_to_whoever_made_it(folder: Path) -> object:
    answers = []
    for mode in (0o777, 0o2777):
        for person in PERSONS:
            base = folder / f"{person}-{mode}"
            base.mkdir()
            os.chown(base, 0, 7777)
            os.chmod(base, mode)

            def all_ways(base: Path = base) -> object:
                os.umask(0o002)
                os.close(os.open(base / "file", os.O_CREAT | os.O_WRONLY, 0o6777))
                os.mkdir(base / "folder", 0o7777)
                os.symlink("x", base / "link")
                os.mkfifo(base / "fifo", 0o666)
                return outcome(lambda: os.mknod(base / "device", 0o20600, os.makedev(1, 3)))

            done = act(person, all_ways)
            answers.append((person, done, [shown(path) for path in sorted(base.iterdir())]))
    return answers


@CASES
def descriptors_keep_their_rights(folder: Path) -> object:
    """What was opened while that was allowed goes on working."""

    def all_ways() -> object:
        path = folder / "x"
        fd = os.open(path, os.O_RDWR)
        listing = os.open(folder / "d", os.O_RDONLY | os.O_DIRECTORY)
        os.chmod(path, 0)
        os.chmod(folder / "d", 0)
        done = [
            outcome(lambda: os.write(fd, b"still")),
            outcome(lambda: os.pread(fd, 100, 0)),
            outcome(lambda: os.ftruncate(fd, 2)),
            outcome(lambda: os.fstat(fd).st_size),
            outcome(lambda: sorted(os.listdir(listing))),
            outcome(lambda: os.close(os.open(path, os.O_RDONLY))),
            outcome(lambda: os.fchmod(fd, 0o600)),
        ]
        os.close(fd)
        os.close(listing)
        return done

    made(folder / "x", 0o600)
    (folder / "d/e").mkdir(parents=True)
    os.chown(folder / "d", OWNER, GROUP)
    return act("owner", all_ways)


@CASES
def a_file_without_rights_made_and_written(folder: Path) -> object:
    os.chmod(folder, 0o777)

    def all_ways() -> object:
        fd = os.open(folder / "x", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0)
        os.write(fd, b"written")
        again = outcome(lambda: os.open(folder / "x", os.O_RDONLY))
        os.close(fd)
        return again

    return act("other", all_ways), (folder / "x").read_bytes()


@CASES
def executing(folder: Path) -> object:
    program = folder / "program"
    shutil.copy("/bin/true", program)
    os.chown(program, OWNER, GROUP)
    answers = []
    for mode in (0o711, 0o701, 0o111, 0o644, 0o4711):
        os.chmod(program, mode)

        def run() -> object:
            return subprocess.run([program], check=False).returncode

        answers += [(oct(mode), person, act(person, run)) for person in PERSONS]
    return answers


def setfacl(*arguments: object) -> None:
    subprocess.run(["setfacl", *map(str, arguments)], check=True)


def acl(path: Path) -> str:
    command = ["getfacl", "--omit-header", "--numeric", "--absolute-names", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@CASES
def access_control_lists(folder: Path) -> object:
    path = made(folder / "x", 0o600)
    setfacl("-m", f"u:{OTHER}:rw,g:6002:r", path)
    answers: list[object] = [acl(path), shown(path)]
    answers += [act(person, path.read_bytes) for person in PERSONS]
    answers += [act(person, lambda: written(path)) for person in PERSONS]
    os.chmod(path, 0o640)  # the mask
    answers += [acl(path), [act(person, lambda: written(path)) for person in PERSONS]]
    answers.append(act("other", lambda: os.removexattr(path, "system.posix_acl_access")))
    setfacl("-b", path)
    answers += [acl(path), [act(person, path.read_bytes) for person in PERSONS]]
    return answers


@CASES
def default_access_control_lists(folder: Path) -> object:
    """With no mask for new files: that it should not count here is more than FUSE's callers are told.

    The kernel has applied it to the mode before the overlay sees it (FUSE_DONT_MASK is out of pyfuse3's
    reach), so below such a folder a mask takes rights away that it would leave natively.
    """
    base = folder / "d"
    base.mkdir(mode=0o755)
    setfacl("-d", "-m", f"u::rwx,u:{OTHER}:rwx,g::rwx,g:6002:r-x,o::---", base)
    setfacl("-m", f"u:{OTHER}:rwx", base)
    before = os.umask(0)
    try:
        (base / "file").write_bytes(b"1")
        (base / "folder").mkdir()
        os.close(os.open(base / "private", os.O_CREAT | os.O_WRONLY, 0o600))
        os.mkfifo(base / "fifo")
        (base / "folder/file").write_bytes(b"2")
        os.mkdir(base / "sgid", 0o2775)
        theirs = act("other", lambda: (base / "folder/theirs").write_bytes(b"3"))
    finally:
        os.umask(before)
    paths = [base, *sorted(base.rglob("*"))]
    answers: list[object] = [theirs, *((path.name, acl(path), shown(path)) for path in paths)]
    answers.append((acl(base / "folder/theirs"), shown(base / "folder/theirs")))
    setfacl("-k", base)
    (base / "after").write_bytes(b"")
    answers.append((acl(base), acl(base / "after")))
    return answers


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", CASES)
def test_as_in_the_branch_itself(vault: Vault, name: str, branch: str) -> None:
    CASES.compare(name, vault, branch)


def test_groups_that_change_are_seen_in_a_second(vault: Vault) -> None:
    """A program that leaves a group keeps nothing; one that joins a group may have to wait that long."""
    folder = vault.path / "gamma/for-the-group"
    folder.mkdir()
    os.chown(folder, 0, GROUP)
    folder.chmod(0o770)

    def start() -> object:
        os.setgroups([GROUP])
        os.setresgid(OTHER, OTHER, OTHER)
        os.setresuid(-1, OTHER, 0)
        first = outcome(lambda: (folder / "x").write_bytes(b""))
        os.setresuid(-1, 0, 0)
        os.setgroups([])
        os.setresuid(OTHER, OTHER, OTHER)
        return first, outcome(lambda: (folder / "y").write_bytes(b""))

    assert as_person(start, 0, 0) == (0, "EACCES")
    shutil.rmtree(folder)
