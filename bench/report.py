"""The report as text and as JSON. Pure, but for nothing: it gets figures and gives strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bench import foreign_figures, moves
from bench.contenders import NATIVE, VAULT
from bench.failure import Failure
from bench.figures import LARGE_ROWS, Cell, RowFigures, geometric_mean, row_figures
from bench.idle import Idle
from bench.policy import PolicyFigures


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that one run found. `cells` by row name and contender; `titles` by row name."""

    machine: Mapping[str, str]
    scale: float
    rounds: int
    busy: bool
    placement: str
    contenders: Sequence[str]
    titles: Mapping[str, str]
    cells: Mapping[str, Mapping[str, Cell]]
    idle: Mapping[str, Idle | Failure]
    policy: Sequence[PolicyFigures] = ()
    moves: moves.MoveFigures | None = None
    foreign: foreign_figures.ForeignFigures | None = None

    @property
    def rows(self) -> list[RowFigures]:
        """The figures of each row."""
        return [row_figures(name, self.titles[name], self.cells[name]) for name in self.cells]


def as_text(run: Run) -> str:
    """Markdown tables that are also straight on a terminal."""
    parts = ["\n".join(f"{name}: {value}" for name, value in run.machine.items())]
    rows = run.rows
    if rows:
        busy = ", every processor kept busy" if run.busy else ""
        if run.placement != "free":
            busy += f", servers and programs {run.placement}"
        parts += [
            f"Milliseconds, medians of {run.rounds} rounds at scale {run.scale:g}{busy}.",
            _times(rows, run.contenders),
            "best/vault above 1: the vault is faster than the best peer. ±: the vault's spread.",
            summary(rows),
            "CPU milliseconds of each server, user and system, for the same work.",
            _cpu(rows, run.contenders),
        ]
        failures = [
            f"{row.name}: {who}: {why}" for row in rows for who, why in row.failures.items()
        ]
        if failures:
            parts.append("Failed:\n" + "\n".join(failures))
    if run.idle:
        parts += ["At rest. MiB of all its processes together, PSS (RSS).", _idle(run.idle)]
        if any(isinstance(found, Idle) and found.rest.disturbed for found in run.idle.values()):
            parts.append("Disturbed: somebody else dropped the kernel's caches meanwhile.")
        vault = run.idle.get(VAULT)
        if isinstance(vault, Idle) and vault.rest.calls:
            calls = ", ".join(f"{name} {count}" for name, count in vault.rest.calls.items())
            parts.append(f"The vault's calls: {calls}")
    if run.moves is not None:
        parts += [
            "Moves between branches: a file of 1 GiB, 5,000 notes (at scale 1).",
            moves.as_text(run.moves),
        ]
    if run.foreign is not None:
        parts += [
            "Changes behind the vault, and their events in it.",
            foreign_figures.as_text(run.foreign),
        ]
    if run.policy:
        parts += ["A permission policy, evaluated for one user.", _policy(run.policy)]
    return "\n\n".join(parts) + "\n"


def as_json(run: Run) -> dict[str, object]:
    """Everything, samples included; seconds and KiB."""
    rows = run.rows
    return {
        "machine": dict(run.machine),
        "scale": run.scale,
        "rounds": run.rounds,
        "busy": run.busy,
        "placement": run.placement,
        "geometric_mean": geometric_mean(row.ratio for row in rows),
        "rows": {
            row.name: {
                "title": row.title,
                "samples": {who: cell.seconds for who, cell in run.cells[row.name].items()},
                "cpu_samples": {who: cell.cpu for who, cell in run.cells[row.name].items()},
                "medians": dict(row.medians),
                "cpu": dict(row.cpu),
                "spread": dict(row.spread),
                "failures": dict(row.failures),
                "best_peer": row.best_peer,
                "ratio": row.ratio,
                "of_native": row.of_native,
            }
            for row in rows
        },
        "idle": {
            who: {"failure": str(idle)} if isinstance(idle, Failure) else asdict(idle)
            for who, idle in run.idle.items()
        },
        "policy": [asdict(figures) for figures in run.policy],
        "moves": None if run.moves is None else run.moves.as_json(),
        "foreign": None if run.foreign is None else run.foreign.as_json(),
    }


