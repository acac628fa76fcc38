"""Changes behind the vault: when programs in it hear of them, and what a burst costs whoever else is at work.

The vault has one branch on an ext4 of its own, and a listener in another process waits for events in it.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import ENOENT
from pathlib import Path

from bench.contenders import ENVIRONMENT
from bench.failure import Failure
from bench.foreign_figures import (
    Arrival,
    Burst,
    Call,
    Felt,
    ForeignFigures,
    arrival,
    changed_counts,
    felt,
    files_heard,
)
from bench.idle import drops
from bench.listener import Listening, listening
from bench.serving import Server, image, run, served
from session_agent.overlay.inotify import CREATE, DELETE, MODIFY, MOVED_TO

_BRANCH = "notes"
_PATIENCE = 10.0  # seconds for one event
_BURST_PATIENCE = 120.0  # seconds for a checkout and all its events
_QUIET = 2.0  # seconds without an event after which there will be none
_PAUSE = (0.02, 0.06)  # seconds between single changes, so that none is announced with another
_WALKED = 100  # names in the folder that is walked
_WALK_EVERY = 20  # rounds of the other calls

_AT_FDCWD, _AT_STATX_FORCE_SYNC, _STATX_BASIC = -100, 0x2000, 0x7FF
_libc = ctypes.CDLL(None, use_errno=True)


class _Ground:
    """The branch, and `plain` beside it on the same disk: what happens there concerns no vault."""

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder = folder
        self.disk = folder / "ext4"
        self.branch = self.disk / "branch"
        self.plain = self.disk / "plain"
        self.repository = self.branch / "repository"
        self.files = max(200, round(10_000 * scale))
        self.folders = max(4, round(200 * scale))
        self.singles = max(5, round(200 * scale))
        self.idle = max(0.5, 5 * scale)  # seconds
        self.room = max(1, round(2 * scale)) << 30

    @contextmanager
    def laid(self) -> Iterator[None]:
        with ExitStack() as undo:
            image(undo, "ext4", self.disk, self.room)
            for path in (self.plain, self.branch / "other/walked", self.branch / "singles"):
                path.mkdir(parents=True)
            for number in range(_WALKED):
                (self.branch / f"other/walked/{number:03}.md").write_bytes(b"x" * number)
            (self.branch / "other/note.md").write_bytes(bytes(4096))
            self._lay_repository()
            os.sync()
            yield

    def names(self) -> list[str]:
        """The files that the branches of the repository differ in."""
        return [
            f"part{number % self.folders:03}/file{number:05}.md" for number in range(self.files)
        ]

    def _lay_repository(self) -> None:
        git = ("git", "-C", str(self.repository))
        self.repository.mkdir()
        run(*git, "init", "-q", "-b", "one")
        run(*git, "config", "gc.auto", "0")  # which would go on in the background
        for title in ("one", "two"):
            if title == "two":
                run(*git, "checkout", "-q", "-b", title)
            for name in self.names():
                path = self.repository / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"# {name} in {title}\n" * 20, encoding="ascii")
            run(*git, "add", ".")
            run(*git, "commit", "-q", "-m", title)
        run(*git, "gc", "-q")


# Single changes


def _single(kind: str, behind: Path, name: str) -> tuple[str, int]:
    """Make the change; answers the name and the event that tell of it."""
    path, renamed = behind / name, behind / f"{name}.renamed"
    if kind == "create":
        path.write_bytes(b"new")
        return name, CREATE
    if kind == "modify":
        with open(path, "ab") as file:
            file.write(b"more")
        return name, MODIFY
    if kind == "rename":
        os.rename(path, renamed)
        return renamed.name, MOVED_TO
    os.unlink(renamed)
    return renamed.name, DELETE


def _arrival_of(hearing: Listening, name: str, mask: int, since: float) -> float:
    """Seconds since then until the event was read."""
    deadline = since + _PATIENCE
    while time.monotonic() < deadline:
        for event in hearing.heard():
            if event.name == name and event.mask & mask and event.at > since:
                return event.at - since
        time.sleep(0.001)
    raise Failure(f"no event of {name} arrived")


def shows_as_behind(shown: Path, behind: Path) -> None:
    """Failure unless names, sizes and contents are the same in both folders, git's own left out."""
    seen, truth = _everything_in(shown), _everything_in(behind)
    if seen != truth:
        wrong = sorted(name for name in {*seen, *truth} if seen.get(name) != truth.get(name))
        raise Failure(f"{len(wrong)} names are not shown as they are, as {wrong[0]}")


def _everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        for name in files:
            file = Path(path, name)
            found[str(file.relative_to(folder))] = (file.stat().st_size, file.read_bytes())
    return found


def _measure_singles(ground: _Ground, server: Server) -> list[Arrival]:
    shown, behind = server.vault / _BRANCH / "singles", ground.branch / "singles"
    times: dict[str, list[float]] = {"create": [], "modify": [], "rename": [], "remove": []}
    chance = random.Random(1)
    with listening(ground.folder / "singles.log", shown) as hearing:
        for number in range(ground.singles):
            for kind, taken in times.items():
                time.sleep(chance.uniform(*_PAUSE))
                hearing.heard()
                since = time.monotonic()
                name, event = _single(kind, behind, f"note{number:03}.md")
                taken.append(_arrival_of(hearing, name, event, since))
                shows_as_behind(shown, behind)  # who hears of it looks at it
    return [arrival(kind, taken) for kind, taken in times.items()]


# A burst


