"""Starting `session-agent serve` so that it outlives its starter, and ending it.

Until the vault is ready the daemon holds a pipe to its starter: it says so there with one line of
JSON. The pipe is its standard error too, so what kills it early is not lost.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

import session_agent
from session_agent.errors import AgentError, ControlError, MountError, TimeLimitError
from session_agent.lifecycle import control, vault
from session_agent.lifecycle.handover import Report
from session_agent.lifecycle.session import Place
from session_agent.model import printable
from session_agent.overlay import connection
from session_agent.redaction import redacted
from session_agent.settings import Loaded

_STOP_SECONDS = 5.0
_QUIT_SECONDS = 2.0
_POLL_SECONDS = 0.05
_NOISE_LIMIT = 64 * 1024  # bytes of standard error that are kept


def start(loaded: Loaded, time_limit: float) -> None:
    """Start the daemon; returns once the vault is usable.

    Raises MountError with the daemon's reason, and TimeLimitError if it is not ready within
    `time_limit` seconds. Then it has been killed.
    """
    deadline = time.monotonic() + time_limit
    reading, writing = os.pipe()
    try:
        process = _spawn(loaded.file, writing)
    except OSError as error:
        os.close(reading)
        raise MountError(f"The agent cannot be started: {error}.") from None
    finally:
        os.close(writing)
    try:
        report, noise = _await_report(reading, deadline)
    except BaseException:
        _kill_started(process)
        raise
    finally:
        os.close(reading)
    if report is not None and report.ready:
        process.returncode = 0  # it is not ours to wait for any more
        return
    _kill_started(process)
    if report is not None:
        raise MountError(report.message, report.hint)
    raise _unexplained(noise, time_limit, late=time.monotonic() >= deadline)


def _kill_started(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # all that it has forked, too: they are a group of their own
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.returncode = -signal.SIGKILL  # stuck in the system; it ends when that lets go


def _spawn(config: str, report_to: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "session_agent", "serve", "--ready-fd", str(report_to)]
    command += ["--config", config] if config else []
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=report_to,
        pass_fds=[report_to],
        start_new_session=True,
        # Where this very package is: `-m` also looks for it in the working directory, and that may
        # be one that the session user writes.
        cwd=Path(session_agent.__file__).parents[1],
    )


def _await_report(pipe: int, deadline: float) -> tuple[Report | None, bytes]:
    """The daemon's report, None if it gave none in time, and all that it wrote."""
    received = b""
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(pipe, 65536)
        if not chunk or len(received) > _NOISE_LIMIT:
            break
        received += chunk
        for line in received.split(b"\n"):
            try:
                return msgspec.json.decode(line, type=Report), received
            except ValueError:
                continue
    return None, received


def _unexplained(noise: bytes, time_limit: float, *, late: bool) -> AgentError:
    if late:
        return TimeLimitError(
            f"The vault was not ready after {time_limit:.1f} s, so its agent was ended.",
            "`session-agent serve` shows in the foreground where it stops.",
        )
    last = noise.decode(errors="backslashreplace").strip().rpartition("\n")[2]
    return MountError(
        f"The agent ended before the vault was ready: {redacted(last) or 'it gave no reason'}",
        "`session-agent serve` shows the whole of it.",
    )


def report(number: int, message: Report) -> None:
    """The daemon's side: tell the starter, who may be gone, and close the descriptor `number`."""
    with suppress(BrokenPipeError):
        os.write(number, json.dumps(msgspec.to_builtins(message)).encode("ascii") + b"\n")
    os.close(number)


def stop(place: Place, *, force: bool = False, grace_seconds: float = 0.0) -> bool:
    """End the agent of this session and unmount the vault; False if there was nothing to do.

    Files that are open in the vault are lost to their programs. Moves under way get `grace_seconds`, and
    as much again if they are just being completed. Raises ControlError if the agent does not end, unless
    `force`: then it is killed.
    """
    running = await_other(place, _STOP_SECONDS, "stop")
    if running is None:
        return _remove_leftover(place)
    if running.pid <= 0:
        raise ControlError(running.problem, "Stop it there.")
    patience = _STOP_SECONDS + 2 * grace_seconds
    if not wait_for_end(running.pid, patience if running.document is not None else 0.5):
        if not force:
            raise ControlError(
                f"The agent (process {running.pid}) does not end. {running.problem}".rstrip(),
                "`session-agent stop --force` kills it.",
            )
        _kill(place, running.pid)
    _remove_leftover(place)
    return True


def _remove_leftover(place: Place) -> bool:
    if not connection.is_mounted(place.vault):
        return False
    return vault.take_over(place.vault, place.user)


def wait_for_end(pid: int, time_limit: float) -> bool:
    """Whether the process ends within `time_limit` seconds."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], time_limit)[0])
    finally:
        os.close(process)


def _kill(place: Place, pid: int) -> None:
    """Kill the agent, and whoever of it goes on as the agent then."""
    for number in (signal.SIGQUIT, signal.SIGKILL, signal.SIGKILL):
        # By SIGQUIT the supervising process kills the other; should it not, that is the agent next.
        if not _signal(place, pid, number):
            return
        running = control.consult(place)
        if running is None or running.pid <= 0:
            return
        pid = running.pid
    raise ControlError(
        f"Process {pid} cannot be killed: it waits for a file system that hangs.",
        f"Root can end that: umount -f -l {printable(place.vault)}",
    )


def _signal(place: Place, pid: int, number: signal.Signals) -> bool:
    """Send it to the agent, and wait a while for its end. False if that is not the agent any more."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Still the same process? Its number may have been given to another one meanwhile.
        running = control.consult(place)
        if running is None or running.pid != pid:
            return False
        signal.pidfd_send_signal(process, number)
        # What passes for an agent need not heed SIGQUIT, and first-launch has no time to lose.
        patience = _QUIT_SECONDS if number == signal.SIGQUIT else _STOP_SECONDS
        select.select([process], [], [], patience)
        return True
    finally:
        os.close(process)


def await_other(
    place: Place, time_limit: float, verb: control.Verb = "status"
) -> control.Running | None:
    """As `control.consult`, but an agent that is just starting is given time to listen."""
    deadline = time.monotonic() + time_limit
    while True:
        running = control.consult(place, verb)
        if running is None or not running.starting or time.monotonic() >= deadline:
            return running
        time.sleep(_POLL_SECONDS)
