"""What the policy lets be done where: one question for every place in the vault.

The outcome of the policy comes as a tree of names for each branch (policy/limit.py). Names that a rule speaks
of are pinned: they can be neither renamed nor removed nor replaced, since a rule holds for a path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from errno import EACCES, EBUSY, EIO, ENOENT, EROFS
from typing import TypeAlias

from session_agent.model import Grant
from session_agent.overlay.moving import path_of
from session_agent.overlay.nodes import FolderNode, Node
from session_agent.overlay.vault import error
from session_agent.policy.limit import HIDDEN, Limit

Refusal: TypeAlias = Callable[[str, str, int], None]
"""Told of what was refused: the operation, the path in the vault, the caller's user number."""


class Limits:
    """The limits of all branches, by the branches' names; the root branch is "".

    A branch that is not among them is hidden.
    """

    def __init__(self, roots: Mapping[str, Limit], refused: Refusal) -> None:
        self.roots = roots
        self.refused = refused

    def of_folder(self, folder: FolderNode) -> Limit:
        """The limit of a folder, found from the root of its branch on."""
        names: list[bytes] = []
        step = folder
        while not step.is_branch_root:
            names.append(step.name)
            assert step.parent is not None
            step = step.parent
        limit = self.roots.get(step.branch.info.name, HIDDEN)
        for name in reversed(names):
            limit = limit.child(name)
        return limit

    def of(self, node: Node) -> Limit:
        """The limit of a node."""
        if isinstance(node, FolderNode):
            return self.of_folder(node)
        assert node.parent is not None
        return self.of_folder(node.parent).child(node.name)

    def _entry(self, parent: FolderNode, name: bytes) -> Limit:
        if parent.mounted is not None and name in parent.mounted:
            return self.of_folder(parent.mounted[name])
        if name in (b".", b".."):
            return self.of_folder(parent)
        return self.of_folder(parent).child(name)

    def shown(self, folder: FolderNode, names: Iterable[bytes]) -> list[bytes]:
        """Those of the names that may be listed."""
        return [name for name in names if not self._entry(folder, name).hidden]

    def reach(self, branch: str, steps: Iterable[bytes]) -> None:
        """To change what a record names: EACCES where nothing may be written, or a rule speaks of it."""
        limit, pinned = self.roots.get(branch, HIDDEN), False
        for name in steps:
            pinned = name in limit.below
            limit = limit.child(name)
        if limit.grant is not Grant.RW or pinned:
            raise error(EACCES)

    # Each raises what the program is to see.

    def see_entry(self, parent: FolderNode, name: bytes, uid: int) -> None:
        """To look a name up."""
        if self._entry(parent, name).hidden:
            raise self._refuse("lookup", parent, name, uid, ENOENT)

    # A hidden node's name is not found. So whoever asks for the node itself had it open, or works in it.

    def see(self, node: Node, operation: str, uid: int) -> None:
        """To read something of a node."""
        if self.of(node).hidden:
            raise self._refuse(operation, node.parent, node.name, uid, EIO)

    def change(self, node: Node, operation: str, uid: int) -> None:
        """To change the node's content or attributes."""
        limit = self.of(node)
        if limit.grant is not Grant.RW:
            number = EIO if limit.hidden else EROFS
            raise self._refuse(operation, node.parent, node.name, uid, number)

    def make(self, parent: FolderNode, name: bytes, operation: str, uid: int) -> None:
        """To make the entry `name`."""
        self._change_in(parent, name, operation, uid)
        grant = self._entry(parent, name).grant
        if grant is not Grant.RW:
            number = EROFS if grant is Grant.RO else EACCES
            raise self._refuse(operation, parent, name, uid, number)

    def displace(self, parent: FolderNode, name: bytes, operation: str, uid: int) -> None:
        """To rename, remove or replace the entry `name`."""
        self._change_in(parent, name, operation, uid)
        limit = self.of_folder(parent)
        if name in limit.below:
            number = ENOENT if limit.below[name].hidden else EBUSY
            raise self._refuse(operation, parent, name, uid, number)
        if self._entry(parent, name).hidden:
            raise self._refuse(operation, parent, name, uid, ENOENT)

    def _change_in(self, parent: FolderNode, name: bytes, operation: str, uid: int) -> None:
        limit = self.of_folder(parent)
        if limit.grant is not Grant.RW:
            number = ENOENT if limit.hidden else EROFS
            raise self._refuse(operation, parent, name, uid, number)

    def _refuse(
        self, operation: str, parent: FolderNode | None, name: bytes, uid: int, number: int
    ) -> OSError:
        self.refused(operation, path_of(parent, name), uid)
        return error(number)
