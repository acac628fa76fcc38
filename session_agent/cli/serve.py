"""`session-agent serve`."""

from __future__ import annotations

import logging

import click

from session_agent.cli.options import EXIT_CODES, common, settings
from session_agent.errors import EXIT_OK, AgentError


@click.command(
    "serve",
    epilog=EXIT_CODES.format(
        ok="the vault was served and is unmounted",
        failed="it cannot be served; the message says why and what to do",
        degraded="not used by this verb",
    ),
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON line once the vault is ready."
)
@click.option("--ready-fd", type=int, hidden=True, help="Where first-launch waits for the report.")
@common
def command(config: str | None, as_json: bool, ready_fd: int | None) -> int:
    """Serve the vault in the foreground, until Ctrl-C, SIGTERM or `session-agent stop`.

    For debugging and for service managers; `first-launch` starts it in the background. The log goes
    to standard error, and to agent.log in the state directory.
    """
    from session_agent.lifecycle import daemon, handover, logs  # noqa: PLC0415 - not for `--help`

    waiting = ready_fd

    def ready() -> None:
        nonlocal waiting
        if waiting is not None:
            daemon.report(waiting, handover.Report(ready=True))
            waiting = None
        elif as_json:
            click.echo('{"ready": true}')

    try:
        loaded = settings(config)
        logs.to_stderr(loaded.settings.log)
        # The FUSE library is loaded here: where it is missing the starter is told so, too.
        from session_agent.lifecycle.serve import serve  # noqa: PLC0415

        serve(loaded, to_log=ready_fd is not None, ready=ready)
    except AgentError as error:
        if waiting is not None:
            daemon.report(waiting, handover.Report(False, error.message, error.hint))
        raise
    except Exception:
        logging.getLogger(__name__).exception("the agent ends")
        raise
    return EXIT_OK
