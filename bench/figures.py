"""The statistics, from samples to what the report says. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.contenders import NATIVE, PEERS, VAULT

# Rows compared with the plain folder: moving many bytes, where FUSE can come near it.
LARGE_ROWS = ("large-write", "large-read-cold", "large-read-warm")


@dataclass(slots=True)
class Cell:
    """One contender in one row: a sample a round. Seconds; `cpu` is what its servers used."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True, slots=True)
class RowFigures:
    """A row's medians by contender, those that failed left out; seconds.

    `spread` is half the distance between the quartiles, as a part of the median.
    """

    name: str
    title: str
    medians: Mapping[str, float]
    cpu: Mapping[str, float]
    spread: Mapping[str, float]
    failures: Mapping[str, str]

    @property
    def best_peer(self) -> str | None:
        """The fastest of those that are neither the vault nor the plain folder."""
        peers = [name for name in self.medians if name in PEERS]
        return min(peers, key=lambda name: self.medians[name]) if peers else None

    @property
    def ratio(self) -> float | None:
        """Best peer over vault: above 1, the vault is faster."""
        best = self.best_peer
        if best is None or VAULT not in self.medians:
            return None
        return self.medians[best] / self.medians[VAULT]

    @property
    def of_native(self) -> float | None:
        """The vault's speed as a part of the plain folder's."""
        if VAULT not in self.medians or NATIVE not in self.medians:
            return None
        return self.medians[NATIVE] / self.medians[VAULT]


def row_figures(name: str, title: str, cells: Mapping[str, Cell]) -> RowFigures:
    """The figures of one row. A contender that failed once has none: its other rounds prove little."""
    good = {who: cell for who, cell in cells.items() if cell.seconds and not cell.failure}
    return RowFigures(
        name,
        title,
        medians={who: statistics.median(cell.seconds) for who, cell in good.items()},
        cpu={who: statistics.median(cell.cpu) for who, cell in good.items()},
        spread={who: spread(cell.seconds) for who, cell in good.items()},
        failures={who: cell.failure for who, cell in cells.items() if cell.failure},
    )


def spread(samples: list[float]) -> float:
    """Half the distance between the quartiles over the median; 0 of a single sample."""
    if len(samples) < 2:
        return 0.0
    lower, median, upper = statistics.quantiles(samples, method="inclusive")
    return (upper - lower) / 2 / median


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """Of those that there are; None of nothing."""
    logarithms = [math.log(ratio) for ratio in ratios if ratio is not None]
    return math.exp(statistics.fmean(logarithms)) if logarithms else None


def percentile99(samples: Sequence[float]) -> float:
    """Never more than the greatest, however few there are."""
    if len(samples) < 2:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[98]
