"""Why a contender has no figure."""

from __future__ import annotations


class Failure(Exception):  # noqa: N818 - it is a result, and shown as one
    """A contender could not do a workload, or did it wrong. The message fits a table's footnote."""
