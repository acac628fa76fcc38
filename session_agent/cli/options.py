"""Options that all verbs have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from session_agent.settings import Loaded, load
from session_agent.settings_file import DEFAULT_FILE

EXIT_CODES = """\b
Exit codes:
  0  ok        {ok}
  1  failed    {failed}
  2  degraded  {degraded}"""


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --debug. The verb gets `config`."""
    config = click.option(
        "--config",
        metavar="FILE",
        help=f"Settings file; by default $SESSION_AGENT_CONFIG, or {DEFAULT_FILE} if there is one.",
    )
    debug = click.option(
        "--debug", is_flag=True, expose_value=False, help="Show where an unexpected error happened."
    )
    return config(debug(function))


as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs, in a shape that stays."
)


def settings(config: str | None) -> Loaded:
    """The settings that `config`, the group's own --config, or the environment select."""
    outer = click.get_current_context().find_root().obj
    return load(config or outer)
