"""Named places in the protocol of a move at which a test may stop the world.

Production code says where it is; unless a test has put a hook here, nothing happens. There is no way to
set one from outside the process.
"""

from __future__ import annotations

from collections.abc import Callable

POINTS = (
    "accepted",
    "staging",
    "staged",
    "committing",
    "committed",
    "changed-over",
    "retiring",
    "retired",
    "done",
)
"""All of them, in the order in which a background move passes them."""

hook: Callable[[str], None] | None = None
"""Called with the name of each point that is reached."""


def reach(name: str) -> None:
    """The move has come to the point `name`, one of POINTS."""
    if hook is not None:
        hook(name)
