"""What has become of foreign changes, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ForeignCounts:
    """What `session-agent status --json` tells under `foreign`.

    Folders that are `watched` now; local ones that cannot be and are looked at now and then instead
    (`unwatched`); remote ones that are looked at now and then (`polled`), and how often one was (`polls`).
    Changes `announced`, events `coalesced` with an earlier one and `dropped` because there were too many,
    and folders `rescanned` for that.
    """

    watched: int = 0
    unwatched: int = 0
    polled: int = 0
    polls: int = 0
    announced: int = 0
    coalesced: int = 0
    dropped: int = 0
    rescanned: int = 0
