"""The command `session-agent`: finds the verb, and turns every error into a message and an exit code."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

import click

import session_agent
from session_agent.cli.output import tell_error
from session_agent.errors import EXIT_FAILED, EXIT_OK, AgentError

_VERBS = (
    *("first-launch", "doctor", "mounts", "status", "moves", "stop", "recover", "serve"),
    *("plan", "policy", "registry", "schema"),
)
_INTERRUPTED = 130  # what a shell reports for SIGINT


class _Verbs(click.Group):
    """A verb's module is imported when the verb is used: `status` needs no FUSE library."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The verbs in the order in which a newcomer needs them."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The verb's command, from the module that bears its name."""
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"session_agent.cli.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)
        return command


@click.command(
    cls=_Verbs,
    epilog="""\b
Exit codes of every verb:
  0  ok        done, nothing is missing
  1  failed    not done; the message says why and what to do
  2  degraded  done, but something is missing: a dead drive, no FUSE
`session-agent VERB --help` explains a verb and its options.""",
)
@click.option("--config", metavar="FILE", help="Settings file, as for each verb.")
@click.version_option(session_agent.__version__, prog_name="session-agent")
@click.pass_context
def _command(ctx: click.Context, config: str | None) -> None:
    """One vault out of the mounts of a Kasm Workspaces session.

    Storage mappings put folders and cloud drives into a session as separate mounts. The agent shows
    them as folders of one vault, in which files can be moved from one to another, and tells Thunar,
    Obsidian and the sync daemon of it. `first-launch` does it all.
    """
    ctx.obj = config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb in `arguments` (by default the process's own) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        _never_fail_to_encode(stream)
    code = _run(words)
    # For hooks that must never fail, whatever is wrong, the other arguments included.
    return EXIT_OK if "--exit-zero" in words else code


def _run(words: list[str]) -> int:
    try:
        code = _command.main(words, prog_name="session-agent", standalone_mode=False)
        sys.stdout.flush()
    except AgentError as error:
        tell_error(error.message, error.hint)
        return error.exit_code
    except click.ClickException as error:
        # click would exit with 2 for wrong usage, which here means degraded.
        error.show()
        return EXIT_FAILED
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever reads the output has seen enough. Nothing more can be written, at exit neither.
        sys.stdout = None
        return EXIT_FAILED  # as click does
    except Exception as error:  # noqa: BLE001 - told in one line, with the way to see all of it
        if "--debug" in words:
            traceback.print_exc()
        hint = "" if "--debug" in words else "Add --debug to see where."
        tell_error(f"Unexpected error: {type(error).__name__}: {error}", hint)
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_OK


def _never_fail_to_encode(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
