"""What was measured of changes behind the vault: the arithmetic and the text. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.figures import percentile99
from bench.listener import Heard

# Counts that say how many there are, not how many there were.
_LEVELS = ("watched", "unwatched", "polled")


@dataclass(frozen=True, slots=True)
class Arrival:
    """Milliseconds from just before a change until the listener had read its event."""

    what: str
    times: int
    median: float
    p99: float


@dataclass(frozen=True, slots=True)
class Burst:
    """A checkout. Seconds from its start: until git had ended, and until the last event was read.

    `events` of `heard` files arrived. Memory is what the server had resident, in KiB. `counts`: what
    ForeignCounts came to; `watched` is how many there were in the end.
    """

    title: str
    checkout: float
    last: float
    files: int
    heard: int
    events: int
    before: int
    most: int
    after: int
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Delay:
    """What some calls took, in milliseconds."""

    times: int
    median: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Felt:
    """A call of somebody else's, before the burst and during it."""

    call: str
    idle: Delay
    meanwhile: Delay

    @property
    def ratio(self) -> float:
        """How many times idle the 99th percentile is."""
        return self.meanwhile.p99 / self.idle.p99


@dataclass(frozen=True, slots=True)
class ForeignFigures:
    """All of it. `disturbed`: somebody dropped the kernel's caches, so it forgot files."""

    arrivals: tuple[Arrival, ...]
    bursts: tuple[Burst, ...]
    felt: tuple[Felt, ...]
    disturbed: bool = False

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Call:
    """When it began, and how long it took: seconds."""

    began: float
    took: float


def arrival(what: str, seconds: Sequence[float]) -> Arrival:
    """The figures of one kind of change."""
    milliseconds = [1000 * one for one in seconds]
    median = statistics.median(milliseconds)
    return Arrival(what, len(seconds), median, percentile99(milliseconds))


def felt(calls: Mapping[str, Sequence[Call]], began: float, ended: float) -> list[Felt]:
    """Of calls that began before the burst, and of those that did so from then until its last event."""
    found = []
    for what, some in calls.items():
        idle = [call.took for call in some if call.began < began]
        meanwhile = [call.took for call in some if began <= call.began <= ended]
        if idle and meanwhile:
            found.append(Felt(what, _delay(idle), _delay(meanwhile)))
    return found


def _delay(seconds: Sequence[float]) -> Delay:
    milliseconds = [1000 * one for one in seconds]
    return Delay(
        len(milliseconds),
        statistics.median(milliseconds),
        percentile99(milliseconds),
        max(milliseconds),
    )


def changed_counts(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What was counted between the two."""
    return {
        name: count if name in _LEVELS else count - before.get(name, 0)
        for name, count in after.items()
    }


def files_heard(events: Sequence[Heard], names: Sequence[str]) -> int:
    """How many of these files there was any event of."""
    return len({f"{event.folder}/{event.name}" for event in events} & set(names))


def as_text(figures: ForeignFigures) -> str:
    """Three tables in Markdown."""
    lines = ["| a change behind the vault | times | median, ms | 99th percentile, ms |"]
    lines += ["|---|--:|--:|--:|"]
    lines += [
        f"| {one.what} | {one.times} | {one.median:.1f} | {one.p99:.1f} |"
        for one in figures.arrivals
    ]
    lines += [
        "",
        f"A checkout that changes {figures.bursts[0].files} files behind the vault:",
        "",
        "| | git, s | last event, s | events | of files | MiB before | at most | after |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for burst in figures.bursts:
        memory = [f"{kib / 1024:.1f}" for kib in (burst.before, burst.most, burst.after)]
        lines.append(
            f"| {burst.title} | {burst.checkout:.2f} | {burst.last:.2f} | {burst.events}"
            f" | {burst.heard} | {' | '.join(memory)} |"
        )
    lines.append("")
    for burst in figures.bursts:
        counts = ", ".join(f"{name} {count}" for name, count in burst.counts.items())
        lines.append(f"- {burst.title}: {counts}")
    lines += [
        "",
        "What others feel until the last event, ms. The ratio is of 99th percentiles; goal for stat: 3.",
        "",
        "| call | idle: median | 99th | longest | meanwhile: median | 99th | longest | times | ratio |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in figures.felt:
        delays = [
            f"{delay.median:.3f} | {delay.p99:.3f} | {delay.longest:.1f}"
            for delay in (one.idle, one.meanwhile)
        ]
        lines.append(
            f"| {one.call} | {' | '.join(delays)} | {one.meanwhile.times} | {one.ratio:.1f} |"
        )
    if figures.disturbed:
        lines += ["", "Disturbed: somebody else dropped the kernel's caches meanwhile."]
    return "\n".join(lines)
