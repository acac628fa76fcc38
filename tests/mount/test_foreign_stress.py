"""The same names, changed behind the vault and in it at the very same time, by several processes each.

No call is compared with another one's, since nobody knows which came first. But whatever came first, a
plain folder has only a few errors to give for each call, and none at all for what nobody else touches; and
in the end everybody sees the same.

One error more there is: the kernel looks a second time at a name that has become another file's between its
look and its call, and not a third time (ESTALE). Here that happens, with names that change every millisecond.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from errno import EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, ESTALE
from functools import partial
from pathlib import Path

import pytest

from tests.support.at_once import at_once
from tests.support.listening import Listener, last_words, listening, until
from tests.support.vault import Storage, Vault, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

SECONDS, LONG_SECONDS = 1.5, 5.0  # of a round
ROUNDS, LONG_ROUNDS = 2, 12

# What lies at NAMES is a file, an empty folder or a link to nowhere; at FOLDERS is a folder with NAMES in it.
# So no way through them meets a file or a link, and no folder can be moved into itself.
NAMES = ("a", "b", "c")
FOLDERS = ("p", "q")
KEPT = "kept"  # a folder that always is there, with NAMES in it
CARRIED = ("r", "s")  # a folder that is renamed from the one to the other, behind the vault alone
REPLACED = "replaced"  # a file that is replaced behind the vault alone
RECORD = 64

Tally = Counter[tuple[str, str]]
"""How often each call ended in what."""


def new(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def append(path: Path) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(b"%-63d\n" % os.getpid())


def overwrite(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(b"%-63d\n" % os.getpid())


NAME_CALLS: dict[str, tuple[Callable[[Path], object], set[int]]] = {
    "new": (new, {EEXIST}),
    "append": (append, {EISDIR}),
    "overwrite": (overwrite, {EISDIR}),
    "empty": (lambda path: os.truncate(path, 0), {EISDIR}),
    "read": (Path.read_bytes, {EISDIR}),
    "look": (os.lstat, set()),
    "mkdir": (os.mkdir, {EEXIST}),
    "rmdir": (os.rmdir, {ENOTDIR}),
    "unlink": (os.unlink, {EISDIR}),
    "symlink": (partial(os.symlink, "nowhere/at/all"), {EEXIST}),
    "chmod": (lambda path: os.chmod(path, 0o750), set()),
}
FOLDER_CALLS: dict[str, tuple[Callable[[Path], object], set[int]]] = {
    "mkdir folder": (os.mkdir, {EEXIST}),
    "rmdir folder": (os.rmdir, {ENOTEMPTY}),
    "list folder": (os.listdir, set()),
}


def shared(top: Path, seed: int, seconds: float) -> Tally:
    """Work on what others work on, too. What each call ended in; those that a plain folder cannot give."""
    chance = random.Random(seed)
    tally: Tally = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        verb, step, allowed = a_call(top, chance)
        try:
            step()
            tally[verb, "done"] += 1
        except OSError as failure:
            number = failure.errno or 0
            told = errno.errorcode.get(number, repr(failure))
            fine = number in allowed | {ENOENT, ESTALE}
            tally[verb, told if fine else f"not {told}"] += 1
    return tally


def a_call(top: Path, chance: random.Random) -> tuple[str, Callable[[], object], set[int]]:
    def a_name() -> Path:
        return top / chance.choice(("", KEPT, *FOLDERS)) / chance.choice(NAMES)

    def a_folder() -> Path:
        return top / chance.choice(FOLDERS)

    kind = chance.randrange(20)
    if kind < 4:
        verb = chance.choice(list(FOLDER_CALLS))
        call, allowed = FOLDER_CALLS[verb]
        return verb, partial(call, a_folder()), allowed
    if kind < 6:  # a file system may say EEXIST where others say ENOTEMPTY
        return (
            "rename folder",
            partial(os.rename, a_folder(), a_folder()),
            {ENOTEMPTY, EEXIST},
        )
    if kind < 9:
        return "rename", partial(os.rename, a_name(), a_name()), {EISDIR, ENOTDIR}
    verb = chance.choice(list(NAME_CALLS))
    call, allowed = NAME_CALLS[verb]
    return verb, partial(call, a_name()), allowed


def own(place: Path, seed: int, seconds: float) -> Tally:
    """Work on names of one's own, in folders that others work in: no call fails, no byte is lost."""
    mine, other = place / f"own-{seed}", place / f"other-{seed}"
    end = time.monotonic() + seconds
    turns = 0
    while time.monotonic() < end:
        written = b""
        with open(mine, "xb", buffering=0) as file:
            for number in range(5):
                record = b"%-63d\n" % (turns + number)
                file.write(record)
                written += record
                with open(mine, "ab", buffering=0) as again:
                    again.write(record)
                    file.seek(0, os.SEEK_END)
                    written += record
                assert mine.read_bytes() == written
                assert os.stat(mine).st_size == os.fstat(file.fileno()).st_size == len(written)
            os.rename(mine, other)
            assert not os.path.lexists(mine)
            os.mkdir(mine)
            os.symlink("x", mine / "link")
            file.write(b"the end")
        assert other.read_bytes() == written + b"the end"
        assert os.listdir(mine) == ["link"]
        os.unlink(mine / "link")
        os.rmdir(mine)
        os.unlink(other)
        turns += 1
    return Counter({("own", "done"): turns})


