"""The folder that everything happens in, and the files that are read."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import BRANCH, ENVIRONMENT

WORD = "needle"  # in every seventh note
_WORDS = ("vault", "branch", "mount", "note", "folder", "rename", "session", "room", "agent")
_LONG_AGO = 1_600_000_000  # seconds since the epoch; git trusts no file as young as its index


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is. `scale` 1 is what the report is about."""

    folders: int
    notes_per_folder: int
    saved_notes: int
    new_files: int
    attachment: int  # bytes
    appends: int
    repository_files: int
    listing: int
    nodes: int

    @property
    def notes(self) -> int:
        """How many notes there are to read."""
        return self.folders * self.notes_per_folder

    @classmethod
    def scaled(cls, scale: float) -> Sizes:
        """Every count times `scale`, but never so few that a row says nothing."""

        def at_least(least: int, full: int) -> int:
            return max(least, round(full * scale))

        return cls(
            folders=at_least(2, 100),
            notes_per_folder=50,
            saved_notes=at_least(20, 1000),
            new_files=at_least(20, 1000),
            attachment=at_least(1, 256) << 20,
            appends=at_least(20, 2000),
            repository_files=at_least(20, 2000),
            listing=at_least(100, 20_000),
            nodes=at_least(500, 100_000),
        )


class Ground:
    """Paths below `path`, and what is laid there before anything is mounted.

    backing/notes is the branch. In it, `notes`, `listing` and `large` are only read;
    `own/NAME` belongs to the contender of that name.
    """

    def __init__(self, path: Path, sizes: Sizes) -> None:
        self.path = path
        self.sizes = sizes
        self.branch = path / "backing" / BRANCH
        self.note_list = path / "notes.list"
        self.saved_list = path / "saved.list"
        self.written_list = path / "written.list"

    def lay(self, contenders: list[str]) -> None:
        """Write everything."""
        (self.path / "shown").mkdir()
        (self.path / "root").mkdir()
        self.branch.mkdir(parents=True)
        chance = random.Random(1)
        self._lay_notes(chance)
        self._lay_listing()
        (self.branch / "large").mkdir()
        with (self.branch / "large/attachment.bin").open("wb") as file:
            for _ in range(self.sizes.attachment >> 20):
                file.write(chance.randbytes(1 << 20))
        repository = self.path / "repository"
        self._lay_repository(repository, chance)
        for name in contenders:
            own = self.branch / "own" / name
            self._lay_own(own)
            # With -a: git compares what stat says of a file with what its index says.
            subprocess.run(["cp", "-a", str(repository), str(own / "repository")], check=True)
        os.sync()

    def _lay_notes(self, chance: random.Random) -> None:
        names = [
            f"notes/folder{folder:03}/note{note:03}.md"
            for folder in range(self.sizes.folders)
            for note in range(self.sizes.notes_per_folder)
        ]
        for index, name in enumerate(names):
            path = self.branch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_note(index % 7 == 0, chance), encoding="utf-8")
        _write_list(self.note_list, names)

    def _lay_listing(self) -> None:
        folder = self.branch / "listing"
        folder.mkdir()
        for index in range(self.sizes.listing):
            (folder / f"entry{index:06}.md").touch()

    def lay_nodes(self) -> None:
        """As many empty files as `nodes` says, in folders of 10,000: for the memory they cost."""
        for index in range(self.sizes.nodes):
            folder = self.branch / f"many/{index // 10_000:03}"
            if index % 10_000 == 0:
                folder.mkdir(parents=True)
            (folder / f"{index:06}.md").touch()

    def _lay_own(self, own: Path) -> None:
        saved = [f"saved/note{index:04}.md" for index in range(self.sizes.saved_notes)]
        written = [f"written/note{index:04}.md" for index in range(self.sizes.saved_notes // 10)]
        for name in [*saved, *written, "journal.md"]:
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            (own / name).touch()
        _write_list(self.saved_list, saved)
        _write_list(self.written_list, written)

    def _lay_repository(self, folder: Path, chance: random.Random) -> None:
        for index in range(self.sizes.repository_files):
            path = folder / f"part{index // 40:03}/file{index:05}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_note(False, chance), encoding="utf-8")
            os.utime(path, (_LONG_AGO, _LONG_AGO))
        if shutil.which("git") is None:
            return
        for command in ("init -q", "add .", "commit -q -m bench", "gc -q"):
            subprocess.run(
                ["git", "-C", str(folder), *command.split()], check=True, env=ENVIRONMENT
            )
        (folder / "part000/file00000.md").write_text("changed\n", encoding="utf-8")
        (folder / "new.md").write_text("new\n", encoding="utf-8")


def _write_list(path: Path, names: list[str]) -> None:
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _note(with_word: bool, chance: random.Random) -> str:
    """Markdown of about 0.5 to 8 KiB."""
    lines = ["# A note", ""]
    for _ in range(chance.randrange(8, 120)):
        lines.append(" ".join(chance.choices(_WORDS, k=10)))
    if with_word:
        lines.insert(chance.randrange(2, len(lines)), f"the {WORD}")
    return "\n".join(lines) + "\n"
