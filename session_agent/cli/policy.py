"""`session-agent policy`: check, explain, diff, test."""

from __future__ import annotations

from dataclasses import asdict

import click

from session_agent.cli.options import EXIT_CODES, as_json, common
from session_agent.cli.output import print_json, print_table, shown
from session_agent.cli.policy_options import Asked, file_option, instant_of, who_options
from session_agent.errors import EXIT_DEGRADED, EXIT_FAILED, EXIT_OK, PolicyError
from session_agent.model import printable
from session_agent.policy import diff as difference
from session_agent.policy import explain as explanation
from session_agent.policy import tables
from session_agent.policy.check import expired
from session_agent.policy.document import read
from session_agent.policy.schema import examine, load

_at = click.option("--at", metavar="INSTANT", help="When, such as 2026-12-04T18:00Z; now.")
_file = click.argument("file", metavar="FILE")


@click.group("policy")
def command() -> None:
    """Check a permission policy, and see what it means.

    docs/policy.md describes the file.
    """


@command.command(
    "check",
    epilog=EXIT_CODES.format(
        ok="nothing is wrong with it",
        failed="it has errors; in a session nothing that it governs would be shown",
        degraded="it works, but some of it is probably not meant",
    ),
)
@_file
@_at
@as_json
@common
def check(config: str | None, file: str, at: str | None, as_json: bool) -> int:  # noqa: ARG001
    """Tell everything that is wrong with a policy, with line, column and key."""
    instant = instant_of(at)
    policy, problems = examine(read(file), file)
    found = list(problems.found)
    if policy is not None:
        found += expired(policy, instant)
    found.sort(key=lambda problem: (problem.at.line, problem.at.column))
    if as_json:
        print_json(
            {
                "problems": [
                    {
                        "line": problem.at.line,
                        "column": problem.at.column,
                        "key": problem.key,
                        "severity": problem.severity,
                        "message": problem.message,
                    }
                    for problem in found
                ]
            }
        )
    for problem in () if as_json else found:
        click.echo(shown(problem.told(printable(file))))
    if policy is None:
        return EXIT_FAILED
    if not found and not as_json:
        click.echo(f"{shown(file)}: {len(policy.folders)} folders, nothing is wrong.")
    return EXIT_DEGRADED if found else EXIT_OK


@command.command(
    "explain",
    epilog=EXIT_CODES.format(
        ok="it is explained",
        failed="the policy has errors, or no such folder",
        degraded="not used by this verb",
    ),
)
@file_option
@who_options
@click.argument("folder", metavar="FOLDER")
@as_json
@common
def explain(
    config: str | None,  # noqa: ARG001 - no setting matters
    policy: str,
    folder: str,
    asked: Asked,
    as_json: bool,
) -> int:
    """Tell why a user sees FOLDER or does not, rule by rule. Without --user: somebody unknown."""
    loaded = load(policy)
    found = explanation.explain(loaded, asked.identity, asked.instant, folder)
    if found is None:
        known = ", ".join(sorted(loaded.names())[:20])
        raise PolicyError(f"The policy has no folder {folder}.", f"It has: {known}.")
    if as_json:
        print_json(
            {
                "folder": found.folder,
                "grants": [
                    {"part": part, "mode": mode, "because": because}
                    for part, mode, because in found.modes
                ],
                "rules": [asdict(rule) for rule in found.rules],
            }
        )
        return EXIT_OK
    for part, mode, because in found.modes:
        click.echo(shown(f"{folder}{'/' if part else ''}{part}: {mode}, because: {because}"))
    for rule in found.rules:
        part = f"{rule.part}: " if rule.part else ""
        click.echo(shown(f"  line {rule.line}: {part}{rule.rule}: {rule.answer}"))
    return EXIT_OK


@command.command(
    "diff",
    epilog=EXIT_CODES.format(
        ok="what changes is printed, be it nothing",
        failed="one of the files has errors",
        degraded="not used by this verb",
    ),
)
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@_at
@as_json
@common
def diff(config: str | None, old: str, new: str, at: str | None, as_json: bool) -> int:  # noqa: ARG001
    """Tell what a change from OLD to NEW changes, for whom.

    Asked for somebody unknown, every user that a file names, and for each rule the users who just
    fulfil it.
    """
    changes = difference.diff(load(old), load(new), instant_of(at))
    if as_json:
        print_json({"changes": [asdict(change) for change in changes]})
    elif changes:
        rows = [[c.who, c.folder, f"{c.before} → {c.after}", c.because] for c in changes]
        print_table(["who", "folder", "change", "because"], rows)
    else:
        click.echo("Nothing changes for anybody.")
    return EXIT_OK


@command.command(
    "test",
    epilog=EXIT_CODES.format(
        ok="every test passes",
        failed="a test fails, or a file has errors",
        degraded="not used by this verb",
    ),
)
@_file
@as_json
@common
def test(config: str | None, file: str, as_json: bool) -> int:  # noqa: ARG001
    """Carry out the table tests in FILE, which names its policy."""
    outcome = tables.run(file, instant_of(None))
    if as_json:
        print_json(asdict(outcome))
    else:
        for failure in outcome.failures:
            click.echo(
                shown(
                    f"{file}:{failure.line}: {failure.case}: {failure.folder} is {failure.found},"
                    f" expected {failure.expected} ({failure.because})"
                )
            )
        failed = len({failure.line for failure in outcome.failures})
        click.echo(f"{outcome.cases} tests, {failed} failed.")
    return EXIT_FAILED if outcome.failures else EXIT_OK
