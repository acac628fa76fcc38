"""Moves between branches, beside the programs that copy and delete; and what others feel meanwhile.

Every mover leaves the target durable: `mv`, rsync and shutil.move are followed by `sync -f` of the target.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.failure import Failure
from bench.serving import image, run, served

_ROUNDS = 3
_PAIRS = {
    "two mounts of one ext4": ("ext4a", "ext4b"),
    "ext4 to xfs": ("ext4a", "xfs"),
    "ext4 to tmpfs": ("ext4a", "tmpfs"),
    "tmpfs to ext4": ("tmpfs", "ext4a"),
}


@dataclass(frozen=True, slots=True)
class Moved:
    """Medians of one kind of move, in seconds: until the target is durable, and until the source is gone."""

    what: str
    where: str
    mover: str
    durable: float
    done: float


@dataclass(frozen=True, slots=True)
class Felt:
    """Milliseconds: the median of a call that accepts a move, and the 99th percentile of others' calls."""

    what: str
    idle: float
    meanwhile: float


@dataclass(frozen=True, slots=True)
class MoveFigures:
    """All of it."""

    moved: tuple[Moved, ...]
    accepted: dict[str, float]
    felt: tuple[Felt, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


class _Ground:
    """File systems of their own, so that nothing else is on them."""

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder = folder
        self.large = max(8, round(1024 * scale)) << 20
        self.notes = (max(4, round(100 * scale)), 50)
        self.branches = {name: folder / name for name in ("ext4a", "ext4b", "xfs", "tmpfs")}

    @contextmanager
    def laid(self) -> Iterator[None]:
        with ExitStack() as undo:
            room = max(1 << 30, 5 * self.large)
            whole = self.folder / "ext4"
            image(undo, "ext4", whole, room)
            image(undo, "xfs", self.branches["xfs"], room)
            self.branches["tmpfs"].mkdir()
            run("mount", "-t", "tmpfs", "-o", f"size={room}", "bench", str(self.branches["tmpfs"]))
            undo.callback(run, "umount", str(self.branches["tmpfs"]))
            for name in ("ext4a", "ext4b"):
                (whole / name).mkdir()
                self.branches[name].mkdir()
                run("mount", "--bind", str(whole / name), str(self.branches[name]))
                undo.callback(run, "umount", str(self.branches[name]))
            yield

    def make(self, what: str, path: Path, size: int = 0) -> None:
        """A file or a folder of notes, durably."""
        if what == "file":
            block = os.urandom(1 << 20)
            with open(path, "wb") as file:
                for _ in range((size or self.large) >> 20):
                    file.write(block)
        else:
            folders, notes = (size // 50, 50) if size else self.notes
            for folder in range(folders):
                (path / f"{folder}").mkdir(parents=True)
                for note in range(notes):
                    (path / f"{folder}/{note}.md").write_bytes(b"%6d" % note * 683)
        os.sync()


@contextmanager
def _served(ground: _Ground, *, handle: bool) -> Iterator[Path]:
    """The vault over all branches."""
    options = ["--by-handle"] if handle else []
    with served(ground.folder, ground.branches, *options) as server:
        yield server.vault


def _gone(*paths: Path) -> bool:
    return not any(os.path.lexists(path) for path in paths)


def _by_vault(vault: Path, ground: _Ground, source: str, target: str) -> tuple[float, float]:
    old, new = vault / source / "moved", vault / target / "moved"
    started = time.perf_counter()
    os.rename(old, new)
    folder = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)  # returns when the bytes are on the target
    os.close(folder)
    durable = time.perf_counter() - started
    while not _gone(ground.branches[source] / "moved"):
        time.sleep(0.001)
    return durable, time.perf_counter() - started


def _by_program(
    ground: _Ground, source: str, target: str, move: Callable[[str, str], None]
) -> tuple[float, float]:
    old, new = (str(ground.branches[name] / "moved") for name in (source, target))
    started = time.perf_counter()
    move(old, new)
    run("sync", "-f", new)
    taken = time.perf_counter() - started
    return taken, taken


def _rsync(old: str, new: str) -> None:
    slash = "/" if os.path.isdir(old) else ""
    run("rsync", "-a", "--remove-source-files", old + slash, new + slash)
    if slash:
        run("find", old, "-depth", "-type", "d", "-empty", "-delete")


def _shutil(old: str, new: str) -> None:
    shutil.move(old, new)


_PROGRAMS: dict[str, Callable[[str, str], None]] = {
    "mv + sync": lambda old, new: run("mv", old, new),
    "rsync + sync": _rsync,
    "shutil.move + sync": _shutil,
}


def _measure_moves(ground: _Ground, say: Callable[[str], None], rounds: int) -> list[Moved]:
    found = []
    for where, (source, target) in _PAIRS.items():
        for what in ("file", "notes"):
            movers = ["vault", *_PROGRAMS]
            if source[:-1] == target[:-1]:
                movers.append("vault, by handle")
            times: dict[str, list[tuple[float, float]]] = {mover: [] for mover in movers}
            for number in range(rounds + 1):
                for mover in movers[number % len(movers) :] + movers[: number % len(movers)]:
                    taken = _one_move(ground, mover, what, source, target)
                    if number:  # the first round warms up
                        times[mover].append(taken)
            for mover, taken_times in times.items():
                durable, done = (statistics.median(one) for one in zip(*taken_times, strict=True))
                found.append(Moved(what, where, mover, durable, done))
            say(f"bench: moved {what}, {where}")
    return found


def _one_move(
    ground: _Ground, mover: str, what: str, source: str, target: str
) -> tuple[float, float]:
    ground.make(what, ground.branches[source] / "moved")
    new = ground.branches[target] / "moved"
    if mover in _PROGRAMS:
        taken = _by_program(ground, source, target, _PROGRAMS[mover])
    else:
        with _served(ground, handle=mover != "vault") as vault:
            os.listdir(vault / source)
            taken = _by_vault(vault, ground, source, target)
    if what == "file":
        if new.stat().st_size != ground.large:
            raise Failure(f"{mover} has not moved the file")
        new.unlink()
    else:
        if sum(len(files) for _, _, files in os.walk(new)) != ground.notes[0] * ground.notes[1]:
            raise Failure(f"{mover} has not moved the notes")
        shutil.rmtree(new)
    os.sync()
    return taken


class _Probe:
    """Calls that others make, timed one by one."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders
        self.times: dict[str, list[float]] = {}
        for folder in folders.values():
            (folder / "probe").write_bytes(bytes(4096))

    def once(self) -> None:
        """Each call once in each folder."""
        for where, folder in self._folders.items():
            self._time(f"stat, {where}", lambda f=folder: os.stat(f / "probe"))  # type: ignore[misc]
            self._time(f"create, {where}", lambda f=folder: (f / "new").touch())  # type: ignore[misc]
            os.unlink(folder / "new")
            fd = os.open(folder / "probe", os.O_RDWR)
            self._time(f"read, {where}", lambda f=fd: os.pread(f, 4096, 0))  # type: ignore[misc]
            self._time(f"write, {where}", lambda f=fd: os.pwrite(f, bytes(4096), 0))  # type: ignore[misc]
            os.close(fd)

    def _time(self, what: str, call: Callable[[], object]) -> None:
        started = time.perf_counter()
        call()
        self.times.setdefault(what, []).append(1000 * (time.perf_counter() - started))

    def percentiles(self) -> dict[str, float]:
        """The 99th of each, and an empty start for the next."""
        found = {
            what: statistics.quantiles(times, n=100)[98]
            for what, times in self.times.items()
            if len(times) > 1
        }
        self.times = {}
        return found


def _measure_latency(
    ground: _Ground, scale: float, say: Callable[[str], None], rounds: int
) -> tuple[dict[str, float], list[Felt]]:
    accepted: dict[str, float] = {}
    felt: list[Felt] = []
    sizes = {"file": max(32, round(2048 * scale)) << 20, "notes": max(500, round(20_000 * scale))}
    source, target = "ext4a", "xfs"
    with _served(ground, handle=False) as vault:
        for what, size in sizes.items():
            times = []
            probe = _Probe(
                {"source": vault / source, "target": vault / target, "elsewhere": vault / "tmpfs"}
            )
            until = time.monotonic() + 2
            while time.monotonic() < until:
                probe.once()
            idle = probe.percentiles()
            for _ in range(rounds):
                ground.make(what, ground.branches[source] / "moved", size)
                os.listdir(vault / source)
                started = time.perf_counter()
                os.rename(vault / source / "moved", vault / target / "moved")
                times.append(1000 * (time.perf_counter() - started))
                while not _gone(ground.branches[source] / "moved"):
                    probe.once()
                new = ground.branches[target] / "moved"
                shutil.rmtree(new) if new.is_dir() else new.unlink()
            meanwhile = probe.percentiles()
            accepted[what] = statistics.median(times)
            felt += [
                Felt(f"{call}, while {what} moves", idle[call], meanwhile[call]) for call in idle
            ]
            say(f"bench: what others feel while {what} moves")
    return accepted, felt


def measure(
    folder: Path, scale: float, say: Callable[[str], None], rounds: int = _ROUNDS
) -> MoveFigures:
    """Everything, in file systems of its own below `folder`."""
    folder.mkdir()
    ground = _Ground(folder, scale)
    with ground.laid():
        moved = _measure_moves(ground, say, rounds)
        accepted, felt = _measure_latency(ground, scale, say, rounds)
    return MoveFigures(tuple(moved), accepted, tuple(felt))


def as_text(figures: MoveFigures) -> str:
    """Two tables in Markdown."""
    lines = [
        "| moved | between | by | durable, s | done, s | of mv: durable | done |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    base = {(m.what, m.where): m.durable for m in figures.moved if m.mover == "mv + sync"}
    for one in figures.moved:
        mv = base[one.what, one.where]
        lines.append(
            f"| {one.what} | {one.where} | {one.mover} | {one.durable:.3f} | {one.done:.3f}"
            f" | {one.durable / mv:.2f} | {one.done / mv:.2f} |"
        )
    lines += ["", "The rename itself, where the move is done in the background:", ""]
    lines += [f"- {what}: {taken:.1f} ms" for what, taken in figures.accepted.items()]
    lines += [
        "",
        "| call, 99th percentile | idle, ms | meanwhile, ms | ratio |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {one.what} | {one.idle:.2f} | {one.meanwhile:.2f} | {one.meanwhile / one.idle:.1f} |"
        for one in figures.felt
    ]
    return "\n".join(lines)