def carried(folder: int, seed: int, seconds: float) -> Tally:
    """As `own`, in a folder that is renamed all the time and therefore known by its descriptor alone."""
    name = f"carried-{seed}"
    end = time.monotonic() + seconds
    turns = 0
    while time.monotonic() < end:
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, dir_fd=folder)
        os.write(fd, b"%d" % turns)
        assert os.stat(name, dir_fd=folder).st_size == len(f"{turns}")
        os.rename(name, name + "x", src_dir_fd=folder, dst_dir_fd=folder)
        assert name + "x" in os.listdir(folder)
        os.mkdir(name, dir_fd=folder)
        os.rmdir(name, dir_fd=folder)
        os.unlink(name + "x", dir_fd=folder)
        assert os.pread(fd, 20, 0) == b"%d" % turns
        os.close(fd)
        turns += 1
    return Counter({("carried", "done"): turns})


def version(number: int) -> bytes:
    """What `carry` writes; no other worker writes anything like it."""
    return b"v%-62d\n" % number * (1 + number % 50)


def carry(top: Path, seconds: float) -> Tally:
    """Rename the folder that is to be carried, and replace the file that is to be replaced."""
    end = time.monotonic() + seconds
    turns = 0
    while time.monotonic() < end:
        os.rename(top / CARRIED[turns % 2], top / CARRIED[1 - turns % 2])
        (top / "beside").write_bytes(version(turns))
        os.rename(top / "beside", top / REPLACED)
        turns += 1
        time.sleep(0.0005)
    if turns % 2:
        os.rename(top / CARRIED[1], top / CARRIED[0])
    return Counter({("carry", "done"): turns})


def watch_replaced(top: Path, seconds: float) -> Tally:
    """What is replaced always is there, and always is one of the versions, whole."""
    end = time.monotonic() + seconds
    turns = 0
    while time.monotonic() < end:
        try:
            data = (top / REPLACED).read_bytes()
        except OSError as failure:
            if failure.errno != ESTALE:
                raise
            continue
        number = int(data[1:RECORD] or b"0")
        assert data == version(number), (len(data), data[:RECORD], data[-RECORD:])
        turns += 1
    return Counter({("replaced", "done"): turns})


def tree(top: Path) -> dict[str, object]:
    """All that is shown below, as a program may compare it."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            times = status.st_mtime_ns, status.st_ctime_ns
            found[str(path.relative_to(top))] = (status.st_mode, links, size, times, content)
    return found


def misled(top: Path, listener: Listener) -> list[str]:
    """The names of which who listens has heard last that they are there, and they are not, or the reverse."""
    words = last_words(listener.events())
    return [name for name, there in words.items() if there != os.path.lexists(top / name)]


@pytest.fixture(scope="module", params=[1.0, 0.0], ids=["kept", "asked"])
def served(place: Storage, request: pytest.FixtureRequest) -> Iterator[Vault]:
    """The kernel keeps what it was told, or asks each time."""
    with serve(place, cache_seconds=request.param) as vault:
        yield vault


@pytest.mark.timeout(400)
@pytest.mark.parametrize("branch", ["alpha", "gamma", "delta"], ids=["ext4", "xfs", "tmpfs"])
def test_at_the_same_time(vault: Vault, branch: str, pytestconfig: pytest.Config) -> None:
    long = pytestconfig.getoption("--long")
    behind = vault.backing(branch) / "stress"
    behind.mkdir()
    until((vault.path / branch / "stress").is_dir, True)
    try:
        done: Tally = Counter()
        for turn in range(LONG_ROUNDS if long else ROUNDS):
            done += a_round(vault, branch, turn, LONG_SECONDS if long else SECONDS)
        assert done["shared", "done"] > 10
        assert done["own", "done"] > 1
    finally:
        shutil.rmtree(behind)


def a_round(vault: Vault, branch: str, turn: int, seconds: float) -> Tally:
    """How many calls of programs in the vault were carried out."""
    behind = vault.backing(branch) / "stress" / f"{turn}"
    shown = vault.path / branch / "stress" / f"{turn}"
    for name in ("", KEPT, CARRIED[0]):
        (behind / name).mkdir()
    (behind / REPLACED).write_bytes(version(0))
    until((shown / REPLACED).exists, True)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listening(top)) for top in (shown, shown / KEPT)]
        folder = os.open(shown / CARRIED[0], os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, folder)
        workers = [
            *(partial(shared, shown, 10 * turn + seed, seconds) for seed in range(2)),
            *(partial(shared, behind, 10 * turn + seed, seconds) for seed in range(2, 4)),
            partial(own, shown, 1, seconds),
            partial(own, shown / KEPT, 2, seconds),
            partial(carried, folder, 1, seconds),
            partial(carry, behind, seconds),
            partial(watch_replaced, shown, seconds),
        ]
        tallies = at_once(seconds, workers, lambda: [one.events() for one in listeners])
        wrong = [
            {key: count for key, count in tally.items() if key[1].startswith("not ")}
            for tally in tallies
        ]
        assert not any(wrong), wrong
        until(lambda: tree(shown), tree(behind))
        for name in (*NAMES, *FOLDERS, *CARRIED):  # who looks by name alone
            until(partial(os.path.lexists, shown / name), os.path.lexists(behind / name))
        for listener, top in zip(listeners, (behind, behind / KEPT), strict=True):
            until(partial(misled, top, listener), [])
    done = sum(count for tally in tallies[:2] for key, count in tally.items() if "done" in key)
    return tallies[4] + tallies[5] + Counter({("shared", "done"): done})