def summary(rows: Sequence[RowFigures]) -> str:
    """The figures that the goals are about."""
    ratios = {row.name: row.ratio for row in rows if row.ratio is not None}
    mean = geometric_mean(ratios.values())
    lines = []
    if mean is not None:
        lowest = min(ratios, key=lambda name: ratios[name])
        lines.append(f"Geometric mean of best/vault over {len(ratios)} rows: {mean:.2f}")
        lines.append(f"Lowest: {ratios[lowest]:.2f} ({lowest})")
    without = [row.name for row in rows if row.ratio is None]
    if without:
        lines.append(f"Rows without a ratio: {', '.join(without)}")
    for row in rows:
        if row.name in LARGE_ROWS and row.of_native is not None:
            lines.append(f"{row.name}: {row.of_native:.2f} of native speed")
    return "\n".join(lines)


def _times(rows: Sequence[RowFigures], contenders: Sequence[str]) -> str:
    table = [["row", *contenders, "best peer", "best/vault", "±"]]
    for row in rows:
        table.append(
            [
                row.name,
                *(_value(row.medians, row.failures, who) for who in contenders),
                row.best_peer or "-",
                _number(row.ratio),
                f"{row.spread[VAULT]:.0%}" if VAULT in row.spread else "-",
            ]
        )
    return render(table)


def _cpu(rows: Sequence[RowFigures], contenders: Sequence[str]) -> str:
    served = [who for who in contenders if who != NATIVE]
    table = [["row", *served]]
    table += [[row.name, *(_value(row.cpu, row.failures, who) for who in served)] for row in rows]
    totals = [sum(row.cpu.get(who, 0.0) for row in rows) for who in served]
    table.append(["together", *(f"{total * 1000:.1f}" for total in totals)])
    return render(table)


def _idle(idle: Mapping[str, Idle | Failure]) -> str:
    head = ["", "processes", "after start", "with nodes", "nodes", "sleeps", "calls", "within"]
    table = [head]
    for who, found in idle.items():
        if isinstance(found, Failure):
            table.append([who, f"failed: {found}", *[""] * (len(head) - 2)])
            continue
        table.append(
            [
                who,
                str(found.processes),
                f"{found.after_start.pss / 1024:.1f} ({found.after_start.rss / 1024:.1f})",
                f"{found.with_nodes.pss / 1024:.1f} ({found.with_nodes.rss / 1024:.1f})",
                str(found.nodes),
                str(found.rest.switches),
                "-" if found.rest.calls is None else str(sum(found.rest.calls.values())),
                f"{found.rest.seconds:g} s",
            ]
        )
    return render(table)


def _policy(policy: Sequence[PolicyFigures]) -> str:
    table = [
        ["folders", "groups", "read, s", "evaluate, ms", "per folder, µs", "peak, MiB", "shown"]
    ]
    table += [
        [
            str(one.folders),
            str(one.groups),
            f"{one.read:.2f}",
            f"{one.evaluate * 1e3:.1f}",
            f"{one.evaluate * 1e6 / one.folders:.2f}",
            f"{one.peak / 1024:.1f}",
            str(one.shown),
        ]
        for one in policy
    ]
    return render(table)


def render(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in table
    ]
    rule = [
        "-" * (width + 2) if column == 0 else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines.insert(1, "|" + "|".join(rule) + "|")
    return "\n".join(lines)


def _value(values: Mapping[str, float], failures: Mapping[str, str], who: str) -> str:
    if who in failures:
        return "failed"
    return f"{values[who] * 1000:.1f}" if who in values else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
