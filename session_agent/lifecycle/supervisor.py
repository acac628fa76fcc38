"""The process that stays: it keeps what cannot be had again, and replaces the one that serves the vault.

Once the overlay covers the branches, their paths lead into it. So what a successor needs is held here: the
branches' roots, the control socket, and the connection to the kernel that the dead one served. While that
is open the vault is no dead mount, only a slow one, until the successor's is mounted over it.

A process that crashes again and again is not started again: the vault then stays a dead mount. That is an
error to every program, where an uncovered vault would be an empty one.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType

from session_agent.errors import AgentError, MountError
from session_agent.lifecycle import handover, listening, vault, worker
from session_agent.lifecycle.arrivals import Arrivals
from session_agent.lifecycle.control import Answer
from session_agent.lifecycle.handover import Handover, Report
from session_agent.lifecycle.privileges import explain
from session_agent.model import MountState, printable
from session_agent.overlay.connection import connect
from session_agent.overlay.standin import StandIn

log = logging.getLogger(__name__)

CRASHES = 5  # within CRASH_SECONDS: then it is given up
CRASH_SECONDS = 60.0
# Seconds until a successor is started, after the first crash, the second, and so on.
DELAYS: Sequence[float] = (0.0, 0.0, 1.0, 3.0)

_STOP = (signal.SIGTERM, signal.SIGINT)
_GIVEN_UP = "session-agent stop --force, then first-launch, start it anew."


class Supervisor:
    """Of one vault. `given` is a handover without a connection and a line."""

    def __init__(self, given: Handover) -> None:
        self._given = given
        self._connection = -1
        self._was_ready = False
        self._crashes: list[float] = []
        self._signals = _Signals()
        self._arrivals = Arrivals(given)
        self._reserved = given.loaded.settings.policy.file is not None
        self._problem: Report | None = None  # why the last worker ended, if it said so

    def run(self, ready: handover.Ready) -> None:
        """Until the vault is unmounted in order. `ready` is called once it answers for the first time.

        Raises an AgentError where it cannot be served at all.
        """
        try:
            while not self._signals.stop:
                status = self._once(ready)
                if status == 0 or self._signals.stop:
                    break
                self._crashed(status)
        finally:
            self._disconnect()
            if not self._signals.kill:
                with suppress(AgentError):
                    vault.take_over(self._given.session.vault, self._given.session.user)
            self._signals.close()

    def _once(self, ready: handover.Ready) -> int:
        """Mount, over the connection of a worker that has died if there is one, and have another serve.

        Answers how it ended, as `os.waitstatus_to_exitcode` says it.
        """
        self._problem = None
        if os.geteuid() == 0:
            # Requests that the dead one had taken end by that; one in the root folder would keep it
            # from being covered.
            self._disconnect()
        try:
            connection = connect(self._given.session.vault, self._connection)
        except MountError as error:
            # It looks at the vault's folder, which nobody answers for once there was a worker.
            told = error if self._was_ready else explain(error, self._given.session.vault)
            self._problem = Report(False, told.message, told.hint)
            return 1
        self._disconnect()
        self._connection = connection
        return self._serve(ready)

    def _disconnect(self) -> None:
        if self._connection >= 0:
            os.close(self._connection)
        self._connection = -1

    def _serve(self, ready: handover.Ready) -> int:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, its:
            warnings = self._given.warnings + self._told()
            pid = worker.start(
                replace(
                    self._given,
                    session=self._arrivals.session,
                    connection=self._connection,
                    line=its,
                    warnings=warnings,
                ),
                close=(ours, *self._signals.sockets),
            )
            its.close()
            process = os.pidfd_open(pid)
            try:
                self._attend(process, ours, ready)
            finally:
                os.close(process)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _attend(self, process: int, line: socket.socket, ready: handover.Ready) -> None:
        """Until the worker has ended."""
        ended = False
        line.setblocking(False)
        while not ended:
            watched = [process, line.fileno(), self._signals.reader.fileno()]
            mounts = self._arrivals.file
            found, _, changed = select.select(watched, [], [mounts], self._arrivals.patience())
            if changed:
                self._arrivals.noticed()
            for plug in self._arrivals.look():
                handover.tell(line, plug)
                if plug.mount.state is MountState.DEAD:
                    os.close(plug.fd)
            if self._signals.reader.fileno() in found:
                self._signals.clear()
                number = signal.SIGKILL if self._signals.kill else self._signals.last
                signal.pidfd_send_signal(process, number)
            ended = process in found
            for report in handover.received(line):
                if not report.ready:
                    self._problem = report
                elif not self._was_ready:
                    self._was_ready = True
                    ready()

    def _crashed(self, status: int) -> None:
        """Return when a successor is to be started, or when none is any more (`stop`)."""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        why = f": {self._problem.message}" if self._problem is not None else ""
        if not self._was_ready:
            early = self._problem or Report(False, f"The agent ended early ({how}).")
            raise MountError(early.message, early.hint)
        log.error("the process that serves the vault has ended by %s%s", how, why)
        now = time.monotonic()
        self._crashes = [when for when in self._crashes if when > now - CRASH_SECONDS] + [now]
        shown = printable(self._given.session.vault)
        if len(self._crashes) < CRASHES:
            log.warning("another takes its place; files open in %s must be opened again", shown)
            delay = DELAYS[min(len(self._crashes), len(DELAYS)) - 1]
            self._wait(delay, "The agent has crashed and is being restarted.", "Ask again soon.")
            return
        times = f"{CRASHES} times within {CRASH_SECONDS:g} s"
        problem = (
            f"The agent has crashed {times}, so it is not started again; {shown} gives errors."
        )
        if self._problem is not None:
            problem += f" The last time: {self._problem.message}"
        log.error("%s", problem)
        self._given.helper.tell_fault(problem)
        self._disconnect()
        self._wait(None, problem, _GIVEN_UP)

    def _wait(self, seconds: float | None, problem: str, hint: str) -> None:
        """Answer whoever asks meanwhile. To be told to stop ends it early."""
        if seconds == 0.0:
            return
        if os.geteuid() == 0:
            self._disconnect()  # errors at once, and no waiting
        if self._connection >= 0:
            with StandIn(self._connection).answering():
                self._answer(seconds, Answer(error=problem, hint=hint))
        else:
            self._answer(seconds, Answer(error=problem, hint=hint))

    def _answer(self, seconds: float | None, answer: Answer) -> None:
        end = None if seconds is None else time.monotonic() + seconds
        control, user = self._given.control, self._given.session.user
        trusted = {0, os.geteuid(), user.uid}
        while not self._signals.stop:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return
            found, _, _ = select.select([control, self._signals.reader], [], [], left)
            if control in found:
                verb, uid = listening.answer_one(control, answer, trusted)
                if verb == "stop" and (uid in (0, os.geteuid()) or not self._reserved):
                    self._signals.stop = True

    def _told(self) -> tuple[str, ...]:
        if not self._crashes:
            return ()
        return ("The agent has crashed and was replaced: files open then must be opened again.",)


class _Signals:
    """SIGTERM and SIGINT: end in order. SIGQUIT: kill the worker, and end; `stop --force` sends it."""

    def __init__(self) -> None:
        self.stop = False
        self.kill = False
        self.last = signal.SIGTERM
        self.reader, self._writer = socket.socketpair()
        self.sockets = (self.reader, self._writer)
        for end in self.sockets:
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (*_STOP, signal.SIGQUIT):
            signal.signal(number, self._take)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.stop = True
        self.last = signal.Signals(number)
        self.kill = self.kill or number == signal.SIGQUIT

    def clear(self) -> None:
        """Forget what has woken us."""
        with suppress(BlockingIOError):
            while self.reader.recv(64):
                pass

    def close(self) -> None:
        """Nobody waits for them any more. They stay without effect: this process is about to end in order,

        and `stop --force` may lose patience meanwhile.
        """
        signal.set_wakeup_fd(-1)
        for end in self.sockets:
            end.close()
