"""The companion: a process of the session user's beside the agent, that deals with the desktop.

The desktop comes up some time after the agent, and may start anew. The companion waits for it, gives
the branches their emblems, and shows a notification when one dies or comes back, and when a move
failed or took long. The agent itself could not: as root it must not act on the user's bus, and a
child of the process that has the branches' files open would tell their servers, when it ends, that
each was closed (see overlay/branches.py). So the companion is forked before any branch is opened, is
the user for good, and hears of branches and moves over a socket. It ends when that is closed.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from session_agent.desktop import emblems
from session_agent.desktop.bookmarks import bookmarks_path
from session_agent.desktop.bus import Desktop, find
from session_agent.desktop.debounce import Debounce
from session_agent.desktop.labels import labels
from session_agent.desktop.memory import Memory
from session_agent.desktop.notify import notify
from session_agent.errors import AgentError
from session_agent.fsutil import bounded
from session_agent.lifecycle.move_status import MoveStatus
from session_agent.lifecycle.notices import ICON_FAILED, notices
from session_agent.lifecycle.report import StepState
from session_agent.lifecycle.session import Place
from session_agent.lifecycle.writers import follow
from session_agent.model import Branch, Mode, MountState

log = logging.getLogger(__name__)

_MESSAGE_LIMIT = 1 << 20  # bytes
_FIRST_LOOK = 1.0  # seconds from one look for the desktop to the next, growing up to the last one
_LAST_LOOK = 10.0
_SECOND_TIME = 20.0  # seconds after which emblems.sh, which runs when the desktop starts, is done
_GATHER = 2.0  # seconds; moves that end within them are told of at once
_MOVES_LIMIT = 1000  # that wait for a desktop; more are not told of
_REDRAW_AFTER = 1.0  # seconds that Thunar may take to look at a folder again
_END_SECONDS = 1.0
_FOLLOW_SECONDS = 2.0  # for the files in the home, and again for those in the vault


class _Message(msgspec.Struct, frozen=True):
    branches: list[Branch] | None = None
    move: MoveStatus | None = None
    fault: str = ""


class Companion:
    """The agent's side. Nothing here waits, or raises if the companion is gone."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection

    def tell(self, branches: Sequence[Branch]) -> None:
        """What the branches are now: all of them, each time."""
        self._send(_Message(branches=list(branches)))

    def tell_move(self, move: MoveStatus) -> None:
        """A move has ended that the user should hear of."""
        self._send(_Message(move=move))

    def tell_fault(self, text: str) -> None:
        """The vault is served no more."""
        self._send(_Message(fault=text))

    def _send(self, message: _Message) -> None:
        # Full, or gone: it hears of the next change, or cannot be helped.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            # Through `json`, as a path that is not UTF-8 holds lone surrogates.
            self._connection.send(json.dumps(msgspec.to_builtins(message)).encode("ascii"))

    def end(self) -> None:
        """End it, if need be by force. One that is stuck in a home that hangs is left to the system."""
        self._connection.close()
        with contextlib.suppress(ChildProcessError):
            if not self._ended_within(_END_SECONDS):
                os.kill(self.pid, signal.SIGKILL)
                self._ended_within(_END_SECONDS)

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def start(place: Place, cloud_mounts: str = "") -> Companion:
    """Fork the companion. To be called before any branch is opened, and before any thread is started."""
    # See writers: the session user may not be able to read the interpreter's library.
    codecs.lookup("utf-8-sig")
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    pid = bounded.start_for_good(
        lambda: _Work(place, its, cloud_mounts).run(), place.user, keep={its.fileno(), 2}
    )
    its.close()
    return Companion(pid, ours)


