"""Limits that change while the vault is served."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

import pyfuse3
import trio

from session_agent.model import Grant
from session_agent.overlay.following import MoveEnd
from session_agent.overlay.limits import Limits
from session_agent.overlay.nodes import Node
from session_agent.overlay.polling import elsewhere
from session_agent.overlay.vault import Vault
from session_agent.policy.limit import Limit

log = logging.getLogger(__name__)


async def restrict(vault: Vault, limits: Limits, roots: Mapping[str, Limit]) -> None:
    """From now on `roots` hold. Every request that comes after the first step is answered by them.

    Then what the kernel remembers of places that have changed is made to be asked for again, and moves whose
    ends may not be written any more are stopped, unless their commit has begun.
    """

    def ended(source: MoveEnd, target: MoveEnd) -> bool:
        return any(
            limits.of_folder(end.folder).child(end.name).grant is not Grant.RW
            for end in (source, target)
        )

    known = [node for node in vault.tree.nodes() if node.parent is not None]
    before = {node: limits.of(node).grant for node in known}
    limits.roots = roots
    for job, ends in vault.background.inline.items():
        if ended(*ends):
            job.progress.cancel()
            log.warning("%s is not moved: access has ended", job.request.source.label)
    for moving in list(vault.background.live.values()):
        if ended(moving.source, moving.target) and await vault.background.cancel(moving.record.id):
            log.warning("%s is not moved: access has ended", moving.record.source.shown)
    changed = [node for node in known if limits.of(node).grant is not before[node]]
    with elsewhere:
        await trio.to_thread.run_sync(partial(_forget, [_known_by(node) for node in changed]))


def _known_by(node: Node) -> tuple[int, int, bytes]:
    assert node.parent is not None
    return node.id, node.parent.id, node.name


def _forget(nodes: list[tuple[int, int, bytes]]) -> None:
    """In a thread, since the kernel may have to wait for us: names, attributes and pages."""
    for node_id, parent_id, name in nodes:
        for forget in (
            partial(pyfuse3.invalidate_inode, pyfuse3.InodeT(node_id)),
            partial(pyfuse3.invalidate_entry, pyfuse3.InodeT(parent_id), pyfuse3.FileNameT(name)),
        ):
            try:
                forget()
            except OSError as error:  # it has forgotten it by itself
                log.debug("%s: %s", name, error)
