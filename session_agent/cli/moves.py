"""`session-agent moves`, and its `cancel` and `ack`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from session_agent.cli.options import EXIT_CODES, as_json, common, settings
from session_agent.cli.output import print_json, print_table, shown, tell_error
from session_agent.errors import EXIT_DEGRADED, EXIT_FAILED, EXIT_OK
from session_agent.lifecycle import moves, session
from session_agent.lifecycle.move_status import MoveStatus
from session_agent.lifecycle.moves import Listing
from session_agent.moves.record import State

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_HEADER = ("id", "from", "to", "state", "strategy", "done", "rate", "left", "notes")
_WATCH_SECONDS = 0.5
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@click.group(
    "moves",
    invoke_without_command=True,
    subcommand_metavar="[cancel|ack ID]",
    epilog=EXIT_CODES.format(
        ok="no move has failed, or every failure is acknowledged",
        failed="the moves cannot be listed; the message says why and what to do",
        degraded="a move has failed, or the agent or the journal cannot tell everything",
    ),
)
@click.option("--watch", is_flag=True, help="Show bars until no move is under way any more.")
@as_json
@common
@click.pass_context
def command(ctx: click.Context, config: str | None, as_json: bool, watch: bool) -> int | None:
    """Show the moves from one mount to another: under way, failed, just ended.

    Paths are within the vault. A move that has failed left its file at the old place, and is shown
    until `ack` acknowledges it. Without an agent the journal tells what is to be gone on with.
    """
    if config is not None:
        ctx.find_root().obj = config
    if ctx.invoked_subcommand is not None:
        return None
    if watch and as_json:
        raise click.UsageError("--watch and --json do not go together.")
    place = session.find_place(settings(config))
    listed = _watch(lambda: moves.listing(place)) if watch else moves.listing(place)
    if as_json:
        print_json(msgspec.to_builtins(listed))
    else:
        _print(listed, place.vault)
        for warning in listed.warnings:
            tell_error(warning)
    failed = any(move.state is State.FAILED for move in listed.moves)
    return EXIT_DEGRADED if failed or listed.warnings else EXIT_OK


@command.command(
    "cancel",
    epilog=EXIT_CODES.format(
        ok="the file is at its old place, under its old name",
        failed="there is no such move under way, or it was too late: it has been done",
        degraded="not used by this verb",
    ),
)
@click.argument("move_id", metavar="ID")
@common
def cancel(config: str | None, move_id: str) -> int:
    """Take back a move that is under way."""
    ended = moves.cancel(session.find_place(settings(config)), move_id)
    if ended.state is State.CANCELLED:
        click.echo(f"The move is taken back: {shown(ended.source)} is where it was.")
        return EXIT_OK
    if ended.state is State.DONE:
        tell_error(f"Too late: {ended.target} is in place.")
    else:
        tell_error(f"The move had failed already: {ended.reason}. {ended.source} is where it was.")
    return EXIT_FAILED


@command.command(
    "ack",
    epilog=EXIT_CODES.format(
        ok="the failure is not shown any more",
        failed="there is no failed move of that id",
        degraded="not used by this verb",
    ),
)
@click.argument("move_ids", metavar="ID...", nargs=-1, required=True)
@common
def ack(config: str | None, move_ids: Sequence[str]) -> int:
    """Acknowledge failed moves: they are not shown any more. Works without an agent, too."""
    place = session.find_place(settings(config))
    for move_id in move_ids:
        moves.acknowledge(place, move_id)
    return EXIT_OK


def _print(listed: Listing, vault: str) -> None:
    if not listed.moves:
        click.echo("No move is under way, and none has failed.")
        return
    print_table(_HEADER, [_row(move, vault) for move in listed.moves])


def _row(move: MoveStatus, vault: str) -> list[str]:
    return [
        move.id,
        _in_vault(move.source, vault),
        _in_vault(move.target, vault),
        move.state,
        move.strategy,
        _done(move),
        f"{_amount(move.rate)}/s" if move.state is State.STAGING and move.rate else "",
        "" if move.seconds_left is None else _duration(move.seconds_left),
        _notes(move),
    ]


def _in_vault(path: str, vault: str) -> str:
    return path.removeprefix(vault.rstrip("/") + "/")


def _done(move: MoveStatus) -> str:
    if not move.total_files:
        return ""
    done = f"{_amount(move.bytes)} of {_amount(move.total_bytes)}"
    return f"{done}, {move.files} of {move.total_files} files" if move.total_files > 1 else done


def _notes(move: MoveStatus) -> str:
    notes = [move.paused] if move.paused else []
    if move.error:
        notes.append(move.reason)
    if move.kept:
        notes.append("the old version is kept, it had changed")
    if move.leftover:
        notes.append("its copy cannot be removed yet")
    if move.losses:
        notes.append("not kept: " + ", ".join(move.losses))
    return "; ".join(notes)


def _amount(count: float) -> str:
    """A number of bytes with three digits or so."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if not unit else f"{count:.3g} {_UNITS[unit]}"


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _watch(ask: Callable[[], Listing]) -> Listing:
    """Show the bars until no move is under way; the last listing."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and seldom needed
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[told]}", markup=False),
    )
    listed = ask()
    with Progress(*columns, console=Console(highlight=False)) as bars:
        known: dict[str, TaskID] = {}
        while listed.live and any(move.under_way for move in listed.moves):
            _draw(bars, known, listed.moves)
            time.sleep(_WATCH_SECONDS)
            listed = ask()
        _draw(bars, known, listed.moves)
    return listed


def _draw(bars: Progress, known: dict[str, TaskID], listed: Sequence[MoveStatus]) -> None:
    """A bar for each move that is or was under way; `known` are the bars by the moves' ids."""
    for move in listed:
        if move.id not in known:
            if not move.under_way:
                continue
            known[move.id] = bars.add_task(shown(move.target.rpartition("/")[2]), told="")
        share = min(1.0, move.bytes / move.total_bytes) if move.total_bytes else 0.0
        if move.state is State.DONE:
            share = 1.0
        details = [_done(move)] if move.under_way else []
        if move.state is State.STAGING and move.rate:
            details.append(f"{_amount(move.rate)}/s")
        if move.seconds_left is not None:
            details.append(f"{_duration(move.seconds_left)} left")
        told = ", ".join(part for part in (str(move.state), *details, _notes(move)) if part)
        bars.update(known[move.id], total=1.0, completed=share, told=shown(told))
