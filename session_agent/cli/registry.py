"""`session-agent registry`: check."""

from __future__ import annotations

from dataclasses import asdict

import click

from session_agent.cli.options import EXIT_CODES, as_json, common
from session_agent.cli.output import print_json, shown
from session_agent.errors import EXIT_DEGRADED, EXIT_FAILED, EXIT_OK
from session_agent.model import printable
from session_agent.registry import entry


@click.group("registry")
def command() -> None:
    """Check entries of a registry of Kasm workspaces.

    docs/operations.md says what the warnings mean.
    """


@command.command(
    "check",
    epilog=EXIT_CODES.format(
        ok="nothing is wrong, and Kasm will warn of nothing",
        failed="a file is no valid entry",
        degraded="they are valid, with warnings",
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@as_json
@common
def check(config: str | None, files: tuple[str, ...], as_json: bool) -> int:  # noqa: ARG001
    """Tell what is wrong with workspace.json files, and what Kasm will warn of before installing.

    Files are read as schema 1.0. `error` is what makes one unusable, `kasm-warning` what Kasm shows
    to administrators, `warning` what is to be read or mended though Kasm does not tell.
    """
    checked = [entry.check(file) for file in files]
    if as_json:
        print_json(
            {
                "files": [
                    {
                        "file": printable(one.file),
                        "valid": one.valid,
                        "findings": [asdict(finding) for finding in one.findings],
                    }
                    for one in checked
                ]
            }
        )
    for one in () if as_json else checked:
        for finding in one.findings:
            click.echo(shown(finding.told(printable(one.file))))
        if not one.findings:
            click.echo(f"{shown(one.file)}: nothing is wrong.")
    if not all(one.valid for one in checked):
        return EXIT_FAILED
    return EXIT_DEGRADED if any(one.findings for one in checked) else EXIT_OK
