"""A rename from one branch to another, as the overlay sees it: in one step, copied at once, or accepted.

The move itself (session_agent.moves) runs in a thread and knows neither nodes nor handles. What is too large
to be copied while the caller waits is accepted, and carried out in the background.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from errno import EACCES, EBUSY, EIO, ENOTEMPTY

import msgspec
import trio

from session_agent.fsutil.at import Opened
from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from session_agent.moves.engine import Job
from session_agent.moves.plan import Place, Request, measure
from session_agent.moves.progress import CancelledError
from session_agent.moves.record import Record, State, decode
from session_agent.overlay import calls
from session_agent.overlay.accepted import Moving
from session_agent.overlay.ends import end_of, folder_of
from session_agent.overlay.following import ChangeOver, MoveEnd, find_end, find_lost, frozen, idle
from session_agent.overlay.nodes import FolderNode
from session_agent.overlay.polling import elsewhere
from session_agent.overlay.vault import Vault, error

log = logging.getLogger(__name__)


async def move(
    vault: Vault,
    source_folder: FolderNode,
    source_name: bytes,
    target_folder: FolderNode,
    target_name: bytes,
    flags: int,
    caller: Caller,
) -> None:
    """Rename across branches. OSError as rename(2) gives it; EBUSY if a branch hangs below the source."""
    source, target = (source_folder, source_name), (target_folder, target_name)
    with vault.foreign.ours(source, target):
        await _move(vault, *source, *target, flags, caller)


async def _move(
    vault: Vault,
    source_folder: FolderNode,
    source_name: bytes,
    target_folder: FolderNode,
    target_name: bytes,
    flags: int,
    caller: Caller,
) -> None:
    if vault.branch_below(source_folder, source_name):
        raise error(EBUSY)
    if vault.branch_below(target_folder, target_name):
        raise error(EBUSY if flags & RENAME_EXCHANGE else ENOTEMPTY)
    source = await find_end(vault, source_folder, source_name)
    target = await find_end(vault, target_folder, target_name)
    await vault.background.apart(source, target)
    replaced = await _hold(vault, target)
    # Descriptors of our own: those of the nodes may be closed while the thread is at work.
    fds = [os.dup(await vault.folder_fd(end.folder)) for end in (source, target)]
    places = [
        Place(fd, end.name, path_of(end.folder, end.name))
        for fd, end in zip(fds, (source, target), strict=True)
    ]
    request = Request(places[0], places[1], flags, caller)
    accepted = False
    try:
        job = Job(
            request,
            vault.move_options.ways,
            journal=vault.journal,
            ends=(end_of(source.folder, source.name), end_of(target.folder, target.name)),
        )
        done = await _begin(vault, source, target, job)
        accepted = done == _ACCEPTED
    except OSError:
        if replaced is not None:
            target.branch.close_later(replaced.fd)
        raise
    finally:
        if not accepted:
            for fd in fds:
                os.close(fd)
    if accepted:
        vault.background.begin(Moving(job, source, target, replaced is not None))
    if replaced is None:
        return
    if done == "none" or flags & RENAME_EXCHANGE:
        target.branch.close_later(replaced.fd)
    else:
        vault.hold(replaced, target.branch, (target.folder, target.name))


_ACCEPTED = "accepted"


async def _begin(vault: Vault, source: MoveEnd, target: MoveEnd, job: Job) -> str:
    """Carry out the move, or accept it. Answers the strategy, "none", or that it was accepted."""
    options = vault.move_options
    exchange = bool(job.request.flags & RENAME_EXCHANGE)
    ways = [(source, target)]
    if exchange:
        ways.append((target, source))

    def decide() -> str | None:
        """In a thread: what can be done without copying much; None if it has to be copied now."""
        if job.preflight().nothing_to_do:
            return "none"
        done = job.rename()
        if done is not None or exchange or vault.journal is None:
            return done
        if not measure(job.request.source, options.inline_bytes, options.inline_files).exceeded:
            return None
        job.accept()
        return _ACCEPTED

    with frozen(vault, [old for old, _ in ways]) as settled:
        await idle(vault, [old for old, _ in ways])
        with elsewhere:
            done = await trio.to_thread.run_sync(decide)
        if done in ("none", _ACCEPTED):
            return done
        await find_lost(vault, [old for old, _ in ways])
        over = ChangeOver(vault, ways, job.request, settled)
        if done is not None:
            await over.follow_renamed()
            return done
        vault.background.inline[job] = (source, target)
        with vault.foreign.ours(*zip((source.folder, target.folder), job.waiting, strict=False)):
            done = await _copy(vault, job, over)
        if not over.followed:
            over.follow(job.copied)
        return done


async def _copy(vault: Vault, job: Job, over: ChangeOver) -> str:
    def copy() -> str:
        job.copy()
        return job.finish(over.on_commit).strategy

    with elsewhere:
        try:
            return await trio.to_thread.run_sync(copy)
        except CancelledError:  # access has ended
            raise error(EACCES) from None
        finally:
            del vault.background.inline[job]
            vault.background.look_for_leftover(job.record)
            job.close()


async def resume(vault: Vault, record: Record, user: Caller) -> Moving | None:
    """Go on with a move that an earlier agent has accepted; None if it cannot be done, which is noted.

    With the session user's rights, whoever it was that asked: the journal is that user's file.
    """
    folders: list[FolderNode] = []
    fds: list[int] = []
    try:
        for end in (record.source, record.target):
            folders.append(await folder_of(vault, end, user))
            fds.append(os.dup(await vault.folder_fd(folders[-1])))
        names = [decode(end.name) for end in (record.source, record.target)]
        places = [
            Place(fd, name, path_of(folder, name))
            for fd, name, folder in zip(fds, names, folders, strict=True)
        ]
        request = Request(places[0], places[1], record.flags, user)
        job = Job(request, vault.move_options.ways, journal=vault.journal, record=record)
        ends = [
            await find_end(vault, folder, name) for folder, name in zip(folders, names, strict=True)
        ]
        await vault.background.apart(*ends)
        replaces = await _exists(vault, ends[1])
        with frozen(vault, ends[:1]), elsewhere:
            await idle(vault, ends[:1])
            status = (await trio.to_thread.run_sync(job.preflight)).source
        # Known or not, by its new name from here on.
        ends[0] = replace(ends[0], node=vault.tree.found(folders[0], names[0], status))
    except OSError as failure:
        for fd in fds:
            os.close(fd)
        log.warning("%s cannot be moved: %s", record.source.shown, failure.strerror)
        if vault.journal is not None:
            record = msgspec.structs.replace(record, state=State.FAILED, error=failure.errno or EIO)
            vault.journal.write(record)
            vault.background.on_end(record)
        return None
    moving = Moving(job, ends[0], ends[1], replaces)
    vault.background.begin(moving)
    return moving


async def _exists(vault: Vault, end: MoveEnd) -> bool:
    held = await _hold(vault, end)
    if held is not None:
        end.branch.close_later(held.fd)
    return held is not None


async def _hold(vault: Vault, target: MoveEnd) -> Opened | None:
    try:
        fd = await vault.folder_fd(target.folder)
        return await target.branch.call(AGENT, calls.reference, fd, target.name)
    except FileNotFoundError:
        return None


def path_of(folder: FolderNode | None, name: bytes) -> str:
    """The path in the vault, for messages."""
    parts = [name]
    while folder is not None and folder.parent is not None:
        parts.append(folder.name)
        folder = folder.parent
    return "/".join(os.fsdecode(part) for part in reversed(parts))
