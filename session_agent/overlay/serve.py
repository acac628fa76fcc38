"""The overlay as one thing: open the branches, mount, serve, unmount."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import pyfuse3
import trio

from session_agent.fsutil.credentials import AGENT, Caller, assume
from session_agent.model import Branch, Mode, MountKind, MountState, Session
from session_agent.mounts import mountinfo
from session_agent.mounts.tree import OWN_FSTYPE
from session_agent.moves.journal import Journal
from session_agent.moves.record import Record
from session_agent.moves.recover import Finding
from session_agent.overlay import polling
from session_agent.overlay.accepted import MoveOptions, MoveView
from session_agent.overlay.branches import OpenBranch, RemoteBranch
from session_agent.overlay.connection import connect, is_mounted, unmount
from session_agent.overlay.heralding import Started
from session_agent.overlay.limited import LimitedOperations
from session_agent.overlay.limits import Limits
from session_agent.overlay.operations import VaultOperations
from session_agent.overlay.recovering import Recovery
from session_agent.overlay.restricting import restrict
from session_agent.overlay.roots import Roots, open_roots
from session_agent.overlay.vault import Vault
from session_agent.policy.limit import Limit

log = logging.getLogger(__name__)

_READ_AHEAD = "/sys/class/bdi/{}/read_ahead_kb"
_WATCH_SECONDS = 2.0
_WORKERS = 32  # requests that may wait for remote branches at the same time


@dataclass(frozen=True, slots=True)
class OverlayOptions:
    """How the overlay serves.

    `cache_seconds`: how long the kernel may answer from what it was told (names, attributes).
    `remote_time_limit`: seconds after which a call into a remote branch makes the agent probe it.
    `foreign_events`: whether programs get events for what others change behind the vault.
    `herald`: who announces them (see heralding); without one nobody does.
    `remote_polls_per_minute`: how many folders of a remote branch may be looked at for that in a minute.
    `announcer`: the process whose touches of a branch tell programs to look at it again, and do no more.
    """

    cache_seconds: float = 1.0
    remote_time_limit: float = 5.0
    announcer: int = 0
    foreign_events: bool = True
    herald: Started | None = None
    remote_polls_per_minute: int = 60
    moves: MoveOptions = field(default_factory=MoveOptions)


class Overlay:
    """The overlay of one session. Use: open_branches, mount, run, and close in any case."""

    def __init__(
        self,
        session: Session,
        options: OverlayOptions,
        mountpoint: str | None = None,
        journal: Journal | None = None,
        limits: Limits | None = None,
    ) -> None:
        """With `limits` a policy holds; they are changed by `restrict` alone."""
        self._limits = limits
        self._session = session
        self._options = options
        self._mountpoint = mountpoint or session.vault
        self._journal = journal
        self._vault: Vault | None = None
        self._mounted = False
        self._plugged = trio.Event()
        self._unmounts = True
        self._recovery: Recovery | None = None

    def open_branches(self, roots: Roots | None = None) -> list[str]:
        """Take the branches' roots, or open them, before the overlay covers their paths.

        Answers what could not be opened. MountError if the root branch cannot: without it there is no vault.
        """
        descriptors = _allow_many_descriptors()
        warnings: list[str] = []
        session = self._session
        opened = roots or open_roots(session)
        root = Branch("", session.root_branch, Mode.RW, MountState.ALIVE, MountKind.LOCAL)
        branches: list[OpenBranch] = []
        for index, branch in enumerate(session.branches, start=1):
            fd = opened.branches.get(branch.name)
            if fd is None:
                continue  # it is shown as the vault itself
            if fd < 0:
                warnings.append(f"{branch.name} cannot be opened")
            if branch.kind.remote:
                branches.append(RemoteBranch(index, branch, fd, self._options.remote_time_limit))
            elif fd >= 0:
                branches.append(OpenBranch(index, branch, fd))
        self._vault = Vault(
            OpenBranch(0, root, opened.root),
            branches,
            descriptors // 4,
            move_options=self._options.moves,
            journal=self._journal,
        )
        self._vault.limits = self._limits
        if self._journal is not None:
            user = self._session.user
            caller = Caller(user.uid, user.gid, user.groups)
            self._recovery = Recovery(self._vault, self._journal, caller)
        return warnings

    def recover(self) -> list[Finding]:
        """Before the vault is shown: undo or finish the moves that a kill has cut off; what was found.

        Those with an end in a remote branch, which may not answer, follow while the vault is served.
        """
        return [] if self._recovery is None else self._recovery.before_mount()

    def mount(self, connection: int = -1) -> None:
        """Mount at the vault's path; MountError if the system refuses.

        With `connection` (see there) that is done already, and unmounting is the caller's business too.
        """
        assert self._vault is not None
        self._unmounts = connection < 0
        if self._unmounts:
            connection = connect(self._mountpoint)
        os.umask(0)  # the kernel has applied the caller's already
        sys.setswitchinterval(0.00001)  # a thread that copies many files lets requests in at once
        sys.setrecursionlimit(20_000)  # trees are walked recursively, as deep as they are
        kind = VaultOperations if self._limits is None else LimitedOperations
        operations = kind(self._vault, self._options.cache_seconds, self._options.announcer)
        self._vault.foreign.expiry.connection = connection
        if self._options.foreign_events and self._options.herald is not None:
            polls = self._options.remote_polls_per_minute
            self._vault.foreign.open(self._options.herald, polls)
        polling.install()
        # The library takes over an open /dev/fuse, and closes it in the end.
        pyfuse3.init(operations, f"/dev/fd/{connection}", set(pyfuse3.default_options))
        self._mounted = True

    async def run(self) -> None:
        """Serve until unmounted or stopped."""
        async with trio.open_nursery() as nursery:
            assert self._vault is not None
            nursery.start_soon(self._tune)
            user = self._session.user
            listener = Caller(user.uid, user.gid, user.groups)
            nursery.start_soon(self._vault.foreign.run, self._mountpoint, listener)
            nursery.start_soon(self._vault.background.run)
            if self._recovery is not None:
                await self._recovery.before_serving()
                nursery.start_soon(self._recovery.run)
            await pyfuse3.main(min_tasks=_WORKERS, max_tasks=_WORKERS)
            nursery.cancel_scope.cancel()

    async def answered(self) -> None:
        """Until the vault has answered a request."""
        assert self._vault is not None
        if self._vault.foreign.active:
            await self._vault.foreign.usable.wait()
        else:
            with contextlib.suppress(OSError):
                await trio.to_thread.run_sync(os.stat, self._mountpoint, abandon_on_cancel=True)

    async def _tune(self) -> None:
        """What can only be set once the kernel has agreed with us on how to talk (FUSE_INIT)."""
        await self.answered()
        _read_further_ahead(self._mountpoint)

    async def watch_branches(self, changed: Callable[[], None]) -> None:
        """Call `changed` now, and whenever the state of a branch may be another, until cancelled.

        A branch that nobody uses is asked now and then, so that it is not found dead only by who needs it.
        """
        assert self._vault is not None
        while True:
            before, self._plugged = self.branch_states(), trio.Event()
            changed()
            remote = [one for one in self._vault.branches if isinstance(one, RemoteBranch)]
            while self.branch_states() == before and not self._plugged.is_set():
                # What is local stays as it is: an idle agent is not woken.
                with trio.move_on_after(_WATCH_SECONDS if remote else math.inf):
                    await self._plugged.wait()
                async with trio.open_nursery() as nursery:
                    for branch in remote:
                        if branch.is_due():
                            nursery.start_soon(branch.look)

    def plug(self, info: Branch, fd: int) -> None:
        """A branch has come, or was mounted anew, and `fd` is its root. To be called in the trio thread."""
        assert self._vault is not None
        known = next((one for one in self._vault.branches if one.info.name == info.name), None)
        if known is not None:
            self._vault.renew(known, fd)
        else:
            index = 1 + max(branch.index for branch in self._vault.branches)
            if info.kind.remote:
                limit = self._options.remote_time_limit
                self._vault.add(RemoteBranch(index, info, fd, limit))
            else:
                self._vault.add(OpenBranch(index, info, fd))
        self._plugged.set()

    def unplug(self, name: str) -> None:
        """The mount of a branch is gone. To be called in the trio thread."""
        assert self._vault is not None
        for branch in self._vault.branches:
            if branch.info.name == name:
                branch.vanish()
                self._vault.unplugged(branch)
        self._plugged.set()

    async def stop_moves(self) -> None:
        """Before `stop`: what is moved in the background may end, within the grace period."""
        assert self._vault is not None
        await self._vault.background.stop(self._options.moves.grace_seconds)

    def moves(self) -> list[MoveView]:
        """The moves in the background."""
        return [] if self._vault is None else self._vault.background.views()

    async def cancel_move(self, move_id: str) -> bool:
        """Take a move in the background back; False if there is none of that id, or it is too late."""
        return self._vault is not None and await self._vault.background.cancel(move_id)

    def on_move_end(self, tell: Callable[[Record], None]) -> None:
        """Call `tell`, in the trio thread, with the record of each background move that has ended."""
        assert self._vault is not None
        self._vault.background.on_end = tell

    async def restrict(self, roots: Mapping[str, Limit]) -> None:
        """The policy has come to another outcome: from now on these limits hold, by branches' names."""
        assert self._vault is not None
        assert self._limits is not None
        await restrict(self._vault, self._limits, roots)

    def stop(self) -> None:
        """Make `run` return. To be called in the trio thread."""
        pyfuse3.terminate()

    def close(self) -> None:
        """Unmount, and close every descriptor."""
        assume(AGENT)  # the last request's caller need not be allowed to reach the mount point
        if self._mounted:
            self._mounted = False
            pyfuse3.close(unmount=True)
            # Only now that nobody serves it any more: to write back a page would wait for us.
            if self._unmounts and is_mounted(self._mountpoint):
                with contextlib.suppress(OSError):
                    unmount(self._mountpoint, lazy=True)
        if self._vault is not None:
            self._vault.close()
            self._vault = None

    def foreign_counts(self) -> dict[str, int]:
        """Folders that are watched for foreign changes, and what became of those heard of."""
        return {} if self._vault is None else asdict(self._vault.foreign.counts)

    def branch_states(self) -> dict[str, MountState]:
        """The state of every branch, by its name."""
        if self._vault is None:
            return {}
        return {branch.info.name: branch.state for branch in self._vault.branches[1:]}


def _allow_many_descriptors() -> int:
    """Raise the limit of open descriptors as far as it goes; answers how many that is, in reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536


def _read_further_ahead(mountpoint: str) -> None:
    """Let the kernel read large files 1 MiB at a time, not 128 KiB. Only root can, with a writable sysfs."""
    for entry in mountinfo.read():
        if entry.path == mountpoint and entry.fstype == OWN_FSTYPE:
            with contextlib.suppress(OSError), open(_READ_AHEAD.format(entry.device), "w") as file:
                file.write("1024")
