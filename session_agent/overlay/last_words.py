"""What programs have heard last of the names that others change, so that it is true in the end.

While programs in the vault and others behind it change a name at the same time, some events cannot be told
apart, and some announcements come too late to be made. So what programs hear last of a name is kept, as the
requests show it: the kernel tells of a name in the order in which they are answered, since it has the folder
locked until then. Once others have left a name alone for a moment, it is compared with what is there
(`Telling`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import trio

from session_agent.overlay.nodes import Place

_QUIET = 0.1  # seconds after others' last change of a name


@dataclass(slots=True)
class Word:
    """`there`: whether the last that programs have heard is that something is there; None: unknown.

    `was_folder`: what it was, if it has gone. `told_again`: how often they were told otherwise.
    """

    there: bool | None
    was_folder: bool = False
    told_again: int = 0
    due: float = 0.0  # by trio's clock


class LastWords:
    """The names of a branch that others have changed a moment ago."""

    LIMIT = 5_000

    def __init__(self) -> None:
        self._words: OrderedDict[Place, Word] = OrderedDict()  # in the order in which they are due
        self._heard: dict[Place, bool] = {}  # since inotify's queue was read to its end

    def changed(self, place: Place, before: bool | None, was_folder: bool = False) -> None:
        """Others have changed what is at the name. `before`: whether something was there, if that is known.

        Of one of two events of a kind it is not known whether it is the vault's own: what programs have heard
        is.
        """
        word = self._words.pop(place, None) or Word(self._heard.get(place, before))
        word.was_folder = was_folder
        self.wait(place, word)
        if len(self._words) > self.LIMIT:
            self._words.popitem(last=False)

    def wait(self, place: Place, word: Word) -> None:
        """Let it be due after some time."""
        word.due = trio.current_time() + _QUIET
        self._words[place] = word

    def heard(self, place: Place, there: bool) -> None:
        """Programs are told just now that something has come to that name, or that it has gone."""
        self._heard[place] = there
        if (word := self._words.get(place)) is not None:
            word.there = there

    def all_read(self) -> None:
        """All that others have changed until now is known."""
        self._heard.clear()

    def first_due(self) -> float:
        """When the first one is due; never if there is none."""
        return next(iter(self._words.values())).due if self._words else math.inf

    def due(self, count: int) -> list[Place]:
        """The first ones that are due."""
        now = trio.current_time()
        first = zip(self._words.items(), range(count), strict=False)
        return [place for (place, word), _ in first if word.due <= now]

    def pop(self, place: Place) -> Word:
        """Keep it no longer."""
        return self._words.pop(place)
