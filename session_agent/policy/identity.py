"""Who somebody is, as far as a policy asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Identity:
    """A user whose claims are trusted. `groups` are in the words of whoever vouches for them."""

    user: str
    user_id: str = ""
    groups: frozenset[str] = frozenset()
    attributes: Mapping[str, frozenset[str]] = field(default_factory=dict)
