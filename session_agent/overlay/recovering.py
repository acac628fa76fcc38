"""Moves that an earlier agent has left: recovered before the vault is shown, or once a drive answers.

A remote branch may hang, and the vault must not wait for it. So moves with an end in one are recovered
while the vault is served, each as soon as its branches answer, as a call into the remote one.
"""

from __future__ import annotations

import logging
from errno import EAGAIN

import trio

from session_agent.fsutil.credentials import AGENT, Caller, acting_as
from session_agent.model import MountState
from session_agent.moves.journal import Journal
from session_agent.moves.plan import failed
from session_agent.moves.record import End, Record
from session_agent.moves.recover import Finding, Found, recover
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.ends import branch_of, open_folder
from session_agent.overlay.moving import resume
from session_agent.overlay.restricting import restrict
from session_agent.overlay.vault import Vault

log = logging.getLogger(__name__)

_ASK_SECONDS = 5.0  # from one look at the branches to the next
AGAIN_SECONDS = 60.0  # from one attempt at a copy that cannot be removed to the next


class Recovery:
    """What the journal holds when the agent starts. Everything is done with the session user's rights."""

    def __init__(self, vault: Vault, journal: Journal, user: Caller) -> None:
        self._vault = vault
        self._journal = journal
        self._user = user
        self._accepted: list[Record] = []
        self._later: list[Record] = []
        self._more = trio.Event()
        vault.background.on_leftover = self._see_to

    def before_mount(self) -> list[Finding]:
        """Undo or finish what a kill has cut off, where no remote branch is concerned; what was found."""

        def open_local(end: End) -> int:
            if branch_of(self._vault, end).remote:
                raise failed(EAGAIN, end.shown)
            return self._open(end)

        findings = recover(self._journal, self._journal.records(), open_local, self._user)
        self._accepted = [one.record for one in findings if one.found is Found.AGAIN]
        waiting = [one for one in findings if one.found is Found.WAITING]
        self._later = [
            one.record for one in waiting if one.record.leftover or self._remote(one.record)
        ]
        later = {record.id for record in self._later}
        return [one for one in findings if one.record.id not in later]

    async def before_serving(self) -> None:
        """Go on with what was accepted: the vault never shows its old names."""
        for record in self._accepted:
            await resume(self._vault, record, self._user)
        await self._keep_to_limits()

    async def run(self) -> None:
        """While the vault is served: the rest, and copies that cannot be removed when their move fails."""
        async with trio.open_nursery() as nursery:
            while True:
                for record in list(self._later):
                    if self._all_alive(record):
                        self._later.remove(record)
                        nursery.start_soon(self._recover, record)
                if self._later:
                    await trio.sleep(_ASK_SECONDS)
                else:  # an idle agent is not woken
                    await self._more.wait()
                    self._more = trio.Event()

    def _see_to(self, record: Record) -> None:
        self._later.append(record)
        self._more.set()

    def _all_alive(self, record: Record) -> bool:
        try:
            return all(branch.state is MountState.ALIVE for branch in self._branches(record))
        except OSError:  # a leftover's branch is not there today, or closed to the user by now
            return False

    async def _recover(self, record: Record) -> None:
        """Once only: should the branch hang half way, the call goes on whenever it answers again."""

        def look() -> Finding:
            return recover(self._journal, [record], self._open, self._user)[0]

        remote = next((branch for branch in self._branches(record) if branch.remote), None)
        try:
            if remote is None:
                finding = await trio.to_thread.run_sync(look)
            else:
                finding = await remote.call(AGENT, look)
        except OSError as error:
            finding = Finding(record, Found.WAITING, error.strerror or str(error))
        if record.leftover and finding.found is Found.WAITING:
            await trio.sleep(AGAIN_SECONDS)
            self._see_to(record)
        elif finding.found is Found.AGAIN:
            moving = await resume(self._vault, record, self._user)
            if moving is not None:
                for end in (moving.source, moving.target):  # shown otherwise than they were
                    self._vault.foreign.uncertain(end.folder, end.name)
                await self._keep_to_limits()
        elif finding.found is Found.WAITING:
            log.warning(
                "%s: its move waits for the next start: %s", record.source.shown, finding.why
            )
        elif finding.found is Found.KEPT:
            log.warning("%s: the old version is kept beside the new one", record.source.shown)

    async def _keep_to_limits(self) -> None:
        """Access may have ended since these moves were accepted."""
        limits = self._vault.limits
        if limits is not None:
            await restrict(self._vault, limits, limits.roots)

    def _open(self, end: End) -> int:
        with acting_as(self._user):
            return open_folder(self._vault, end)

    def _branches(self, record: Record) -> list[OpenBranch]:
        return [branch_of(self._vault, end) for end in (record.source, record.target)]

    def _remote(self, record: Record) -> bool:
        """Whether it waits for a remote branch, and not for one that is missing or closed to the user."""
        try:
            return any(branch.remote for branch in self._branches(record))
        except OSError:
            return False
