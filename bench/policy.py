"""How long a permission policy takes to be read, and to be evaluated for one user; and in how much memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from session_agent.policy.evaluate import evaluate
from session_agent.policy.identity import Identity
from session_agent.policy.schema import parse_policy

FOLDERS = (1_250, 2_500, 5_000, 10_000)
GROUPS = 1_000
_INSTANT = datetime(2026, 11, 30, 12, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PolicyFigures:
    """Seconds: the fastest of several runs. `peak` is what one evaluation allocates at most, in KiB."""

    folders: int
    groups: int
    read: float
    evaluate: float
    peak: float
    shown: int


def text_of(folders: int, groups: int) -> str:
    """A policy in which each folder has three rules and each group is defined."""
    lines = ["groups:"]
    lines += [f"  g{n}: [u{n}, u{n + 1}]" for n in range(groups)]
    lines.append("folders:")
    for n in range(folders):
        one, two, three = (f"g{(n * step) % groups}" for step in (1, 7, 13))
        lines += [
            f"  - name: f{n}",
            f"    path: /shared/{n % 100}/f{n}",
            "    access:",
            f"      - {{groups: [{one}], mode: rw}}",
            f"      - {{groups: [{two}, {three}], compound: all, mode: rw}}",
            f"      - {{groups: [{two}], mode: ro, until: 2027-01-01T00:00Z}}",
        ]
    return "\n".join(lines) + "\n"


def measure(
    sizes: Sequence[int] = FOLDERS, groups: int = GROUPS, runs: int = 5
) -> list[PolicyFigures]:
    """One line for each number of folders. The user is in a fifth of the groups."""
    who = Identity("u0", groups=frozenset(f"g{n}" for n in range(0, groups, 5)))
    found = []
    for folders in sizes:
        data = text_of(folders, groups).encode()
        started = time.perf_counter()
        policy = parse_policy(data, "bench.yaml")
        read = time.perf_counter() - started
        best = float("inf")
        shown = 0
        for _ in range(runs):
            started = time.perf_counter()
            grants = evaluate(policy, who, _INSTANT)
            best = min(best, time.perf_counter() - started)
            shown = sum(grant.mode != "hidden" for grant in grants)
            del grants
        tracemalloc.start()
        evaluate(policy, who, _INSTANT)
        peak = tracemalloc.get_traced_memory()[1] / 1024
        tracemalloc.stop()
        found.append(PolicyFigures(folders, groups, read, best, peak, shown))
    return found
