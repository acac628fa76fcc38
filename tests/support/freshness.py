"""How old is what somebody sees, when somebody else changes it all the time?

Who changes things notes what was true from when on; who looks notes what it saw, and when. The clock is the
machine's, the same for every process.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from itertools import pairwise
from typing import NamedTuple

Key = tuple[str, str]
"""A name, and what of it: its content, its size ..."""


class Noted(NamedTuple):
    """Of a change: true at `end` for sure, perhaps since `start`. Of a look: seen between the two."""

    key: Key
    value: Hashable
    start: float
    end: float


class Notes(list[Noted]):
    """What one process has changed, or seen."""

    def change(self, step: Callable[[], object], facts: Callable[[], dict[Key, Hashable]]) -> None:
        """Make a step, after which the facts are what they are."""
        start = time.monotonic()
        step()
        found = facts()
        end = time.monotonic()
        self.extend(Noted(key, value, start, end) for key, value in found.items())

    def look(self, key: Key, answer: Callable[[], Hashable]) -> None:
        """See what the answer is."""
        start = time.monotonic()
        value = answer()
        self.append(Noted(key, value, start, time.monotonic()))

    def longest_pause(self) -> float:
        """Between two looks, and within one: for so long the process was not at work."""
        ends = sorted(note.end for note in self)
        within = max(note.end - note.start for note in self)
        return max(within, *(after - before for before, after in pairwise(ends)))


class Judgement(NamedTuple):
    """`never`: what was seen and was not true at any time until then.

    `ages`: for how many seconds, at most, what was seen had not been true any more; by key.
    """

    never: list[Noted]
    ages: dict[Key, float]

    def older_than(self, bound: float) -> dict[Key, float]:
        return {key: age for key, age in self.ages.items() if age > bound}


def judge(changes: Iterable[Noted], seen: Iterable[Noted]) -> Judgement:
    """What is to be said of what was seen."""
    by_key: dict[Key, list[Noted]] = defaultdict(list)
    for change in changes:
        by_key[change.key].append(change)
    true: dict[tuple[Key, Hashable], list[tuple[float, float]]] = defaultdict(list)
    for key, notes in by_key.items():
        notes.sort(key=lambda note: note.end)
        ends = [note.end for note in notes[1:]] + [float("inf")]
        for note, end in zip(notes, ends, strict=True):
            true[key, note.value].append((note.start, end))
    never: list[Noted] = []
    ages: dict[Key, float] = defaultdict(float)
    for look in seen:
        until = [end for start, end in true[look.key, look.value] if start <= look.end]
        if not until:
            never.append(look)
        else:
            ages[look.key] = max(ages[look.key], look.start - max(until))
    return Judgement(never, ages)
