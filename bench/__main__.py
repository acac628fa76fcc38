"""`./dev bench`: measure, print the report, write it as JSON and as a plot if asked to."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import foreign, machine, moves, plot, policy, report
from bench.contenders import FUSE_CONTENDERS, NATIVE, PLACEMENTS, Contender, Served, contender
from bench.failure import Failure
from bench.ground import Ground, Sizes
from bench.idle import Idle, observe
from bench.measure import Measurement, Results
from bench.rows import ROWS, Place

_IDLE = "idle"  # what `--rows` calls the sections that are no rows
_POLICY = "policy"
_MOVES = "moves"
_FOREIGN = "foreign"

_ON_DISK = "/var/tmp"  # noqa: S108 - /tmp may be a tmpfs; mkdtemp is used below

# Seconds after which no further round is begun.
_LAST_ROUND = 420.0
_LAST_QUICK_ROUND = 70.0


def say(text: str) -> None:
    """Progress, which the report on standard output does not hold."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def arguments() -> argparse.Namespace:
    """The command line; ends the program if it is wrong."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    usual = [*(row.name for row in ROWS), _IDLE]
    row_names = [*usual, _POLICY, _MOVES, _FOREIGN]
    parser.add_argument("--quick", action="store_true", help="a fifth of the files, 3 rounds")
    parser.add_argument("--rows", type=_names(row_names), default=usual, metavar="A,B")
    parser.add_argument(
        "--against",
        type=_names(FUSE_CONTENDERS),
        default=list(FUSE_CONTENDERS),
        metavar="A,B",
        help=f"whom to measure beside native: {','.join(FUSE_CONTENDERS)}",
    )
    parser.add_argument("--busy", action="store_true", help="keep every processor busy meanwhile")
    parser.add_argument(
        "--placement",
        choices=list(PLACEMENTS),
        default="free",
        help="servers and programs on one processor, on two, or as the scheduler likes",
    )
    parser.add_argument("--rounds", type=int, help="rounds that count (5)")
    parser.add_argument("--scale", type=float, help="factor for the number of files (1)")
    parser.add_argument(
        "--idle-seconds", type=float, help="how long to watch them rest, twice (10)"
    )
    parser.add_argument("--folder", type=Path, help="where the backing directory is to lie")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG")
    options = parser.parse_args()
    for name, quick, full in (("rounds", 3, 5), ("scale", 0.2, 1.0), ("idle_seconds", 3.0, 10.0)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    if options.rounds < 1 or options.scale <= 0:
        parser.error("--rounds and --scale must be positive")
    return options


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return [name for name in known if name in chosen]

    return parse


@contextlib.contextmanager
def workshop(folder: Path | None) -> Iterator[Path]:
    """An empty folder that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="session-agent-bench.", dir=folder or _ON_DISK))
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def spinning(driver: Path, wanted: bool) -> Iterator[None]:
    """A process that does nothing else for each processor."""
    count = len(os.sched_getaffinity(0)) if wanted else 0
    spinners = [subprocess.Popen([driver, "spin"]) for _ in range(count)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def compile_driver(folder: Path) -> Path:
    """The driver as a program in `folder`."""
    driver = folder / "driver"
    source = Path(__file__).with_name("driver.c")
    subprocess.run(["gcc", "-O2", "-o", str(driver), str(source)], check=True)
    return driver


def started(names: list[str], ground: Ground, placement: str, undo: ExitStack) -> list[Contender]:
    """Those of the contenders that start."""
    ready = []
    for name in names:
        candidate = contender(name, ground.path, placement)
        undo.callback(candidate.stop)
        try:
            candidate.start()
            ready.append(candidate)
        except Failure as failure:
            say(f"bench: {name} is left out: {failure}")
    return ready


def measure(options: argparse.Namespace) -> report.Run:
    """The whole run. Whatever happens, nothing stays mounted or running."""
    began = time.monotonic()
    rows = [row for row in ROWS if row.name in options.rows]
    names = [NATIVE, *options.against] if rows or _IDLE in options.rows else []
    results: Results = {}
    idle: dict[str, Idle | Failure] = {}
    rounds = 0
    with workshop(options.folder) as folder, ExitStack() as undo:
        driver = compile_driver(folder)
        ground = Ground(folder, Sizes.scaled(options.scale))
        say(f"bench: laying the ground in {folder}")
        if names:
            ground.lay(names)
        facts = machine.describe(folder)
        contenders = started(names, ground, options.placement, undo)
        if rows:
            places = [Place(contender, ground, driver) for contender in contenders]
            measurement = Measurement(rows, places, say)
            last_round = began + (_LAST_QUICK_ROUND if options.quick else _LAST_ROUND)
            with spinning(driver, options.busy):
                rounds = measurement.run(options.rounds, not options.quick, last_round)
            results = measurement.results
        if _IDLE in options.rows:
            ground.lay_nodes()
            served = [contender for contender in contenders if isinstance(contender, Served)]
            idle = observe(served, driver, ground.sizes.nodes, options.idle_seconds, say)
        moved = (
            moves.measure(folder / "moves", options.scale, say) if _MOVES in options.rows else None
        )
        behind = (
            foreign.measure(folder / "foreign", options.scale, say)
            if _FOREIGN in options.rows
            else None
        )
    figures = policy.measure() if _POLICY in options.rows else []
    say(f"bench: {time.monotonic() - began:.0f} s in all")
    return report.Run(
        machine=facts,
        scale=options.scale,
        rounds=rounds,
        busy=options.busy,
        placement=options.placement,
        contenders=[contender.name for contender in contenders],
        titles={row.name: row.title for row in rows},
        cells=results,
        idle=idle,
        policy=figures,
        moves=moved,
        foreign=behind,
    )


def main() -> int:
    """Ends with 0 if every contender did every row right, 1 if not."""
    options = arguments()
    if os.geteuid() != 0:
        say("bench: needs root, to mount and to drop the kernel's caches. Nothing was done.")
        return 1
    try:
        run = measure(options)
    except subprocess.CalledProcessError as error:
        say(f"bench: {error}")
        return 1
    except Failure as failure:  # of native: nothing can be compared
        say(f"bench: {failure}")
        return 1
    sys.stdout.write(report.as_text(run))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(run), indent=2) + "\n", encoding="utf-8")
    if options.plot:
        options.plot.write_text(plot.svg(run.rows), encoding="utf-8")
    failed = any(row.failures for row in run.rows)
    return 1 if failed or any(isinstance(found, Failure) for found in run.idle.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