class _Others:
    """What somebody else does meanwhile, in the vault and on the disk itself. Each call is timed."""

    def __init__(self, ground: _Ground, vault: Path) -> None:
        self.calls: dict[str, list[Call]] = {}
        shown = vault / _BRANCH
        # By side: the branch, and where to create. Behind the vault that would be one more foreign change.
        self._sides = {"vault": (shown, shown / "other"), "natively": (ground.branch, ground.plain)}
        self._names = ground.names()
        random.Random(1).shuffle(self._names)
        self._turn = 0

    def once(self) -> None:
        """Each call once on each side."""
        self._turn += 1
        name = self._names[self._turn % len(self._names)]
        for side, (branch, room) in self._sides.items():
            note, walked = branch / "other/note.md", branch / "other/walked"
            absent = branch / f"other/absent{self._turn}"  # no cache knows it
            self._time(f"stat, another folder, {side}", note, os.stat)
            self._time(f"stat of an unknown name, another folder, {side}", absent, _absent)
            self._time(f"open and read, another folder, {side}", note, _read)
            self._time(f"create, another folder, {side}", room / "new", _create)
            os.unlink(room / "new")
            if self._turn % _WALK_EVERY == 0:
                self._time(f"walk of {_WALKED}, another folder, {side}", walked, _walk)
            same = branch / "repository" / name
            self._time(f"stat, same tree, {side}", same, _perhaps)
            self._time(f"stat that asks, same tree, {side}", same, _asked)

    def _time(self, what: str, path: Path, call: Callable[[Path], object]) -> None:
        began = time.monotonic()
        call(path)
        self.calls.setdefault(what, []).append(Call(began, time.monotonic() - began))


def _absent(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.stat(path)
        raise Failure("a name is shown that is not there")


def _perhaps(path: Path) -> None:
    with suppress(FileNotFoundError):  # git takes a file away before it writes the other one
        os.stat(path)


def _asked(path: Path) -> None:
    """stat, whatever the kernel remembers: statx(2) with AT_STATX_FORCE_SYNC."""
    status = ctypes.create_string_buffer(256)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_FORCE_SYNC, _STATX_BASIC, status):
        number = ctypes.get_errno()
        if number != ENOENT:
            raise OSError(number, os.strerror(number), str(path))


def _read(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def _walk(path: Path) -> None:
    with os.scandir(path) as entries:
        seen = sum(entry.stat().st_size for entry in entries)
    if seen != sum(range(_WALKED)):
        raise Failure("a folder is not shown as it is while others change another one")


def _checkout(
    ground: _Ground, title: str, hearing: Listening, others: _Others | None
) -> tuple[float, float]:
    """Check the branch out behind the vault, and wait for quiet: when it began, and when git had ended."""
    command = ["git", "-C", str(ground.repository), "checkout", "-q", title]
    began = time.monotonic()
    git = subprocess.Popen(command, env=ENVIRONMENT)
    ended = 0.0
    size, quiet_since = hearing.size, began
    try:
        while not ended or time.monotonic() - quiet_since < _QUIET:
            if others is None:
                time.sleep(0.01)
            else:
                others.once()
            now = time.monotonic()
            if not ended and git.poll() is not None:
                ended = now
            if hearing.size != size or not ended:
                size, quiet_since = hearing.size, now
            if now - began > _BURST_PATIENCE:
                raise Failure("the burst does not come to an end")
    finally:
        git.kill()
        git.wait()
    if git.returncode:
        raise Failure("git has not checked the branch out")
    return began, ended


def _measure_burst(
    ground: _Ground, server: Server, hearing: Listening, branch: str, others: _Others | None
) -> tuple[Burst, list[Felt]]:
    shown = server.vault / _BRANCH / "repository"
    shows_as_behind(shown, ground.repository)  # so the kernel knows every file
    time.sleep(_QUIET)
    hearing.heard()
    until = time.monotonic() + ground.idle
    while others is not None and time.monotonic() < until:
        others.once()
    counts, before = server.counts(), server.resident()
    server.forget_most()
    began, ended = _checkout(ground, branch, hearing, others)
    most, after = server.most_resident(), server.resident()
    events = [event for event in hearing.heard() if event.name]
    if not events:
        raise Failure("no event of the checkout arrived")
    shows_as_behind(shown, ground.repository)
    last = max(event.at for event in events)
    burst = Burst(
        title="others at work" if others else "nobody else at work",
        checkout=ended - began,
        last=last - began,
        files=ground.files,
        heard=files_heard(events, ground.names()),
        events=len(events),
        before=before,
        most=most,
        after=after,
        counts=changed_counts(counts, server.counts()),
    )
    return burst, felt(others.calls, began, last) if others else []


def measure(folder: Path, scale: float, say: Callable[[str], None]) -> ForeignFigures:
    """Everything, in a file system of its own below `folder`."""
    if shutil.which("git") is None:
        raise Failure("git is not installed")
    folder.mkdir()
    ground = _Ground(folder, scale)
    dropped = drops()
    with ground.laid(), served(folder, {_BRANCH: ground.branch}) as server:
        say("bench: single changes behind the vault")
        arrivals = _measure_singles(ground, server)
        repository = server.vault / _BRANCH / "repository"
        with listening(folder / "burst.log", repository) as hearing:
            say("bench: a checkout behind the vault, while nobody else is at work")
            alone, _ = _measure_burst(ground, server, hearing, "one", None)
            say("bench: another one, while others are at work")
            others = _Others(ground, server.vault)
            beside, calls = _measure_burst(ground, server, hearing, "two", others)
    return ForeignFigures(tuple(arrivals), (alone, beside), tuple(calls), dropped != drops())
