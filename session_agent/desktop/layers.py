"""Layers of one settings file: what the agent wants in it, the administrator, and above all the user.

The file is looked at as a map (see pointers), and `merge` says whose a value is. Besides, a value may
not be usable today: a folder that is not mounted. Then another one stands in for it. One of the user's
is parked meanwhile in the memory, and returns. Pure.

A key of the memory's `parked` is in one of two states: written as well, and the file holds what stands
in; or not, and the user has insisted on the parked value, by choosing it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TypeAlias

from session_agent.desktop.merge import Json, Remembered, merge, same
from session_agent.desktop.pointers import stands_in_the_way

Values: TypeAlias = Mapping[str, Json]
# From the file's values and what is remembered: what belongs into it, by the user's leave.
Wanted: TypeAlias = Callable[[Values, Remembered], Values]
# What stands in for the value of a key today; None for a value that can be used.
StandIn: TypeAlias = Callable[[str, Json], Json]


def settle(
    current: Values,
    wanted: Wanted,
    stand_in: StandIn,
    remembered: Remembered,
    *,
    fresh: bool,
    sets: Collection[str] = (),
) -> tuple[dict[str, Json], Remembered]:
    """The values that the file is to hold, and what to remember once it does.

    `fresh`: see `merge`; `sets`: see `pointers`.
    """
    theirs, known, insisted = _return_parked(current, remembered)
    merged = merge(theirs, wanted(theirs, known), known, fresh=fresh)
    after = {key: value for key, value in theirs.items() if key not in merged.remove}
    written = dict(merged.remembered.written)
    for key, value in merged.put.items():
        if key not in after and stands_in_the_way(key, after, sets):
            del written[key]  # the user has something else in that place
        else:
            after[key] = value
    parked: dict[str, Json] = {}
    for key, value in after.items():
        instead = stand_in(key, value)
        if instead is None or same(instead, value):
            continue
        if key not in written:
            parked[key] = value
        if key not in insisted:
            after[key] = written[key] = instead
    return after, replace(merged.remembered, written=written, parked=parked)


def _return_parked(
    current: Values, remembered: Remembered
) -> tuple[Values, Remembered, frozenset[str]]:
    """The file's values with the user's own in their places; the keys that the user insisted on."""
    theirs = dict(current)
    back = set()
    insisted = set()
    for key, value in remembered.parked.items():
        if key not in current:
            continue
        if remembered.owns(key, current[key]):
            theirs[key] = value
            back.add(key)
        # One that is pending was not replaced yet when the last run was killed.
        elif same(current[key], value) and key not in remembered.pending:
            insisted.add(key)
    known = replace(
        remembered,
        written={k: v for k, v in remembered.written.items() if k not in back},
        pending={k: v for k, v in remembered.pending.items() if k not in back},
    )
    return theirs, known, frozenset(insisted)
