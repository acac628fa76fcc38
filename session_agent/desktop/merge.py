"""Who owns a key of a user's file: how the agent's values and the user's live together.

Every file the agent shares with the user is looked at as a map: bookmark to label, setting to
value. The agent remembers what it wrote; what differs from that was changed by the user, and is the
user's from then on. Pure: nothing here reads or writes a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the agent wrote into one file.

    `written` is in the file unless the user changed it. `pending` was about to be written when last
    heard of: a run that was killed may or may not have got there, so what is absent then was not
    therefore removed by the user; None there is what was about to be removed. `left` are keys that the
    user changed or removed: they stay the user's. `parked` are values of the user's that what is in
    `written` stands in for (see layers).
    """

    written: Mapping[str, Json] = field(default_factory=dict)
    pending: Mapping[str, Json] = field(default_factory=dict)
    left: frozenset[str] = frozenset()
    parked: Mapping[str, Json] = field(default_factory=dict)

    def owns(self, key: str, value: Json) -> bool:
        """Whether `value`, found at `key`, is one that the agent wrote."""
        return any(
            key in known and same(known[key], value) for known in (self.written, self.pending)
        )

    def seen_in(self, current: Mapping[str, Json]) -> bool:
        """Whether `current` shows any trace of what was written."""
        return any(key in current for key in (*self.written, *self.left))


def intend(before: Remembered, current: Mapping[str, Json], after: Remembered) -> Remembered:
    """What to remember while a file that holds `current` is made what `after` speaks of.

    `before` is what was remembered, perhaps when a run was killed in the same place.
    """
    written = dict(before.written)
    for key, value in before.pending.items():
        if key in current and same(current[key], value):
            written[key] = value
        elif key not in current and value is None:
            written.pop(key, None)
    removed = {
        key: None
        for key, value in written.items()
        if key not in after.written and key in current and same(current[key], value)
    }
    return Remembered(
        written,
        pending={**removed, **after.written},
        left=before.left,
        parked={**before.parked, **after.parked},
    )


@dataclass(frozen=True, slots=True)
class Merged:
    """What to do to the file, and what to remember afterwards."""

    put: Mapping[str, Json]
    remove: frozenset[str]
    remembered: Remembered


@dataclass(frozen=True, slots=True)
class Rendered:
    """A file's new `value`, what is to be remembered once it is written, and what was `found` so far."""

    value: Json
    remembered: Remembered
    found: Mapping[str, Json]


def same(one: Json, other: Json) -> bool:
    """Equality of JSON values; Python's own takes True for 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def merge(
    current: Mapping[str, Json],
    wanted: Mapping[str, Json],
    remembered: Remembered,
    *,
    fresh: bool,
) -> Merged:
    """Bring `wanted` into `current` and take out what the agent wrote and wants no more.

    `fresh` says that this is not the file the agent wrote to (a new home, a vault deleted and
    created anew), so that an absent key tells nothing about the user's wishes.
    """
    put: dict[str, Json] = {}
    written: dict[str, Json] = {}
    left = set() if fresh else set(remembered.left)
    for key, value in wanted.items():
        if key in current:
            if remembered.owns(key, current[key]):
                written[key] = value
                if not same(current[key], value):
                    put[key] = value
            elif key in remembered.written:
                left.add(key)
        elif key in remembered.written and not fresh and not remembered.pending:
            left.add(key)
        elif key not in left:
            put[key] = written[key] = value
    known = {**remembered.written, **remembered.pending}
    remove = {
        key
        for key in known
        if key not in wanted and key in current and remembered.owns(key, current[key])
    }
    return Merged(
        put, frozenset(remove), Remembered(written, left=frozenset(left - written.keys()))
    )
