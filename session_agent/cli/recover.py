"""`session-agent recover`."""

from __future__ import annotations

import click

from session_agent.cli.options import EXIT_CODES, as_json, common, settings
from session_agent.cli.output import print_json, print_table, shown, tell_error
from session_agent.errors import EXIT_DEGRADED, EXIT_OK
from session_agent.lifecycle import journals, session
from session_agent.moves.recover import Found


@click.command(
    "recover",
    epilog=EXIT_CODES.format(
        ok="no move is left half done",
        failed="an agent is running, or the journal cannot be used",
        degraded="a move waits for a missing branch, or two versions of something are kept",
    ),
)
@as_json
@common
def command(config: str | None, as_json: bool) -> int:
    """Finish or undo the moves that a kill has cut off, without starting an agent.

    An agent does the same when it starts. A move whose new name was in place is finished, one that was
    accepted in the background is carried out, any other is undone.
    """
    loaded = settings(config)
    place = session.find_place(loaded)
    findings, problems = journals.recover_without_agent(loaded, place)
    rows = [
        {
            "id": one.record.id,
            "from": shown(one.record.source.shown),
            "to": shown(one.record.target.shown),
            "outcome": str(one.found),
            "why": shown(one.why),
        }
        for one in findings
    ]
    if as_json:
        print_json({"moves": rows, "problems": [shown(problem) for problem in problems]})
    elif rows:
        header = ["id", "from", "to", "outcome", "why"]
        print_table(header, [[row[column] for column in header] for row in rows])
    else:
        click.echo("No move was cut off.")
    for problem in problems:
        tell_error(problem)
    open_ends = any(one.found in (Found.WAITING, Found.KEPT) or one.why for one in findings)
    return EXIT_DEGRADED if problems or open_ends else EXIT_OK
