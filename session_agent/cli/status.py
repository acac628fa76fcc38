"""`session-agent status`."""

from __future__ import annotations

from typing import Any

import click

from session_agent.cli.options import EXIT_CODES, as_json, common, settings
from session_agent.cli.output import print_json, shown
from session_agent.errors import EXIT_DEGRADED, EXIT_FAILED, EXIT_OK
from session_agent.lifecycle import session, status

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
        print_json(document)
    else:
        _print(document)
    return _EXIT.get(document["state"], EXIT_DEGRADED)


def _print(document: dict[str, Any]) -> None:
    process = f" (process {document['pid']})" if document["pid"] else ""
    click.echo(shown(f"{document['vault']}: {document['state']}{process}"))
    branches = document["branches"]
    width = max((len(shown(str(branch["name"]))) for branch in branches), default=0)
    for branch in branches:
        name = shown(str(branch["name"])).ljust(width)
        line = f"{branch['mode']}  {branch['state']:<5}  {branch['path']}"
        click.echo(f"  {name}  {shown(line)}")
    for warning in document["warnings"]:
        click.echo(f"warning: {shown(str(warning))}")
