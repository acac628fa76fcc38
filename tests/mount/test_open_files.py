"""Open files and folders, numbers, and what several programs do to one file: in a branch, and in the vault.

The cases run as in test_operations: directly in the branch, then in the vault, and the answers are compared.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import socket
import stat
import threading
from pathlib import Path

import pytest

from tests.support.cases import Cases
from tests.support.vault import Storage, Vault, as_person, outcome, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

BRANCHES = ("", "alpha", "gamma", "delta")

CASES = Cases()


@CASES
def unlinked_but_open(folder: Path) -> object:
    path = folder / "x"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDWR)
    appending = os.open(path, os.O_WRONLY | os.O_APPEND)
    path.unlink()
    path.write_bytes(b"another")  # by the same name
    answers = [
        outcome(step)
        for step in (
            lambda: os.fstat(fd).st_nlink,
            lambda: os.read(fd, 4),
            lambda: os.write(fd, b"XY"),
            lambda: os.write(appending, b"end"),
            lambda: os.pread(fd, 100, 0),
            lambda: os.ftruncate(fd, 8),
            lambda: os.fstat(fd).st_size,
            lambda: os.fchmod(fd, 0o604),
            lambda: os.fchown(fd, 3, 4),
            lambda: os.utime(fd, ns=(5, 6)),
            lambda: os.setxattr(fd, "user.a", b"1"),
            lambda: os.listxattr(fd),
            lambda: os.fsync(fd),
            lambda: oct(os.fstat(fd).st_mode),
            lambda: (os.fstat(fd).st_uid, os.fstat(fd).st_mtime_ns),
            lambda: os.link(f"/proc/self/fd/{fd}", folder / "again", follow_symlinks=True),
            lambda: os.pread(fd, 100, 0),
        )
    ]
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    answers.append(os.pread(again, 100, 0))
    for one in (again, fd, appending):
        os.close(one)
    return answers, path.read_bytes(), sorted(os.listdir(folder))


@CASES
def replaced_but_open(folder: Path) -> object:
    (folder / "old").write_bytes(b"old")
    (folder / "new").write_bytes(b"new")
    with open(folder / "old", "r+b", buffering=0) as file:
        os.rename(folder / "new", folder / "old")
        file.seek(0, os.SEEK_END)
        file.write(b" and more")
        return os.pread(file.fileno(), 100, 0), (folder / "old").read_bytes()


@CASES
def one_of_two_links_unlinked_while_open(folder: Path) -> object:
    (folder / "a").write_bytes(b"1")
    os.link(folder / "a", folder / "b")
    with open(folder / "a", "r+b", buffering=0) as file:
        (folder / "a").unlink()
        file.write(b"2")
        links = os.fstat(file.fileno()).st_nlink
        os.rename(folder / "b", folder / "c")
        file.write(b"3")
        return links, (folder / "c").read_bytes(), os.fstat(file.fileno()).st_nlink


@CASES
def an_unlinked_working_folder(folder: Path) -> object:
    here = os.getcwd()
    (folder / "d/e").mkdir(parents=True)
    try:
        os.chdir(folder / "d/e")
        os.rmdir(folder / "d/e")
        os.mkdir(folder / "d/e")  # another by the same name
        (folder / "d/e/x").write_bytes(b"1")
        return [
            outcome(step)
            for step in (
                lambda: os.listdir("."),
                lambda: os.close(os.open("x", os.O_CREAT | os.O_WRONLY)),
                lambda: os.mkdir("y"),
                lambda: os.stat("x"),
                lambda: stat.S_ISDIR(os.stat(".").st_mode),
                os.getcwd,
                lambda: os.rename("../e/x", "x"),
            )
        ]
    finally:
        os.chdir(here)


@CASES
def a_moved_working_folder(folder: Path) -> object:
    here = os.getcwd()
    (folder / "a/b").mkdir(parents=True)
    (folder / "c").mkdir()
    (folder / "c/beside").write_bytes(b"")
    try:
        os.chdir(folder / "a/b")
        os.rename(folder / "a/b", folder / "c/moved")
        Path("new").write_bytes(b"1")
        return (
            sorted(os.listdir("..")),
            os.getcwd() == str(folder / "c/moved"),
            os.listdir(folder / "a"),
        )
    finally:
        os.chdir(here)


@CASES
def a_descriptor_that_is_a_path(folder: Path) -> object:
    (folder / "x").write_bytes(b"content")
    os.symlink("nothing", folder / "link")
    file = os.open(folder / "x", os.O_PATH)
    link = os.open(folder / "link", os.O_PATH | os.O_NOFOLLOW)
    top = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    os.rename(folder / "x", folder / "y")
    answers = [
        os.fstat(file).st_size,
        outcome(lambda: os.read(file, 1)),
        os.readlink("", dir_fd=link),
        stat.S_ISLNK(os.fstat(link).st_mode),
        Path(f"/proc/self/fd/{file}").read_bytes(),
        outcome(lambda: os.stat("y", dir_fd=top).st_size),
        outcome(lambda: os.stat("../" + folder.name + "/y", dir_fd=top).st_size),
    ]
    for fd in (file, link, top):
        os.close(fd)
    return answers


@CASES
def sockets(folder: Path) -> object:
    here = os.getcwd()
    try:
        os.chdir(folder)  # a socket's path may not be long
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("s")
            server.listen()
            os.rename("s", "t")
            client.connect("t")
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"through")
                got = accepted.recv(100)
            with socket.socket(socket.AF_UNIX) as second:
                again = outcome(lambda: second.bind("t"))
        return got, again, outcome(lambda: os.open("t", os.O_RDONLY)), oct(os.stat("t").st_mode)
    finally:
        os.chdir(here)


@CASES
def mapped(folder: Path) -> object:
    path = folder / "x"
    path.write_bytes(b"a" * 10_000)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 10_000) as shared:
        shared[0:5] = b"12345"
        with open(path, "rb") as other:
            seen = other.read(6)
        with open(path, "r+b", buffering=0) as writer:
            writer.seek(3)
            writer.write(b"XY")
        through = bytes(shared[0:6])
        shared[9_000:9_003] = b"end"
        shared.flush()
        with mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as private:
            private[0:1] = b"P"
        os.rename(path, folder / "y")
        shared[1:2] = b"R"
    return seen, through, (folder / "y").read_bytes()[:6], (folder / "y").read_bytes()[8_998:9_005]


@CASES
def mapped_and_appended(folder: Path) -> object:
    path = folder / "x"
    path.write_bytes(b"a" * 4096)
    with open(path, "a+b", buffering=0) as file, mmap.mmap(file.fileno(), 4096) as shared:
        shared[0:3] = b"map"
        file.write(b"appended")
        shared[5:8] = b"MAP"
        shared.flush()
    return path.read_bytes()[:10], path.read_bytes()[4090:], os.stat(path).st_size


@CASES
def locks(folder: Path) -> object:
    (folder / "x").write_bytes(b"0123456789")

    def other() -> object:
        with open(folder / "x", "r+b") as file:
            return [
                outcome(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)),
                outcome(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 0)),
                outcome(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 5)),
            ]

    with open(folder / "x", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX, 2, 0)
        held = as_person(other, 0)
    return held, as_person(other, 0)


@CASES
def two_programs_append(folder: Path) -> object:
    path = folder / "log"
    path.touch()
    count = 400

    def write(who: int) -> None:
        with open(path, "ab", buffering=0) as log:
            for number in range(count):
                log.write(b"%d %06d %s\n" % (who, number, b"x" * (number % 50)))

    pids = []
    for who in (1, 2, 3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                write(who)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    lines = path.read_bytes().splitlines()
    of_each = [[line for line in lines if line.startswith(b"%d " % who)] for who in (1, 2, 3)]
    in_order = [one == sorted(one) for one in of_each]
    return ends, len(lines), len(set(lines)), in_order


@CASES
def direct_and_synchronous(folder: Path) -> object:
    with mmap.mmap(-1, 8192) as aligned:
        aligned[:] = b"d" * 8192
        fd = os.open(folder / "x", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        written = os.write(fd, aligned)
        got = os.preadv(fd, [aligned], 4096)
        os.close(fd)
    fd = os.open(folder / "x", os.O_WRONLY | os.O_DSYNC | os.O_APPEND)
    os.write(fd, b"more")
    os.close(fd)
    return written, got, (folder / "x").read_bytes()[-6:], os.stat(folder / "x").st_size


@CASES
def many_threads(folder: Path) -> object:
    problems: list[str] = []

    def work(number: int) -> None:
        for turn in range(40):
            path = folder / f"{number} {turn}"
            path.write_bytes(b"%d" % turn * 1000)
            os.rename(path, folder / f"{number}")
            if (folder / f"{number}").read_bytes() != b"%d" % turn * 1000:
                problems.append(f"{number} {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems, sorted(os.listdir(folder))


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", CASES)
def test_as_in_the_branch_itself(vault: Vault, name: str, branch: str) -> None:
    CASES.compare(name, vault, branch)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_removed_folder_that_is_open_while_many_others_are_used(
    place: Storage, replaced: bool
) -> None:
    """The overlay keeps the folders open that were used last; to this one nothing else leads."""
    with serve(place, folder_limit=2) as vault:
        top = vault.path / "alpha/many"
        for number in range(5):
            (top / f"{number}/in").mkdir(parents=True)
        (top / "gone").mkdir()
        fd = os.open(top / "gone", os.O_RDONLY)
        if replaced:
            (top / "new").mkdir()
            os.rename(top / "new", top / "gone")
        else:
            os.rmdir(top / "gone")
        for number in range(5):
            assert os.listdir(top / f"{number}") == ["in"]
            assert os.listdir(top / f"{number}/in") == []
        status = os.fstat(fd)
        assert (stat.S_ISDIR(status.st_mode), status.st_nlink) == (True, 0)
        assert os.listdir(fd) == []
        os.close(fd)
        shutil.rmtree(top)