class _Work:
    """The companion's side."""

    def __init__(self, place: Place, connection: socket.socket, cloud_mounts: str) -> None:
        self._place = place
        self._cloud_mounts = cloud_mounts
        self._connection = connection
        self._memory = Memory(place.state_dir)
        self._branches: list[Branch] = []
        self._modes: dict[str, Mode] | None = None
        self._debounce = Debounce()
        self._desktop: Desktop | None = None
        self._process = -1  # a descriptor of the desktop's process
        self._look_at = 0.0
        self._look_after = _FIRST_LOOK
        self._again_at: float | None = None
        self._redraw_at: float | None = None
        self._notification = 0
        self._moves: list[MoveStatus] = []
        self._tell_moves_at: float | None = None

    def run(self) -> None:
        """Until the agent is gone."""
        while True:
            watched = [self._connection.fileno(), *([self._process] if self._process >= 0 else [])]
            ready, _, _ = select.select(watched, [], [], self._patience())
            if self._connection.fileno() in ready and not self._listen():
                return self._tell_moves()
            if self._process in ready:
                self._desktop_ended()
            self._do_what_is_due()

    def _patience(self) -> float | None:
        """Seconds until there is something to do; None if only events can bring it."""
        times = [self._again_at, self._redraw_at, self._debounce.next_time()]
        if self._desktop is not None:
            times.append(self._tell_moves_at)
        if self._desktop is None and self._branches:
            times.append(self._look_at)
        due = min((when for when in times if when is not None), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _listen(self) -> bool:
        """Take in what the agent says; False if it has gone."""
        data = self._connection.recv(_MESSAGE_LIMIT)
        if not data:
            return False
        message = msgspec.convert(json.loads(data), _Message)
        if message.branches is not None:
            self._take_branches(message.branches)
        if message.move is not None and len(self._moves) < _MOVES_LIMIT:
            self._moves.append(message.move)
            self._tell_moves_at = self._tell_moves_at or time.monotonic() + _GATHER
        if message.fault and self._desktop is not None:
            try:
                notify(self._desktop, "The vault is not available", message.fault, icon=ICON_FAILED)
            except AgentError as error:
                log.warning("%s", error)
        return True

    def _take_branches(self, branches: list[Branch]) -> None:
        known = {branch.name for branch in self._branches}
        modes = {branch.name: branch.mode for branch in branches}
        if self._modes is not None and modes != self._modes:
            self._follow(branches)
        self._modes = modes
        self._branches = branches
        up = {branch.name: branch.state is MountState.ALIVE for branch in self._branches}
        self._debounce.see(up, time.monotonic())
        if known != up.keys() and self._desktop is not None:
            self._again_at = time.monotonic()

    def _follow(self, branches: list[Branch]) -> None:
        """The vault shows other branches than it did: bookmarks, Obsidian and rooms follow."""
        reports = follow(self._place, branches, self._cloud_mounts, time_limit=_FOLLOW_SECONDS)
        for report in reports:
            if report.state is not StepState.OK:
                log.warning("%s: %s", report.name, report.detail)
            elif report.changed:
                log.info("%s: changed", report.name)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        changes = self._debounce.take(now)
        if self._desktop is None and self._branches and now >= self._look_at:
            self._look()
        elif self._desktop is not None and (changes or (self._again_at or now + 1) <= now):
            self._again_at = None
            self._give_emblems(self._desktop)
        if changes and self._desktop is not None:
            self._notify(self._desktop, changes)
        if self._tell_moves_at is not None and now >= self._tell_moves_at:
            self._tell_moves()
        if self._redraw_at is not None and now >= self._redraw_at:
            self._redraw_at = None
            # Thunar reads its bookmarks anew, and draws the side pane.
            with contextlib.suppress(OSError):
                os.utime(bookmarks_path(self._place.config_home))

    def _look(self) -> None:
        self._desktop = find(self._place.user.uid)
        if self._desktop is not None:
            try:
                self._process = os.pidfd_open(self._desktop.pid)
            except OSError:  # it has ended since
                self._desktop = None
        if self._desktop is None:
            self._look_at = time.monotonic() + self._look_after
            self._look_after = min(_LAST_LOOK, 1.5 * self._look_after)
            return
        log.info("the desktop is process %d", self._desktop.pid)
        self._give_emblems(self._desktop)
        self._again_at = time.monotonic() + _SECOND_TIME

    def _desktop_ended(self) -> None:
        log.info("the desktop has ended")
        os.close(self._process)
        self._process, self._desktop = -1, None
        self._look_after, self._look_at = _FIRST_LOOK, time.monotonic() + _FIRST_LOOK
        self._again_at = None

    def _give_emblems(self, desktop: Desktop) -> None:
        branches = [
            replace(b, state=MountState.ALIVE if self._debounce.told(b.name) else MountState.DEAD)
            for b in self._branches
        ]
        change = emblems.apply(desktop, self._place.vault, branches, self._memory)
        if change.changed:
            self._redraw_at = time.monotonic() + _REDRAW_AFTER
        if change.problem:
            log.warning("emblems: %s", change.problem)
        elif change.changed:
            log.info("emblems: %s", change.detail)

    def _notify(self, desktop: Desktop, changes: dict[str, bool]) -> None:
        names = labels(self._branches)
        for up in (False, True):
            which = [names[name] for name, state in changes.items() if state is up]
            if not which:
                continue
            try:
                self._notification = notify(
                    desktop,
                    *_wording(which, up=up),
                    icon=emblems.STORAGE if up else emblems.UNAVAILABLE,
                    replaces=self._notification,
                )
            except AgentError as error:
                log.warning("%s", error)

    def _tell_moves(self) -> None:
        """Tell of the moves that have ended; of those that ended before there was a desktop, then."""
        if self._desktop is None:
            return
        told, self._moves, self._tell_moves_at = self._moves, [], None
        for notice in notices(told):
            try:
                notify(self._desktop, notice.summary, notice.body, icon=notice.icon)
            except AgentError as error:
                log.warning("%s", error)


def _wording(names: Sequence[str], *, up: bool) -> tuple[str, str]:
    """A notification's summary and body."""
    one = len(names) == 1
    who = names[0] if one else f"{len(names)} folders"
    if up:
        return f"{who} {'is' if one else 'are'} back", "" if one else ", ".join(names)
    body = "What is in there gives errors for now; everything else goes on."
    return (
        f"{who} {'does' if one else 'do'} not answer",
        body if one else f"{', '.join(names)}. {body}",
    )
