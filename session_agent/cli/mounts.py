"""`session-agent mounts`."""

from __future__ import annotations

import click

from session_agent.cli.options import EXIT_CODES, as_json, common, settings
from session_agent.cli.output import print_json, print_table, tell_error
from session_agent.errors import EXIT_DEGRADED, EXIT_OK
from session_agent.lifecycle import control, session, status

_COLUMNS = ("name", "mode", "state", "kind", "cloud_type", "path", "source", "fstype")


@click.command(
    "mounts",
    epilog=EXIT_CODES.format(
        ok="every mount answers, or there is none",
        failed="wrong settings",
        degraded="a mount is dead (its server is gone) or hung (calls into it do not return)",
    ),
)
@as_json
@common
def command(config: str | None, as_json: bool) -> int:
    """Show the mounts that hold user storage, and whether they answer.

    What belongs to the container itself is left out; the settings mounts.include and mounts.exclude
    change what counts. Changes nothing.
    """
    loaded = settings(config)
    place = session.find_place(loaded)
    limit = loaded.settings.mounts.probe_seconds
    known = status.not_answering(place, control.consult(place), limit)
    found = session.build(loaded, place, known)
    mounts = status.mounts(found)
    if as_json:
        print_json(mounts)
    elif mounts:
        header = [column.replace("_", " ") for column in _COLUMNS]
        print_table(header, [[mount[column] for column in _COLUMNS] for mount in mounts])
    else:
        click.echo("No mount holds user storage.")
    for warning in found.warnings:
        tell_error(warning)
    alive = all(mount["state"] == "alive" for mount in mounts)
    return EXIT_OK if alive else EXIT_DEGRADED
