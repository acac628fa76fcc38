"""When to tell of a branch that died or came back: once it stays so, and seldom if it goes on and off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HOLD_SECONDS = 3.0
LONGEST_HOLD_SECONDS = 300.0
_QUIET_SECONDS = 600.0  # after which a branch is trusted again


@dataclass(slots=True)
class _Known:
    told: bool
    seen: bool
    since: float
    hold: float = HOLD_SECONDS
    told_at: float = float("-inf")


class Debounce:
    """Which of some named things are up, told apart from whether they seem to be at the moment.

    A change counts once it has lasted for three seconds; each time one counts, the next of the same
    thing has to last twice as long, up to five minutes. Times are in seconds, of any one clock.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def see(self, up: Mapping[str, bool], now: float) -> None:
        """What is up at the moment. What is new is taken as it is; what is not mentioned is forgotten."""
        self._known = {name: known for name, known in self._known.items() if name in up}
        for name, state in up.items():
            known = self._known.setdefault(name, _Known(state, state, now))
            if known.seen != state:
                known.seen, known.since = state, now

    def take(self, now: float) -> dict[str, bool]:
        """The changes that count by now, each once."""
        changes: dict[str, bool] = {}
        for name, known in self._known.items():
            if known.seen == known.told or now < known.since + known.hold:
                continue
            quiet = now - known.told_at > _QUIET_SECONDS
            known.hold = min(LONGEST_HOLD_SECONDS, 2 * (HOLD_SECONDS if quiet else known.hold))
            known.told, known.told_at = known.seen, now
            changes[name] = known.seen
        return changes

    def told(self, name: str) -> bool:
        """Whether `name` is up, as far as it has been told."""
        return self._known[name].told

    def next_time(self) -> float | None:
        """When there may be something to take; None if nothing is under way."""
        times = [
            known.since + known.hold for known in self._known.values() if known.seen != known.told
        ]
        return min(times, default=None)
