"""The engine of moves, called with paths, on two folders that are on different file systems for sure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.model import SessionUser
from session_agent.moves import engine
from session_agent.moves.engine import Job, Outcome
from session_agent.moves.journal import Journal
from session_agent.moves.names import RESERVED_PREFIX
from session_agent.moves.plan import Place, Request
from session_agent.moves.record import End, encode
from session_agent.moves.recover import Finding, Found, open_below, recover, redo
from session_agent.moves.strategy import Options
from tests.support.disks import Seen, picture


@dataclass(frozen=True)
class Disks:
    """Two folders that no rename leads between."""

    source: Path
    target: Path

    @property
    def reserved(self) -> list[str]:
        """All that lies under reserved names."""
        prefix = os.fsdecode(RESERVED_PREFIX)
        return [
            str(Path(folder, name))
            for top in (self.source, self.target)
            for folder, folders, files in os.walk(top)
            for name in (*folders, *files)
            if name.startswith(prefix)
        ]

    def pictures(self) -> tuple[dict[str, Seen], dict[str, Seen]]:
        """Both sides but for the folders themselves, whose times change."""
        shown = (picture(self.source), picture(self.target))
        for one in shown:
            del one[""]
        return shown


def nothing() -> None:
    """An on_commit that does not care."""


def move(
    source: Path,
    target: Path,
    flags: int = 0,
    *,
    caller: Caller = AGENT,
    on_commit: Callable[[], None] = nothing,
    options: Options = Options(),  # noqa: B008 - frozen
) -> Outcome:
    """Rename `source` to `target`."""
    with _request(source, target, flags, caller) as request:
        return engine.move(request, lambda _: on_commit(), options)


@contextmanager
def _request(source: Path, target: Path, flags: int, caller: Caller) -> Iterator[Request]:
    with ExitStack() as stack:
        places = []
        for path in (source, target):
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, folder)
            places.append(Place(folder, os.fsencode(path.name), str(path)))
        yield Request(places[0], places[1], flags, caller)


ME = SessionUser("me", os.geteuid(), os.getegid(), tuple(os.getgroups()), "/")


@dataclass
class Recorded:
    """Moves between two disks (the branches "source" and "target") that are recorded in a journal."""

    disks: Disks
    state: Path  # the folder of the journal

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """The journal, as a new process reads it."""
        self.state.mkdir(exist_ok=True)
        folder = os.open(self.state, os.O_PATH | os.O_DIRECTORY)
        try:
            journal = Journal(folder, ME)
            try:
                yield journal
            finally:
                journal.close()
        finally:
            os.close(folder)

    def end(self, path: Path) -> End:
        """The end that a path is."""
        for branch in ("source", "target"):
            top: Path = getattr(self.disks, branch)
            if path.is_relative_to(top):
                folder = path.parent.relative_to(top).parts
                steps = "/".join(encode(os.fsencode(part)) for part in folder)
                return End(branch, steps, encode(os.fsencode(path.name)))
        raise AssertionError(path)

    def move(
        self, source: Path, target: Path, flags: int = 0, *, background: bool = False
    ) -> Outcome:
        """Rename, recorded; as a background move, but without anybody who waits for it."""
        ends = (self.end(source), self.end(target))
        options = Options(handle_rename=False)
        with self.journal() as journal, _request(source, target, flags, AGENT) as request:
            job = Job(request, options, journal=journal, ends=ends)
            if not background:
                return job.run(lambda _: None)
            job.preflight()
            job.accept()
            job.copy()
            return job.finish(lambda _: None)

    def recover(self) -> list[Finding]:
        """What a new process makes of what a killed one has left; accepted moves are done again."""

        def open_folder(end: End) -> int:
            top = os.open(getattr(self.disks, end.branch), os.O_PATH | os.O_DIRECTORY)
            try:
                return open_below(top, end.steps)
            finally:
                os.close(top)

        with self.journal() as journal:
            assert not journal.problems
            findings = recover(journal, journal.records(), open_folder, AGENT)
            for finding in findings:
                if finding.found is Found.AGAIN:
                    redo(journal, finding.record, open_folder, AGENT, Options(handle_rename=False))
            assert [one for one in journal.records() if one.live] == []
        return findings
