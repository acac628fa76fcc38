"""The workloads: what is prepared, what is timed, and how its result is known to be right."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import NATIVE, Contender
from bench.failure import Failure
from bench.ground import WORD, Ground

_TIME_LIMIT = 30.0  # seconds for one workload, and for one preparation
_NOTE = 2048  # bytes of a note that is written
_APPEND = 4096  # bytes
_WRITES = 20  # to each file, each followed by a stat
_LATER = 2.0  # seconds in which what is kept for one second has run out


@dataclass(frozen=True, slots=True)
class Seen:
    """What a workload read or left: two that did the same work have the same."""

    count: int
    bytes: int = 0
    checksum: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a workload took, and what it saw."""

    seconds: float
    seen: Seen


class Place:
    """One contender's side of the ground. Paths are given from the branch on.

    `own` is the folder that only this contender writes to.
    """

    def __init__(self, contender: Contender, ground: Ground, driver: Path) -> None:
        self.contender = contender
        self.ground = ground
        self.sizes = ground.sizes
        self.own = f"own/{contender.name}"
        self._driver = driver
        self._native = Contender(NATIVE, ground.branch)

    def drive(self, workload: str, path: str, *arguments: object) -> Outcome:
        """Run a workload of driver.c through the contender. Failure if one of its calls fails."""
        return self._drive(self.contender, workload, path, arguments)

    def natively(self, workload: str, path: str, *arguments: object) -> Seen:
        """What the same shows in the backing directory."""
        return self._drive(self._native, workload, path, arguments).seen

    def _drive(
        self, contender: Contender, workload: str, path: str, arguments: tuple[object, ...]
    ) -> Outcome:
        where = str(contender.folder / path) if path else str(contender.folder)
        command = [str(self._driver), workload, where, *map(str, arguments)]
        nanoseconds, *seen = map(int, contender.run(command, _TIME_LIMIT).split())
        return Outcome(nanoseconds / 1e9, Seen(*seen))

    def shell(self, script: str) -> None:
        """A preparation by programs, in `own` as the contender shows it."""
        folder = str(self.contender.folder / self.own)
        self.contender.run(["sh", "-ec", f'cd "$1"; {script}', "sh", folder], _TIME_LIMIT)

    def program(self, *command: str) -> tuple[float, str]:
        """Seconds that a program takes, and what it prints. The start of a process is part of it."""
        started = time.perf_counter()
        output = self.contender.run(command, _TIME_LIMIT)
        return time.perf_counter() - started, output


@dataclass(frozen=True, slots=True)
class Row:
    """A workload.

    `prepare` and `tidy` are not timed. `truth` is asked after `work`, of the backing directory.
    `cold` names the folder that is read through the backing directory after the kernel's caches were dropped,
    so that only what the kernel knows of the FUSE mounts is cold; an empty one means warm.
    `later`: how many seconds lie between the end of `prepare` and `work`.
    `needs` is a program.
    """

    name: str
    title: str
    work: Callable[[Place], Outcome]
    truth: Callable[[Place], Seen]
    prepare: Callable[[Place], object] | None = None
    tidy: Callable[[Place], object] | None = None
    cold: str = ""
    later: float = 0.0
    needs: str = ""

    def why_not(self) -> str:
        """Why it cannot be run here, if so."""
        missing = self.needs and shutil.which(self.needs) is None
        return f"{self.needs} is not installed" if missing else ""


def _walk(place: Place) -> Outcome:
    return place.drive("walk", "notes")


def _read(place: Place) -> Outcome:
    return place.drive("read", "", place.ground.note_list)


def _stat(place: Place) -> Outcome:
    return place.drive("stat", "", place.ground.note_list)


def _large_read(place: Place) -> Outcome:
    return place.drive("read-file", "large/attachment.bin")


def _save(place: Place) -> Outcome:
    return place.drive("save", place.own, place.ground.saved_list, _NOTE)


def _written(place: Place) -> Seen:
    """The size of a file is what its last writer left, so there is no checksum to compare."""
    seen = place.natively("walk", f"{place.own}/written")
    return Seen(seen.count, seen.bytes)


def _empty_folder(place: Place) -> None:
    place.shell("rm -rf new; mkdir -p new/other")


def _create(place: Place) -> Outcome:
    return place.drive("create", f"{place.own}/new", place.sizes.new_files, _NOTE)


def _full_folder(place: Place) -> None:
    _empty_folder(place)
    _create(place)


def _removed(place: Place) -> Seen:
    left = place.natively("walk", f"{place.own}/new").count
    return Seen(place.sizes.new_files - left)


def _renamed(place: Place) -> Seen:
    folder = place.ground.branch / place.own / "new"
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.md")}
    wanted = {
        f"{'other/' if index % 2 else ''}renamed{index:05}.md"
        for index in range(place.sizes.new_files)
    }
    return Seen(place.sizes.new_files if there == wanted else len(there & wanted))


