"""From nodes to what the journal calls the end of a move, and back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from session_agent.fsutil.at import stat_at
from session_agent.fsutil.credentials import Caller
from session_agent.moves.plan import failed
from session_agent.moves.record import End, decode, encode
from session_agent.moves.recover import open_below
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.nodes import FolderNode

if TYPE_CHECKING:
    from session_agent.overlay.vault import Vault


def end_of(folder: FolderNode, name: bytes) -> End:
    """The name in the folder, as the journal has it: where it lies, not where it is shown."""
    steps: list[str] = []
    step = folder
    while not step.is_branch_root:
        steps.append(encode(step.name))
        assert step.parent is not None
        step = step.parent
    return End(_branch_name(folder.branch), "/".join(reversed(steps)), encode(name))


def branch_of(vault: Vault, end: End) -> OpenBranch:
    """The branch of that end. ENOENT if there is none by that name today.

    EACCES where the policy lets nothing be written: a record is the user's own, and may be forged.
    """
    for branch in vault.branches:
        if _branch_name(branch) == end.branch and branch.fd >= 0:
            if vault.limits is not None:
                vault.limits.reach(branch.info.name, [*end.steps, decode(end.name)])
            return branch
    raise failed(2, end.shown)


def _branch_name(branch: OpenBranch) -> str:
    return encode(os.fsencode(branch.info.name))


def open_folder(vault: Vault, end: End) -> int:
    """The folder of that end, O_PATH, opened with the rights that the thread has."""
    return open_below(branch_of(vault, end).fd, end.steps)


async def folder_of(vault: Vault, end: End, caller: Caller) -> FolderNode:
    """The node of the folder of that end; each node on the way is counted as looked up once more."""
    branch = branch_of(vault, end)
    folder = _root_of(vault, branch)
    for name in end.steps:
        fd = await vault.folder_fd(folder)
        status = await folder.branch.call(caller, stat_at, fd, name)
        node = vault.tree.found(folder, decode(encode(name)), status)
        if not isinstance(node, FolderNode):
            raise failed(20, end.shown)
        node.lookups += 1
        folder = node
    return folder


def _root_of(vault: Vault, branch: OpenBranch) -> FolderNode:
    for root in (vault.tree.root, *vault.branch_roots):
        if root.branch is branch:
            return root
    raise failed(2, branch.info.name)
