"""Options that say of whom, and when, a policy is asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from session_agent.errors import PolicyError
from session_agent.policy.identity import Identity
from session_agent.policy.times import parse_instant

file_option = click.option(
    "--policy", metavar="FILE", required=True, help="The policy, such as vault-permissions.yaml."
)


@dataclass(frozen=True, slots=True)
class Asked:
    """Of whom, and when, the policy is asked. `groups` are None where the option was not given."""

    identity: Identity | None
    groups: frozenset[str] | None
    instant: datetime


def who_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--user, --user-id, --groups, --attr and --at. The verb gets `asked`."""

    @functools.wraps(function)
    def packed(
        *,
        user: str | None,
        user_id: str,
        groups: str,
        attr: tuple[str, ...],
        at: str | None,
        **rest: Any,
    ) -> Any:
        named = frozenset(name.strip() for name in groups.split(",") if name.strip())
        identity = _identity(user, user_id, named, attr)
        return function(asked=Asked(identity, named or None, instant_of(at)), **rest)

    verb: Callable[..., Any] = packed
    for option in (
        click.option("--at", metavar="INSTANT", help="When, such as 2026-12-04T18:00Z; now."),
        click.option(
            "--attr",
            metavar="KEY=VALUE",
            multiple=True,
            help="An attribute of the user; may be given again.",
        ),
        click.option("--groups", metavar="A,B", default="", help="The user's groups."),
        click.option("--user-id", metavar="ID", default="", help="For {user_id} in paths."),
        click.option("--user", metavar="NAME", help="The user's name."),
    ):
        verb = option(verb)
    return verb


def _identity(
    user: str | None, user_id: str, groups: frozenset[str], attributes: tuple[str, ...]
) -> Identity | None:
    if user is None:
        if user_id or attributes:
            raise PolicyError("--user-id and --attr need --user.")
        return None
    values: dict[str, frozenset[str]] = {}
    for attribute in attributes:
        key, equals, value = attribute.partition("=")
        if not equals or not key:
            raise PolicyError(f"--attr {attribute}: expected key=value.")
        values[key] = values.get(key, frozenset()) | {value}
    return Identity(user, user_id, groups, values)


def instant_of(text: str | None) -> datetime:
    """The instant that --at gives, else now. Raises PolicyError."""
    if text is None:
        return datetime.now(UTC)
    try:
        return parse_instant(text, None, end=False)
    except ValueError as error:
        raise PolicyError(f"--at {text}: {error}.") from None
