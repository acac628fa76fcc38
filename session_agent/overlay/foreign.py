"""Changes made behind the vault: heard of or looked for, and turned into what a local change would be.

Each branch has its own chain, so that one in which nothing goes forward holds up no other: what is heard
(`hearing`) or found by looking (`looking`) is gathered, what the kernel remembers of it runs out, and
programs are told (`telling`, `announcing`).
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from session_agent.fsutil.credentials import AGENT, Caller, assume
from session_agent.overlay.announcing import Announcer, Herald, Mounted, find
from session_agent.overlay.counts import ForeignCounts
from session_agent.overlay.expected import Expected
from session_agent.overlay.expiry import Absent, Expiry
from session_agent.overlay.hearing import Hearing
from session_agent.overlay.heralding import MOST_BRANCHES, Started
from session_agent.overlay.inotify import Allowance, Queue, Watch
from session_agent.overlay.listeners import listened
from session_agent.overlay.looking import LOCAL_PER_MINUTE, Looked, Looker
from session_agent.overlay.nodes import FolderNode, Node, Place
from session_agent.overlay.polling import elsewhere
from session_agent.overlay.telling import Stale, Telling

if TYPE_CHECKING:
    import os

    from session_agent.overlay.branches import OpenBranch
    from session_agent.overlay.vault import Vault

log = logging.getLogger(__name__)

_ATTEND_SECONDS = 10.0  # after which it is seen anew which folders programs listen to


@dataclass(frozen=True, slots=True)
class _Chain:
    """What there is for one branch. `hearing`: of a local one; `looker`: None if nothing may be looked at."""

    telling: Telling
    hearing: Hearing | None
    looker: Looker | None


class Foreign:
    """Hears of foreign changes and has them announced. Only the trio thread touches it.

    `expected`: the requests that are expected of the herald's threads, by their ids.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.counts = ForeignCounts()
        self.expiry = Expiry()
        self.absent = Absent()
        self.expected: dict[int, Expected] = {}
        self._started: Started | None = None
        self._herald: Herald | None = None
        self._chains: dict[OpenBranch, _Chain] = {}
        self._claims: Counter[Place] = Counter()
        self._allowance = Allowance()
        self._remote_per_minute = 0
        self._mounted: Mounted | None = None
        self._nursery: trio.Nursery | None = None
        self._looked_at = trio.Event()  # that there are folders that are looked at
        self.active = False
        self.usable = trio.Event()  # that the vault has answered a request

    def open(self, herald: Started, remote_per_minute: int) -> None:
        """Before the vault is served.

        `remote_per_minute`: how many folders of each remote branch may be looked at in a minute; 0 for none.
        """
        self._started = herald
        self._remote_per_minute = remote_per_minute
        self.active = True
        self._vault.tree.on_leave = self.leave
        self._vault.tree.on_forget = self._forgot
        self._vault.tree.catch_up = self._catch_up
        for branch in self._vault.branches:
            self._chain(branch)
        for folder in (self._vault.tree.root, *self._vault.branch_roots):
            self.watch(folder)

    def _chain(self, branch: OpenBranch) -> None:
        run_out = (self.expiry, self.absent)
        telling = Telling(self._vault, branch, self.counts, *run_out, self._is_ours)
        hearing = looker = None
        tree = self._vault.tree
        if not branch.remote and branch.fd >= 0:
            try:
                queue = Queue(branch, self._allowance)
            except OSError as failure:
                log.warning("%s is not watched: %s", branch.info.name, failure.strerror)
            else:
                hearing = Hearing(queue, telling, tree, self.expiry)
                telling.hear_all = hearing.drain
        per_minute = self._remote_per_minute if branch.remote else LOCAL_PER_MINUTE
        if branch.index >= MOST_BRANCHES:
            log.warning("%s has no events: there are too many branches", branch.info.name)
            return
        if per_minute:
            looker = Looker(telling, tree, per_minute, self._watch_instead)
        self._chains[branch] = chain = _Chain(telling, hearing, looker)
        if self._nursery is not None:
            self._start(chain)

    def _start(self, chain: _Chain) -> None:
        assert self._nursery is not None
        assert self._mounted is not None
        assert self._herald is not None
        start = self._nursery.start_soon
        telling = chain.telling
        told = (self._herald, telling.branch.index, telling.unclosed)
        announcer = Announcer(self._vault, self._mounted, *told)
        start(self._tell, telling, announcer)
        if chain.hearing is not None:
            start(chain.hearing.listen)
        if chain.looker is not None:
            start(chain.looker.run)

    async def _tell(self, telling: Telling, announcer: Announcer) -> None:
        with contextlib.suppress(ConnectionError):  # the herald is gone
            await announcer.begin()
            self.usable.set()
            await telling.tell(announcer, self.watch)

    async def run(self, mountpoint: str, listener: Caller) -> None:
        """Listen, look and announce, until cancelled. `listener`: whose programs are looked after first."""
        if not self.active:
            return
        self._mounted = find(mountpoint)
        if self._mounted is None:
            self.usable.set()
            self.close()
            return
        assert self._started is not None
        self._herald = Herald(self._started, self.expected)
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._herald.run)
            self._nursery.start_soon(self._end_without, self._herald)
            for chain in self._chains.values():
                self._start(chain)
            self._nursery.start_soon(self._attend, self._mounted.device, listener)
        if self._herald.gone.is_set():
            self.close()

    async def _end_without(self, herald: Herald) -> None:
        await herald.gone.wait()
        self.usable.set()
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Close every descriptor. What the kernel remembers is not to be relied on from now on."""
        self.active = False
        self._nursery = None
        for chain in self._chains.values():
            if chain.hearing is not None:
                chain.hearing.close()
        self._chains.clear()

    def plugged(self, root: FolderNode) -> None:
        """The branch of this root has come, or was mounted anew."""
        branch = root.branch
        if not self.active:
            return
        chain = self._chains.get(branch)
        if chain is None:
            self._chain(branch)
        elif chain.hearing is not None:
            chain.hearing.renewed()
        self.unplugged(root)
        self.leave(root)
        self.watch(root)

    def unplugged(self, root: FolderNode) -> None:
        """What lies there is another file system from now on, or none: nothing is to be remembered of it."""
        chain = self._chains.get(root.branch)
        if chain is not None and root.parent is not None:
            chain.telling.forget_below(root)
            self.uncertain(root.parent, root.name)

    # What the vault does itself

    @contextlib.contextmanager
    def ours(self, *places: Place) -> Iterator[None]:
        """What happens at these names within the block is the vault's own doing, in a thread perhaps."""
        self._claims.update(places)
        try:
            yield
        finally:
            self.settled(*places)
            self._claims.subtract(places)
            self._claims = +self._claims

    def settled(self, *places: Place) -> None:
        """Before these names are no more the vault's own: hear what has happened to them until now."""
        for branch in {folder.branch for folder, _ in places}:
            chain = self._chains.get(branch)
            if chain is not None and chain.hearing is not None:
                chain.hearing.drain()
        for folder, name in places:
            if isinstance(folder.watch, Looked):
                folder.watch.settled(name)
                self.used(folder)  # soon, so that little else is taken for the vault's doing
            self.uncertain(folder, name)

    def uncertain(self, folder: FolderNode, name: bytes) -> None:
        """The kernel may have been told to remember this name for longer than it may."""
        chain = self._chains.get(folder.branch)
        if chain is not None:
            chain.telling.name_changed(folder, name, Stale.FORCED)
            chain.telling.begin()

    def relocated(self, nodes: list[Node]) -> None:
        """These nodes lie in another branch now: they are watched there, and what is remembered runs out."""
        for node in nodes:
            if node.parent is not None and node.lookups > 0:
                self.expiry.attributes(node.id)
                self.uncertain(node.parent, node.name)
                if isinstance(node, FolderNode):
                    self.watch_soon(node)

    def _is_ours(self, folder: FolderNode, name: bytes) -> bool:
        shifted = folder.shifted
        if shifted is not None and (name in shifted.arrivals or name in shifted.departures):
            return True
        return (folder, name) in self._claims

    def heard(self, folder: FolderNode, name: bytes, there: bool) -> None:
        """Programs are told by the kernel that something has come to this name, or has gone."""
        chain = self._chains.get(folder.branch)
        if chain is not None and isinstance(folder.watch, Watch):
            chain.telling.last_words.heard((folder, name), there)

    # Which folders

    def watch(self, folder: FolderNode) -> None:
        """The kernel is told of this folder: programs may want to hear what happens in it."""
        chain = self._chains.get(folder.branch)
        if not self.active or folder.watch is not None or chain is None:
            return
        if chain.hearing is not None and chain.hearing.watch(folder):
            return
        if chain.looker is not None:
            chain.looker.add(folder)
            self._looked_at.set()

    def watch_soon(self, folder: FolderNode) -> None:
        """As `watch`, where many come at once."""
        chain = self._chains.get(folder.branch)
        if self.active and folder.watch is None and chain is not None:
            chain.telling.new[folder] = None
            chain.telling.begin()

    def leave(self, folder: FolderNode) -> None:
        """The folder is not known to the kernel any more, or has come to another branch."""
        chain = self._chains.get(folder.branch)
        if chain is not None:
            chain.telling.new.pop(folder, None)
            chain.telling.forgotten.leave(folder)
            if chain.hearing is not None:
                chain.hearing.leave(folder)
            if chain.looker is not None:
                chain.looker.leave(folder)

    def _forgot(self, node: Node) -> None:
        folder = node.parent
        if folder is not None and isinstance(folder.watch, Watch) and self.active:
            chain = self._chains.get(folder.branch)
            if chain is not None:
                chain.telling.forgotten.add(node)

    def _watch_instead(self, folder: FolderNode) -> bool:
        """Watch a folder that was only looked at, if there is room by now."""
        chain = self._chains[folder.branch]
        if chain.hearing is None or not chain.hearing.has_room():
            return False
        self.leave(folder)
        self.watch(folder)
        return not isinstance(folder.watch, Looked)

    def _catch_up(self, folder: FolderNode, changed: int) -> None:
        chain = self._chains.get(folder.branch)
        if chain is not None and chain.hearing is not None:
            chain.hearing.catch_up(folder, changed)

    # Folders that are looked at

    def used(self, folder: FolderNode) -> None:
        """The folder is to be looked at soon: it is listed, or the vault has changed something in it."""
        chain = self._chains.get(folder.branch)
        if chain is not None and chain.looker is not None:
            chain.looker.used(folder)

    def listed(self, folder: FolderNode, found: Mapping[bytes, os.stat_result]) -> None:
        """A program has listed the folder, and found this in it."""
        chain = self._chains.get(folder.branch)
        if chain is not None and chain.looker is not None:
            chain.looker.listed(folder, found)

    async def _attend(self, device: int, listener: Caller) -> None:
        """See which folders programs listen to, or have open: they are looked at first."""

        def ask() -> set[int]:
            assume(listener)  # whose processes may be looked into
            try:
                return listened({listener.uid}, device)
            finally:
                assume(AGENT)

        while True:
            await self._looked_at.wait()  # an idle agent is not woken
            await trio.sleep(_ATTEND_SECONDS)
            lookers = [chain.looker for chain in self._chains.values() if chain.looker]
            if not any(lookers):
                self._looked_at = trio.Event()
                continue
            with elsewhere:
                wanted = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
            handles = self._vault.handles
            wanted |= {one.node.parent.id for one in handles.files() if one.node.parent is not None}
            wanted |= {one.node.id for one in handles.folders()}
            for looker in lookers:
                looker.put_in_front(partial(_is_in, wanted))


def _is_in(wanted: set[int], folder: FolderNode) -> bool:
    return folder.id in wanted
