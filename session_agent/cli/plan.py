"""`session-agent plan`."""

from __future__ import annotations

import click

from session_agent.cli.options import EXIT_CODES, as_json, common
from session_agent.cli.output import print_json, print_table, shown
from session_agent.cli.policy_options import Asked, file_option, who_options
from session_agent.errors import EXIT_OK, PolicyError
from session_agent.policy import compare as comparison
from session_agent.policy import kasm, plan
from session_agent.policy.evaluate import evaluate
from session_agent.policy.model import Policy
from session_agent.policy.schema import load

_FORMATS = ("table", "json", "docker", "kasm")


@click.command(
    "plan",
    epilog=EXIT_CODES.format(
        ok="the plan is printed",
        failed="the policy has errors; each is told with its line",
        degraded="not used by this verb",
    ),
)
@file_option
@who_options
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="table",
    show_default=True,
    help="docker: arguments and keywords for `docker run` and its SDK. kasm: providers, mappings"
    " and run config.",
)
@click.option("--compare", is_flag=True, help="What plain Kasm would need for the same access.")
@as_json
@common
def command(
    config: str | None,  # noqa: ARG001 - no setting matters
    policy: str,
    asked: Asked,
    form: str,
    compare: bool,
    as_json: bool,
) -> int:
    """Show what a permission policy gives a user, as a flat list of mounts.

    Works outside of a session, for whoever configures Kasm or starts containers. The policy's file
    is described in docs/policy.md.
    """
    found = load(policy)
    form = "json" if as_json else form
    if compare:
        _compare(found, for_programs=form == "json")
        return EXIT_OK
    if form == "kasm":
        print_json(kasm.as_json(found, asked.groups))
        return EXIT_OK
    if asked.identity is None:
        raise PolicyError("--user is missing.", "Say whose plan it is, such as --user alice.")
    entries = plan.flat(evaluate(found, asked.identity, asked.instant))
    if form == "json":
        print_json(plan.as_json(entries))
    elif form == "docker":
        print_json(plan.as_docker(entries))
    elif entries:
        rows = [[plan.label(e), e.mode, e.path, e.target, e.because] for e in entries]
        print_table(["name", "mode", "path", "target", "because"], rows)
    else:
        click.echo(f"{shown(asked.identity.user)} sees no folder.")
    return EXIT_OK


def _compare(policy: Policy, *, for_programs: bool) -> None:
    found = comparison.as_json(policy)
    if for_programs:
        print_json(found)
        return
    counts = comparison.count(policy)
    click.echo(f"{found['folders']} folders, {found['groups']} groups")
    click.echo(f"this file            {policy.lines} lines")
    click.echo(
        f"plain Kasm           {counts.providers} storage providers, {counts.mappings} mappings,"
        f" {counts.extra_groups} groups made for them"
    )
    click.echo(
        f"                     {counts.steps_once} admin steps,"
        f" and {counts.steps_each_week} more each week"
    )
    for point in comparison.tipping_points(policy):
        lines = ", ".join(map(str, point.lines[:10])) + (", …" if len(point.lines) > 10 else "")
        click.echo(f"tipping point        {point.name} (line {lines})")
