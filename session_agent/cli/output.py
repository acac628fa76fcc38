"""How things are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from session_agent.model import printable
from session_agent.redaction import redacted


def shown(text: str) -> str:
    """`text` for a terminal: whatever could control it, or break the line, as an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable(text)
    )


def tell_error(message: str, hint: str = "") -> None:
    """An error on standard error: what is wrong, and below it what to do."""
    click.echo(f"session-agent: {shown(redacted(message))}", err=True)
    if hint:
        click.echo(f"  {shown(redacted(hint))}", err=True)


def print_json(value: Any) -> None:
    """One JSON document, ASCII only."""
    click.echo(json.dumps(value, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, as wide as it needs to be where no person looks at it."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and seldom needed
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*[Text(shown(cell)) for cell in row])
    width = None if sys.stdout.isatty() else 1000
    Console(width=width, highlight=False).print(table)
