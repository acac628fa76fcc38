"""The rounds: every contender in turn in each, so that a noisy moment hits them all alike."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.contenders import settle
from bench.failure import Failure
from bench.figures import Cell
from bench.rows import Place, Row

Results = dict[str, dict[str, Cell]]  # by row, by contender


class Measurement:
    """Samples of `rows` by `places`. A contender that fails in a row has no more rounds of that row."""

    def __init__(self, rows: Sequence[Row], places: Sequence[Place], say: Callable[[str], None]):
        self._rows = rows
        self._places = places
        self._say = say
        self.results: Results = {
            row.name: {place.contender.name: Cell(failure=row.why_not()) for place in places}
            for row in rows
        }

    def run(self, rounds: int, warm_up: bool, deadline: float) -> int:
        """Answer how many rounds counted: fewer than `rounds` if another would end after `deadline`.

        `deadline` is on the monotonic clock. The first round that counts is run in any case.
        """
        if warm_up:
            self._round(0, counts=False, note="warm-up")
        counted = 0
        longest = 0.0
        while counted < rounds:
            started = time.monotonic()
            if counted and started + longest > deadline:
                self._say(f"bench: no time for more than {counted} rounds")
                break
            self._round(counted, counts=True, note=f"round {counted + 1} of {rounds}")
            counted += 1
            longest = max(longest, time.monotonic() - started)
        return counted

    def _round(self, number: int, *, counts: bool, note: str) -> None:
        started = time.monotonic()
        for index, row in enumerate(self._rows):
            first = (number + index) % len(self._places)
            turn = [*self._places[first:], *self._places[:first]]
            turn = [p for p in turn if not self.results[row.name][p.contender.name].failure]
            if turn:
                self._row(row, turn, counts)
        self._say(f"bench: {note}: {time.monotonic() - started:.0f} s")

    def _row(self, row: Row, turn: list[Place], counts: bool) -> None:
        write_back(turn[0])  # nobody pays for what another wrote
        due: dict[Place, float] = {}
        if row.cold or row.later:
            for place in turn:
                self._attempt(row, place, lambda place: row.prepare and row.prepare(place))
                due[place] = time.monotonic() + row.later
        if row.cold:
            make_cold(self._places)
            turn[0].natively("walk-and-read", row.cold)
        for place in turn:
            if not self.results[row.name][place.contender.name].failure:
                time.sleep(max(0.0, due.get(place, 0.0) - time.monotonic()))
                self._attempt(row, place, lambda place: self._sample(row, place, counts))

    def _attempt(self, row: Row, place: Place, step: Callable[[Place], object]) -> None:
        try:
            step(place)
        except Failure as failure:
            self._say(f"bench: {place.contender.name} failed in {row.name}: {failure}")
            self.results[row.name][place.contender.name].failure = str(failure)
            place.contender.stop()
            try:
                place.contender.start()
            except Failure as again:  # the rows to come will fail, and say so
                self._say(f"bench: {place.contender.name} does not start again: {again}")

    def _sample(self, row: Row, place: Place, counts: bool) -> None:
        if row.prepare and not (row.cold or row.later):
            row.prepare(place)
        before = place.contender.cpu_seconds()
        outcome = row.work(place)
        settle([place.contender])
        cpu = place.contender.cpu_seconds() - before
        truth = row.truth(place)
        if outcome.seen != truth:
            raise Failure(f"wrong result: {outcome.seen} instead of {truth}")
        if row.tidy:
            row.tidy(place)
        if counts:
            cell = self.results[row.name][place.contender.name]
            cell.seconds.append(outcome.seconds)
            cell.cpu.append(cpu)


def write_back(place: Place) -> None:
    """Leave nothing dirty in the backing file system."""
    subprocess.run(["sync", "--file-system", str(place.ground.path)], check=True)


def make_cold(places: Sequence[Place]) -> None:
    """Make the kernel forget every name, attribute and page (proc_sys_vm(5)), and the servers too."""
    Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")
    settle([place.contender for place in places], quiet=0.1)
