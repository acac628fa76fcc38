"""`session-agent stop`."""

from __future__ import annotations

import click

from session_agent.cli.options import EXIT_CODES, as_json, common, settings
from session_agent.cli.output import print_json, shown
from session_agent.errors import EXIT_OK
from session_agent.lifecycle import daemon, session


@click.command(
    "stop",
    epilog=EXIT_CODES.format(
        ok="no agent runs any more; also when none ran",
        failed="it does not end, or may not be told to; the message says what to do",
        degraded="not used by this verb",
    ),
)
@click.option("--force", is_flag=True, help="Kill an agent that does not end by itself.")
@as_json
@common
def command(config: str | None, as_json: bool, force: bool) -> int:
    """Unmount the vault and end the agent of this session.

    Waits until both are done. Moves under way get moves.grace_seconds to end; the next start goes on
    with what is left of them. Programs with files open in the vault get errors from then on. Also
    removes the mount that a killed agent left behind.
    """
    loaded = settings(config)
    place = session.find_place(loaded)
    grace = loaded.settings.moves.grace_seconds
    stopped = daemon.stop(place, force=force, grace_seconds=grace)
    if as_json:
        print_json({"stopped": stopped, "vault": shown(place.vault)})
    elif stopped:
        click.echo(f"The vault {shown(place.vault)} is unmounted.")
    else:
        click.echo("Nothing was running.")
    return EXIT_OK
