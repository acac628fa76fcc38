"""A policy, typed and frozen, as its file says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from session_agent.model import Grant
from session_agent.policy.conditions import Condition
from session_agent.policy.document import Position
from session_agent.policy.membership import Group, Membership
from session_agent.policy.times import Validity


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `access`, or of `deny` (then `mode` is hidden)."""

    condition: Condition
    mode: Grant
    validity: Validity
    because: str
    at: Position


@dataclass(frozen=True, slots=True)
class Implication:
    """Access to one folder gives access to another: in that mode, or in the same one."""

    folder: str
    mode: Grant | None
    at: Position


@dataclass(frozen=True, slots=True)
class Subfolder:
    """A part of a folder with rules of its own. `path` is relative to the folder's.

    With `access` its rules alone say who may use it; with `mode` everybody who sees what it lies in has that
    mode; with neither it is as what it lies in. What it lies in must be seen in any case, and `deny` wins.
    """

    path: str
    access: tuple[Rule, ...] | None
    mode: Grant | None
    deny: tuple[Rule, ...]
    because: str
    at: Position


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the bytes of a folder come from: what Kasm's storage provider needs."""

    type: str = "bind"
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that the policy governs. `path` and `target` may hold {username} and {user_id}."""

    name: str
    path: str
    target: str
    access: tuple[Rule, ...]
    deny: tuple[Rule, ...]
    implies: tuple[Implication, ...]
    subfolders: tuple[Subfolder, ...]  # what contains others before those
    storage: Storage
    because: str
    at: Position


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole file.

    `order` has the folders' positions in an order in which no folder is implied by a later one.
    """

    file: str
    folders: tuple[Folder, ...]
    groups: Mapping[str, Group]
    membership: Membership
    order: tuple[int, ...]
    lines: int

    def names(self) -> frozenset[str]:
        """The names of its folders."""
        return frozenset(folder.name for folder in self.folders)
