"""`session-agent doctor`."""

from __future__ import annotations

import click

from session_agent.cli.options import EXIT_CODES, as_json, common, settings
from session_agent.cli.output import print_json, shown
from session_agent.doctor.examine import Findings, examine
from session_agent.errors import SettingsError
from session_agent.settings import without_file

_MARGIN = " " * 6


@click.command(
    "doctor",
    epilog=EXIT_CODES.format(
        ok="everything is as it should be",
        failed="something that the vault needs is missing",
        degraded="there are warnings",
    ),
)
@click.option(
    "--bundle",
    metavar="[FILE]",
    is_flag=False,
    flag_value="",
    help="Write a tar.gz for a bug report, without secrets; by default into /tmp.",
)
@as_json
@common
def command(config: str | None, as_json: bool, bundle: str | None) -> int:
    """Look at every precondition: its state, why it matters, and the exact fix.

    Works with and without a running agent, as root and as the user, takes ten seconds at most, and
    changes nothing.
    """
    problem = None
    try:
        loaded = settings(config)
    except SettingsError as error:
        loaded, problem = without_file(), error
    findings = examine(loaded, problem)
    if as_json:
        print_json(findings.as_json())
    else:
        _print(findings)
    if bundle is not None:
        from session_agent.doctor.bundle import write  # noqa: PLC0415 - seldom needed

        path = write(findings, loaded, bundle)
        click.echo(shown(f"The bundle is {path}: look into it before you send it."), err=as_json)
    return findings.state.exit_code


def _print(findings: Findings) -> None:
    for check in findings.checks:
        click.echo(shown(f"{check.state:<5} {check.name}: {check.detail}"))
        if check.why:
            click.echo(f"{_MARGIN}{shown(check.why)}")
        if check.fix:
            click.echo(f"{_MARGIN}-> {shown(check.fix)}")
    counts = [sum(check.state == state for check in findings.checks) for state in ("warn", "fail")]
    click.echo(f"{counts[1]} failed, {counts[0]} warnings, {len(findings.checks)} checks")
