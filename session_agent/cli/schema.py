"""`session-agent schema`."""

from __future__ import annotations

from importlib import resources

import click

from session_agent.cli.options import EXIT_CODES, as_json, common
from session_agent.errors import EXIT_OK

NAMES = ("rooms", "config", "policy")


@click.command(
    "schema",
    epilog=EXIT_CODES.format(
        ok="the schema is printed",
        failed="there is none of that name",
        degraded="not used by this verb",
    ),
)
@click.argument("name", metavar="NAME", type=click.Choice(NAMES))
@as_json
@common
def command(config: str | None, name: str, as_json: bool) -> int:  # noqa: ARG001 - it always is JSON
    """Print the JSON Schema of a file: of the rooms file, the settings, or a permission policy.

    NAME is rooms, config or policy. Editors complete and check YAML by such a schema.
    """
    schema = resources.files("session_agent") / "schemas" / f"{name}.json"
    click.echo(schema.read_text(encoding="utf-8"), nl=False)
    return EXIT_OK
