"""Moves that are carried out after their rename has returned.

From the moment a move is accepted the vault shows the new name and hides the old one, while the file lies
where it lay: the source's node keeps its place in the tree, so whatever is done with the file or below the
folder goes to the source, at no cost. Only names are answered differently (`Shifted`, asked by names and
folders). A thread stages; then the node alone is frozen for as long as late writes are taken over and the
names and handles change over; then it lies where it was shown all the time, and the source is removed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from errno import EBUSY, EIO
from functools import partial
from typing import TYPE_CHECKING

import trio

from session_agent.fsutil.at import remove_tree, stat_at
from session_agent.fsutil.credentials import AGENT, Caller, assume
from session_agent.moves.engine import Job
from session_agent.moves.plan import failed
from session_agent.moves.progress import CancelledError
from session_agent.moves.record import Record, State
from session_agent.overlay.accepted import MoveView, Moving
from session_agent.overlay.ends import end_of
from session_agent.overlay.following import (
    ChangeOver,
    MoveEnd,
    find_lost,
    frozen,
    idle,
    is_below,
)
from session_agent.overlay.nodes import FolderNode, Node, Shifted
from session_agent.overlay.polling import elsewhere
from session_agent.overlay.pressure import reason_to_wait

if TYPE_CHECKING:
    from session_agent.overlay.vault import Vault

log = logging.getLogger(__name__)

_AT_ONCE = 2  # moves that copy at the same time; more would only share the disk
_ROUNDS = 3  # of catching up before it is done while the node is frozen
_LOOK_SECONDS = 1.0  # between two looks at memory and disk, while there are moves
_MOMENT = 1.0  # seconds that something waits for a source that is being removed
_PATIENCE = 20.0  # seconds that a rename waits for a move that it touches


class Background:
    """All moves under way in the background. Only the trio thread touches it."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.live: dict[str, Moving] = {}
        self.inline: dict[
            Job, tuple[MoveEnd, MoveEnd]
        ] = {}  # what is copied while its caller waits
        self._waiting, self._accepted = trio.open_memory_channel[Moving](1 << 16)
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self._stopping = False
        self.on_end: Callable[[Record], None] = lambda _: None
        self.on_leftover: Callable[[Record], None] = lambda _: None

    # What the vault shows

    def begin(self, moving: Moving) -> None:
        """Show the new name, hide the old one, and carry the move out when its turn comes."""
        for node in moving.nodes:
            node.lookups += 1
            self._vault.foreign.expiry.attributes(node.id)  # until now it was heard of
        self.live[moving.record.id] = moving
        _shifted(moving.target.folder).arrivals[moving.target.name] = moving
        _shifted(moving.source.folder).departures[moving.source.name] = moving
        self._waiting.send_nowait(moving)

    def _show_plainly(self, moving: Moving, *, arrival: bool, departure: bool) -> None:
        target, source = moving.target, moving.source
        places = ((target.folder, target.name), (source.folder, source.name))
        self._vault.foreign.settled(*places)
        for folder, names, name, wanted in (
            (target.folder, _shifted(target.folder).arrivals, target.name, arrival),
            (source.folder, _shifted(source.folder).departures, source.name, departure),
        ):
            if wanted and names.get(name) is moving:
                del names[name]
            shifted = folder.shifted
            if shifted is not None and not shifted.arrivals and not shifted.departures:
                folder.shifted = None

    def _end(self, moving: Moving) -> None:
        self._show_plainly(moving, arrival=True, departure=True)
        if self.live.pop(moving.record.id, None) is not None:
            for node in moving.nodes:
                self._vault.tree.forget(node.id, 1)
        moving.arrived.set()
        moving.done.set()

    def above(self, node: Node | None) -> Moving | None:
        """The move that takes this node along, if there is one."""
        if node is not None and self.live:
            for moving in self.live.values():
                top = moving.source.node
                if top is not None and not moving.done.is_set() and is_below(node, top):
                    return moving
        return None

    def shown_parent(self, folder: FolderNode) -> FolderNode:
        """What ".." is of a folder, as the vault shows it."""
        for moving in self.live.values():
            if moving.source.node is folder and not moving.done.is_set():
                return moving.target.folder
        return folder.parent or folder

    def holds(self, parent: FolderNode, name: bytes) -> Moving | None:
        """A move that the entry `name` is, or that has one of its ends below it."""
        for moving in self.live.values():
            ends = [moving.source.folder]
            if not moving.arrived.is_set():
                ends.append(moving.target.folder)
            for folder in ends:
                step: Node | None = folder
                while step is not None and step.parent is not None:
                    if step.parent is parent and step.name == name:
                        return moving
                    step = step.parent
        return None

    async def entry(self, moving: Moving, caller: Caller) -> tuple[Node, os.stat_result] | None:
        """The node at the new name, and its status. ENOENT if it was removed behind the vault.

        None if it has arrived, or was taken back, while that was asked for.
        """
        source = moving.source
        try:
            fd = await self._vault.folder_fd(source.folder)
            status = await source.branch.call(caller, stat_at, fd, source.name)
        except OSError:
            if moving.is_shown:
                raise
            return None
        if not moving.is_shown:  # the node may have another file by now
            return None
        return self._vault.tree.found(source.folder, source.name, status), status

    async def over(self, moving: Moving) -> None:
        """Wait for the end of a move that stands in another one's way. EBUSY if that takes too long."""
        with trio.move_on_after(_PATIENCE):
            await moving.done.wait()
            return
        raise failed(EBUSY)

    # What is done to moves

    async def vacated(self, moving: Moving) -> None:
        """What is moved away has to be gone: wait if it is about to go. EBUSY if that will take longer."""
        if moving.committing:
            with trio.move_on_after(_MOMENT):
                await moving.done.wait()
        if not moving.done.is_set():
            raise failed(EBUSY)

    async def apart(self, source: MoveEnd, target: MoveEnd) -> None:
        """Wait until no move under way touches these ends. EBUSY if that takes too long."""
        while True:
            met = next((one for one in self.live.values() if _touch(one, source, target)), None)
            if met is None:
                return
            await self.over(met)

    async def finished(self, moving: Moving) -> None:
        """Wait for the end of a move: what fsync promises. EIO if it failed."""
        await moving.arrived.wait()
        if moving.record.state is State.FAILED:
            raise failed(EIO)

    async def withdraw(self, moving: Moving) -> bool:
        """Take the move back, since its file is to be renamed or removed: it lies at the old name again.

        False if it is too late: then it lies at the new name now.
        """
        await self._vault.settled(moving.source.node)
        if moving.done.is_set() or moving.committing:
            await moving.done.wait()
            return False
        moving.job.progress.cancel()
        self._end(moving)
        record = moving.record

        def note() -> None:
            assume(AGENT)
            # Until its thread has removed the copy.
            moving.job.end(State.CANCELLED, leftover=moving.job.may_have_staged)

        await trio.to_thread.run_sync(note)
        log.info("%s: its move is taken back", record.source.shown)
        return True

    async def drop_replaced(self, moving: Moving) -> None:
        """Remove what a move that was taken back would have replaced."""
        if moving.replaces:
            target = moving.target
            fd = await self._vault.folder_fd(target.folder)
            with self._vault.foreign.ours((target.folder, target.name)):
                await target.branch.call(AGENT, remove_tree, fd, target.name)

    async def relocated(self) -> None:
        """A folder was renamed within its branch: records name the ends by where they lie now."""
        changed = []
        for moving in self.live.values():
            ends = (
                end_of(moving.source.folder, moving.source.name),
                end_of(moving.target.folder, moving.target.name),
            )
            if ends != (moving.record.source, moving.record.target):
                changed.append((moving.job, ends))

        def note() -> None:
            assume(AGENT)
            for job, ends in changed:
                job.relocate(*ends)

        if changed:
            await trio.to_thread.run_sync(note)

    async def cancel(self, move_id: str) -> bool:
        """Take a move back: its file has its old name again. False if there is none, or it is too late."""
        moving = self.live.get(move_id)
        return moving is not None and not moving.committing and await self.withdraw(moving)

    def views(self) -> list[MoveView]:
        """Every move under way."""
        return [moving.view for moving in self.live.values()]

    # Carrying out

    async def run(self) -> None:
        """Carry out what is accepted, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for moving in self._accepted:
                nursery.start_soon(self._one, moving)
                nursery.start_soon(self._mind_others, moving)

    async def _mind_others(self, moving: Moving) -> None:
        """Let the move pause while memory or its disk is short."""
        progress, folder = moving.job.progress, moving.job.request.target.folder
        while not moving.done.is_set():
            with trio.move_on_after(_LOOK_SECONDS):
                await moving.done.wait()
                return
            moving.paused = await trio.to_thread.run_sync(
                reason_to_wait, folder, abandon_on_cancel=True
            )
            if bool(moving.paused) is not progress.paused:
                log.info(
                    "%s: %s", moving.record.source.shown, moving.paused or "the copying goes on"
                )
            if moving.paused and not moving.committing:
                progress.pause()
            else:
                progress.go_on()

    async def stop(self, grace_seconds: float) -> None:
        """Let what is under way end, for so long; then leave the rest to the next start."""
        with trio.move_on_after(grace_seconds):
            for moving in list(self.live.values()):
                await moving.done.wait()
        self._stopping = True
        for moving in list(self.live.values()):
            if not moving.committing:
                moving.job.progress.cancel()
        with trio.move_on_after(grace_seconds):
            for moving in list(self.live.values()):
                if moving.committing:
                    await moving.done.wait()

    async def _one(self, moving: Moving) -> None:
        async with self._limiter:
            try:
                if not moving.done.is_set():
                    await self._carry_out(moving)
                else:
                    await self._tidy(moving)
            finally:
                moving.job.close()
                for place in (moving.job.request.source, moving.job.request.target):
                    os.close(place.folder)
            self.on_end(moving.record)

    async def _carry_out(self, moving: Moving) -> None:
        try:
            await _in_thread(moving.job.stage_once)
            rounds = _ROUNDS
            while not await self._change_over(moving, last=rounds == 0):
                rounds -= 1
                await _in_thread(moving.job.refresh)
        except CancelledError:
            await self._give_up(moving, State.CANCELLED, 0)
        except OSError as failure:
            if moving.done.is_set():  # taken back, and its file has been removed since
                await self._give_up(moving, State.CANCELLED, 0)
                return
            log.warning("%s cannot be moved: %s", moving.record.source.shown, failure.strerror)
            await self._give_up(moving, State.FAILED, failure.errno or EIO)
        else:
            moving.arrived.set()
            await _in_thread(moving.job.retire)
            self._end(moving)

    async def _change_over(self, moving: Moving, *, last: bool) -> bool:
        """The commit and the change of nodes and handles, while the node is frozen.

        False if there were writes meanwhile that are to be copied first; the `last` time, that is done here.
        """
        vault, job = self._vault, moving.job
        ends = [moving.source]
        with frozen(vault, ends) as settled:
            if moving.done.is_set():
                raise CancelledError
            await idle(vault, ends)
            await find_lost(vault, ends)
            # At once with its node: what lies at the old name must not be shown at the new one any more.
            show = partial(self._show_plainly, moving, arrival=True, departure=False)
            over = ChangeOver(vault, [(moving.source, moving.target)], job.request, settled, show)
            job.progress.check()
            moving.committing = True
            try:
                if last:
                    await _in_thread(job.catch_up)
                elif not await _in_thread(job.is_true):
                    moving.committing = False
                    return False
                await _in_thread(job.commit)
            except BaseException:
                moving.committing = False
                raise
            await _in_thread(job.change_over, over.on_commit)
            if not over.followed:
                over.follow(job.copied)
        return True

    async def _give_up(self, moving: Moving, state: State, number: int) -> None:
        if self._stopping and state is State.CANCELLED:
            return  # the next start goes on with it
        if not moving.done.is_set():
            await _in_thread(moving.job.abandon, state, number)
            self._end(moving)
            self.look_for_leftover(moving.record)
        else:  # it was taken back: only the copy is left to be removed
            await self._tidy(moving)

    async def _tidy(self, moving: Moving) -> None:
        await _in_thread(moving.job.discard)
        self.look_for_leftover(moving.record)

    def look_for_leftover(self, record: Record | None) -> None:
        """A move has ended without effect: see whether its copy is still to be removed."""
        if record is not None and record.leftover:
            self.on_leftover(record)


async def _in_thread(function: Callable[..., object], *arguments: object) -> object:
    with elsewhere:
        return await trio.to_thread.run_sync(function, *arguments)


def _shifted(folder: FolderNode) -> Shifted:
    if folder.shifted is None:
        folder.shifted = Shifted()
    return folder.shifted


def _touch(moving: Moving, source: MoveEnd, target: MoveEnd) -> bool:
    """Whether the move and a new one with these ends have anything to do with each other."""
    top = moving.source.node
    for end in (source, target):
        if top is not None and is_below(end.folder, top):
            return True
        if end.node is not None and any(
            is_below(folder, end.node) for folder in (moving.source.folder, moving.target.folder)
        ):
            return True
    return False
