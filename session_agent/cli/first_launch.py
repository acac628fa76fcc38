"""`session-agent first-launch`."""

from __future__ import annotations

import click

from session_agent.cli.options import EXIT_CODES, as_json, common, settings
from session_agent.cli.output import print_json, shown
from session_agent.lifecycle.report import Report, StepReport, StepState

_MARGIN = " " * 10


@click.command(
    "first-launch",
    epilog=EXIT_CODES.format(
        ok="everything is in place",
        failed="wrong settings; nothing was done",
        degraded="the rest is done, but something is missing; the summary says what",
    ),
)
@click.option("--dry-run", is_flag=True, help="Print what would change in files, and do nothing.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 in any case, for hooks.")
@as_json
@common
def command(
    config: str | None,
    as_json: bool,
    dry_run: bool,
    exit_zero: bool,  # noqa: ARG001 - see main
) -> int:
    """Make one vault of this session's mounts: the command for a first_launch hook.

    Finds the mounts, starts the agent that serves the vault, and writes Thunar's bookmarks,
    Obsidian's settings and the sync daemon's rooms. Takes ten seconds at most, whatever hangs, and
    changes nothing when it is run again. Run as root it acts for the owner of $HOME.
    """
    # Slow to import, and `--help` should not wait for it.
    from session_agent.lifecycle.dry_run import rehearse  # noqa: PLC0415
    from session_agent.lifecycle.first_launch import first_launch  # noqa: PLC0415

    loaded = settings(config)
    report = rehearse(loaded) if dry_run else first_launch(loaded)
    if as_json:
        print_json(report.as_json())
    else:
        _summarise(report)
    return report.state.exit_code


def _summarise(report: Report) -> None:
    for step in report.steps:
        click.echo(f"{step.state:<10}{shown(_line(step, report.dry))}")
        if step.hint:
            click.echo(f"{_MARGIN}-> {shown(step.hint)}")
        for line in step.difference.splitlines():
            click.echo(f"{_MARGIN}{shown(line)}")
    for warning in report.warnings:
        click.echo(f"{'warning':<10}{shown(warning)}")
    words = {
        StepState.OK: "Ok",
        StepState.DEGRADED: "Degraded: something is missing, see above and `session-agent doctor`",
        StepState.FAILED: "Failed",
    }
    if report.dry:
        change = " Nothing was done."
    else:
        change = "" if report.changed else " Everything is unchanged."
    click.echo(f"{words[report.state]}.{change} ({report.seconds:.1f} s)")


def _line(step: StepReport, dry: bool) -> str:
    if step.name in ("mounts", "vault"):
        return f"{step.name}: {step.detail}"
    change = ("would change" if dry else "changed") if step.changed else "unchanged"
    detail = f", {step.detail}" if step.detail else ""
    place = f" ({step.path})" if step.path and step.path not in step.detail else ""
    return f"{step.name}: {change}{detail}{place}"