def _status(place: Place) -> Outcome:
    folder = str(place.contender.folder / place.own / "repository")
    seconds, output = place.program("git", "-C", folder, "status", "--porcelain")
    if sorted(output.splitlines()) != [" M part000/file00000.md", "?? new.md"]:
        raise Failure(f"git status says {output[:100]!r}")
    return Outcome(seconds, Seen(2))


def _search(place: Place) -> Outcome:
    notes = str(place.contender.folder / "notes")
    seconds, output = place.program(
        "rg", "--no-config", "--files-with-matches", "--fixed-strings", WORD, notes
    )
    return Outcome(seconds, Seen(len(output.splitlines())))


ROWS = (
    Row(
        "walk-cold",
        "walk 5,000 notes with stat, cold",
        _walk,
        lambda place: place.natively("walk", "notes"),
        cold="notes",
    ),
    Row(
        "walk-warm",
        "the same again, warm",
        _walk,
        lambda place: place.natively("walk", "notes"),
        prepare=_walk,
    ),
    Row(
        "walk-later",
        "the same again, 2 s later",
        _walk,
        lambda place: place.natively("walk", "notes"),
        prepare=_walk,
        later=_LATER,
    ),
    Row(
        "read-cold",
        "open, read, close 5,000 notes, cold",
        _read,
        lambda place: place.natively("read", "", place.ground.note_list),
        cold="notes",
    ),
    Row(
        "read-warm",
        "the same again, warm",
        _read,
        lambda place: place.natively("read", "", place.ground.note_list),
        prepare=_read,
    ),
    Row(
        "read-later",
        "the same again, 2 s later",
        _read,
        lambda place: place.natively("read", "", place.ground.note_list),
        prepare=_read,
        later=_LATER,
    ),
    Row(
        "stat-cold",
        "stat 5,000 known names, cold",
        _stat,
        lambda place: place.natively("stat", "", place.ground.note_list),
        cold="notes",
    ),
    Row(
        "stat-later",
        "the same again, 2 s later",
        _stat,
        lambda place: place.natively("stat", "", place.ground.note_list),
        prepare=_stat,
        later=_LATER,
    ),
    Row(
        "stat-after-write",
        "2,000 times: write, then stat",
        lambda place: place.drive(
            "stat-after-write", place.own, place.ground.written_list, _WRITES
        ),
        _written,
    ),
    Row(
        "save",
        "save 1,000 notes: beside, fsync, rename over",
        _save,
        lambda place: place.natively("walk-and-read", f"{place.own}/saved"),
    ),
    Row(
        "create",
        "create and write 1,000 notes",
        _create,
        lambda place: place.natively("walk-and-read", f"{place.own}/new"),
        prepare=_empty_folder,
    ),
    Row(
        "unlink",
        "unlink 1,000 notes",
        lambda place: place.drive("unlink", f"{place.own}/new", place.sizes.new_files),
        _removed,
        prepare=_full_folder,
    ),
    Row(
        "rename",
        "rename 1,000 notes, half to another folder",
        lambda place: place.drive("rename", f"{place.own}/new", place.sizes.new_files),
        _renamed,
        prepare=_full_folder,
    ),
    Row(
        "large-write",
        "write an attachment of 256 MiB",
        lambda place: place.drive(
            "write-file", f"{place.own}/attachment.bin", place.sizes.attachment
        ),
        lambda place: place.natively("read-file", f"{place.own}/attachment.bin"),
        prepare=lambda place: place.shell("rm -f attachment.bin"),
        tidy=lambda place: place.shell("rm -f attachment.bin"),
    ),
    Row(
        "large-read-cold",
        "read an attachment of 256 MiB, cold",
        _large_read,
        lambda place: place.natively("read-file", "large/attachment.bin"),
        cold="large",
    ),
    Row(
        "large-read-warm",
        "the same again, warm",
        _large_read,
        lambda place: place.natively("read-file", "large/attachment.bin"),
        prepare=_large_read,
    ),
    Row(
        "append",
        "2,000 appends of 4 KiB to one file",
        lambda place: place.drive(
            "append", f"{place.own}/journal.md", place.sizes.appends, _APPEND
        ),
        lambda place: place.natively("read-file", f"{place.own}/journal.md"),
        prepare=lambda place: place.shell(": >journal.md"),
    ),
    Row(
        "git-status",
        "git status of 2,000 files, cold",
        _status,
        lambda _: Seen(2),
        prepare=_status,  # so that the index knows the files as this contender shows them
        cold="own",
        needs="git",
    ),
    Row(
        "search",
        "ripgrep through 5,000 notes, cold",
        _search,
        lambda place: Seen(-(-place.sizes.notes // 7)),
        cold="notes",
        needs="rg",
    ),
    Row(
        "list",
        "list a folder of 20,000, cold",
        lambda place: place.drive("list", "listing"),
        lambda place: Seen(place.sizes.listing),
        cold="listing",
    ),
    Row(
        "list-stat",
        "the same with stat, cold",
        lambda place: place.drive("walk", "listing"),
        lambda place: place.natively("walk", "listing"),
        cold="listing",
    ),
)
