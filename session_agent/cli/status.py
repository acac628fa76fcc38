"""`session-agent status`."""

from __future__ import annotations

import click

from session_agent.cli.options import EXIT_CODES, as_json, common, settings
from session_agent.cli.output import print_json, shown
from session_agent.errors import EXIT_DEGRADED, EXIT_FAILED, EXIT_OK
from session_agent.lifecycle import session, status
from session_agent.lifecycle.control import StatusDocument
from session_agent.moves.record import State

_FOREIGN = (
    *("watched", "unwatched", "polled", "polls"),
    *("announced", "coalesced", "dropped", "rescanned"),
)
_EXIT = {"running": EXIT_OK, "degraded": EXIT_DEGRADED, "stopped": EXIT_FAILED}


@click.command(
    "status",
    epilog=EXIT_CODES.format(
        ok="the agent runs, and every branch answers",
        failed="no agent runs, or it cannot be asked",
        degraded="it runs, but a branch, or the agent itself, does not answer",
    ),
)
@as_json
@common
def command(config: str | None, as_json: bool) -> int:
    """Ask the agent of this session: its state, its branches, its warnings.

    Works when none runs, too.
    """
    document = status.document(session.find_place(settings(config)))
    if as_json:
        print_json(document.as_json())
    else:
        _print(document)
    return _EXIT[document.state]


def _print(document: StatusDocument) -> None:
    process = f" (process {document.pid})" if document.pid else ""
    click.echo(shown(f"{document.vault}: {document.state}{process}"))
    names = [shown(branch.name) for branch in document.branches]
    width = max(map(len, names), default=0)
    for name, branch in zip(names, document.branches, strict=True):
        line = f"{branch.mode}  {branch.state:<5}  {branch.path}"
        click.echo(f"  {name.ljust(width)}  {shown(line)}")
    told = _moves(document)
    if told:
        click.echo(f"{told}: see `session-agent moves`")
    foreign = _foreign(document)
    if foreign:
        click.echo(foreign)
    for warning in document.warnings:
        click.echo(f"warning: {shown(warning)}")


def _moves(document: StatusDocument) -> str:
    under_way = sum(move.under_way for move in document.moves)
    failed = sum(move.state is State.FAILED for move in document.moves)
    told = []
    if under_way:
        told.append("1 move is under way" if under_way == 1 else f"{under_way} moves are under way")
    if failed:
        told.append("1 move has failed" if failed == 1 else f"{failed} moves have failed")
    return ", ".join(told)


def _foreign(document: StatusDocument) -> str:
    """What is heard of others' changes; nothing where no folder is watched or looked at."""
    counts = {name: document.foreign.get(name, 0) for name in _FOREIGN}
    if not any(counts[name] for name in ("watched", "unwatched", "polled")):
        return ""
    folders = [f"folders watched {counts['watched']}"]
    if counts["unwatched"]:
        folders.append(f"looked at because there are too many {counts['unwatched']}")
    if counts["polled"]:
        folders.append(f"remote, looked at {counts['polled']} ({counts['polls']} times)")
    told = [f"announced {counts['announced']}", f"coalesced {counts['coalesced']}"]
    if counts["dropped"]:
        told.append(f"dropped {counts['dropped']}")
    told.append(f"folders compared {counts['rescanned']}")
    return f"others' changes: {', '.join(folders)}; {', '.join(told)}"
