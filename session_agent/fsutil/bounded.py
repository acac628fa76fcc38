"""Steps with a time limit: what may hang, or must act as the session user, runs in a child process.

A call into a hung mount cannot be interrupted, and a thread stuck in one blocks the exit of its
process. So each step is a forked child that answers through a pipe. When its time is up it is
killed and left behind; the system buries it whenever the call lets go.

The caller may have other threads and event loops. The child is only ever the thread that forked: it
imports nothing, logs nothing, takes no lock of the caller's and never returns to the caller's code.

A child that acts as the session user can be tampered with by that user, so its answer is data of a
declared type, limited in size, and never code.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import selectors
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeVar

import msgspec

from session_agent.errors import AgentError, TimeLimitError
from session_agent.model import SessionUser

T = TypeVar("T")
K = TypeVar("K")

ANSWER_LIMIT = 4 << 20  # bytes of JSON that a child may answer with
_CHILD_LIFE = 60  # seconds, above any time limit: a child whose parent was killed ends itself
_TEXT_LIMIT = 4000  # characters of an error's text
_BURIAL = 0.02  # seconds that `collect` waits at most for killed children to be gone
_CHUNK = 1 << 16

# Held while forking, so that no child inherits the pipe of a step that another thread is starting;
# and while `_killed` is used.
_lock = threading.Lock()
_killed: set[int] = set()  # children that no longer matter, until the system has ended them


class StepFailedError(AgentError):
    """A step ended with an error nobody expects, or without an answer that can be understood."""


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """A started child. It must be given to `collect` exactly once."""

    pid: int
    pipe: int
    result: type[T]


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    """One line of JSON from the child. `name` is an error class; `detail` a hint or a traceback."""

    kind: Literal["result", "os", "agent", "unexpected"]
    value: Any = None
    number: int = 0
    name: str = ""
    text: str = ""
    detail: str = ""


def run(
    function: Callable[[], T],
    result: type[T],
    *,
    time_limit: float,
    user: SessionUser | None = None,
    keep: Collection[int] = (),
) -> T:
    """What `function()` returns, called in a child; see `start`. `time_limit` is in seconds.

    Raises TimeLimitError, StepFailedError, and the OSError or AgentError that `function` raised.
    """
    outcome = collect({None: start(function, result, user, keep=keep)}, time_limit)[None]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def start(
    function: Callable[[], T],
    result: type[T],
    user: SessionUser | None = None,
    *,
    keep: Collection[int] = (),
) -> Step[T]:
    """Start calling `function` in a child, and do not wait.

    With `user`, and as root, the child is that user with that user's groups and a umask of 022
    before it calls anything; its environment and working directory stay. `result` is the type of
    what `function` returns: anything msgspec can convert, such as a dataclass of str, int, bool and
    lists. Directory fds and sockets of the caller are closed in the child unless listed in `keep`.

    Raises OSError if no process can be started.
    """
    _bury()
    # The lock is released on both sides of the fork: the child can start steps of its own.
    with _lock, warnings.catch_warnings():
        # Python 3.12 warns of fork in a threaded process. The module's text says why it is safe.
        warnings.simplefilter("ignore", DeprecationWarning)
        read_end, write_end = os.pipe()
        try:
            pid = _fork()
        except OSError:
            os.close(read_end)
            os.close(write_end)
            raise
        if pid != 0:
            os.close(write_end)
    if pid == 0:
        _be_the_child(function, write_end, user, keep)
    os.set_blocking(read_end, False)
    return Step(pid, read_end, result)


def start_for_good(
    function: Callable[[], object], user: SessionUser | None, *, keep: Collection[int]
) -> int:
    """A child that calls `function` as `user`, without a time limit and without an answer; its pid.

    As with `start`, but what it raises goes to standard error, if that is in `keep`. Whoever calls
    this looks after the child.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = _fork()
    if pid == 0:
        _be_a_process(function, user, keep)
    return pid


def collect(steps: Mapping[K, Step[T]], time_limit: float) -> dict[K, T | Exception]:
    """The outcome of every step, all awaited together for `time_limit` seconds at most.

    An outcome is the result, or what `run` would raise. No step's child lives on afterwards, except
    one that the system cannot end yet.
    """
    deadline = time.monotonic() + time_limit
    received = {key: bytearray() for key in steps}
    outcomes: dict[K, T | Exception] = {}
    try:
        with selectors.DefaultSelector() as selector:
            for key, step in steps.items():
                selector.register(step.pipe, selectors.EVENT_READ, key)
            remaining = time_limit
            while selector.get_map():
                for ready, _ in selector.select(max(0.0, remaining)):
                    step, buffer = steps[ready.data], received[ready.data]
                    fault = _receive(step.pipe, buffer)
                    if fault is not None:
                        outcomes[ready.data] = fault
                    # A line is an answer. The pipe's end may come later, if others hold it open.
                    elif buffer.endswith(b"\n"):
                        outcomes[ready.data] = _decode(bytes(buffer), step.result)
                    else:
                        continue
                    selector.unregister(ready.fd)
                # Looked at here as well, so that a child that trickles bytes gains no time.
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
    finally:
        _end(steps.values())
    for key in steps.keys() - outcomes.keys():
        outcomes[key] = TimeLimitError(f"No answer within {time_limit:g} s.")
    return {key: outcomes[key] for key in steps}


def _receive(pipe: int, received: bytearray) -> StepFailedError | None:
    """Add what has come to `received`; an error if there can be no answer."""
    try:
        chunk = os.read(pipe, _CHUNK)
    except BlockingIOError:
        return None
    received += chunk
    if not chunk:
        return StepFailedError("A step's process ended without an answer.")
    if len(received) > ANSWER_LIMIT:
        return StepFailedError(f"A step answered with more than {ANSWER_LIMIT} bytes.")
    return None


def _end(steps: Collection[Step[Any]]) -> None:
    for step in steps:
        os.close(step.pipe)
        with contextlib.suppress(ProcessLookupError):
            os.kill(step.pid, signal.SIGKILL)
    ended = {step.pid for step in steps}
    with _lock:
        _killed.update(ended)
    deadline = time.monotonic() + _BURIAL
    while not _bury().isdisjoint(ended) and time.monotonic() < deadline:
        time.sleep(0.001)


def _bury() -> set[int]:
    """Reap what has ended of the killed children. Returns those still there."""
    with _lock:
        for pid in tuple(_killed):
            try:
                gone = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:  # reaped by the caller's own code
                gone = True
            if gone:
                _killed.discard(pid)
        return set(_killed)


def _decode(line: bytes, result: type[T]) -> T | Exception:
    try:
        answer = msgspec.convert(json.loads(line), _Answer)
        if answer.kind == "result":
            return msgspec.convert(answer.value, result, str_keys=True)
    except (ValueError, RecursionError) as error:
        return StepFailedError(f"A step gave an answer that is not understood: {error}")
    text, detail = answer.text[:_TEXT_LIMIT], answer.detail[:_TEXT_LIMIT]
    if answer.kind == "os":
        known = answer.number in errno.errorcode
        name = answer.name or None
        return OSError(answer.number, os.strerror(answer.number) if known else text, name)
    if answer.kind == "agent":
        return _agent_errors().get(answer.name, AgentError)(text, detail)
    failure = StepFailedError(f"A step failed: {answer.name}: {text}")
    failure.add_note(detail)
    return failure


def _agent_errors() -> dict[str, type[AgentError]]:
    found = {AgentError}
    while more := {sub for known in found for sub in known.__subclasses__()} - found:
        found |= more
    return {error.__name__: error for error in found}


# --- below this line runs in the child ------------------------------------------------------------


def _fork() -> int:
    """os.fork with every signal blocked in the child, so that no handler of the caller's runs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _be_the_child(
    function: Callable[[], object], pipe: int, user: SessionUser | None, keep: Collection[int]
) -> NoReturn:
    try:
        gc.disable()  # finalizers of the caller's objects are not for the child to run
        _forget_signals()
        pipe = fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 3)  # out of the way of 0, 1 and 2
        _close_inherited({pipe, *keep})
        with open(pipe, "wb", buffering=0, closefd=False) as answer:
            answer.write(_answer(function, user))
    finally:
        os._exit(0)


def _be_a_process(
    function: Callable[[], object], user: SessionUser | None, keep: Collection[int]
) -> NoReturn:
    status = 1
    try:
        gc.freeze()  # the caller's objects are not for the child to finalize
        _forget_signals()
        signal.alarm(0)
        _close_inherited(keep)
        if user is not None and os.geteuid() == 0:
            _become(user)
        function()
        status = 0
    except BaseException:  # noqa: BLE001 - the child must not return into the caller's code
        traceback.print_exc()
    finally:
        os._exit(status)


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_CHILD_LIFE)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_inherited(keep: Collection[int]) -> None:
    """Let go of what a stuck child must not hold.

    An open /dev/fuse keeps a dead daemon's mount hanging; a pipe on standard output keeps its
    reader waiting; a locked file stays locked; a directory keeps its mount busy. Other files stay
    open: closing one sends FLUSH, and would hang this child if that file's mount hangs.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in {0, 1, 2}.difference(keep):
        os.dup2(nothing, standard)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in keep:
            with contextlib.suppress(OSError):  # the one that listed the folder is gone
                if not _may_hang_on_close(number):
                    os.close(number)


def _may_hang_on_close(number: int) -> bool:
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    target = os.readlink(f"/proc/self/fd/{number}")
    if flags & (os.O_PATH | os.O_DIRECTORY) or not target.startswith("/"):
        return False
    if target.startswith("/dev/"):
        return False
    with open(f"/proc/self/fdinfo/{number}", encoding="utf-8") as info:
        return "lock:" not in info.read()


def _answer(function: Callable[[], object], user: SessionUser | None) -> bytes:
    try:
        if user is not None and os.geteuid() == 0:
            _become(user)
        answer = _Answer("result", msgspec.to_builtins(function(), str_keys=True))
        return _line(answer)
    except AgentError as error:
        return _line(_Answer("agent", None, 0, type(error).__name__, error.message, error.hint))
    except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
        if isinstance(error, OSError) and error.errno:
            name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
            return _line(_Answer("os", None, error.errno, name, str(error.strerror)))
        trace = traceback.format_exc()[-_TEXT_LIMIT:]
        return _line(_Answer("unexpected", None, 0, type(error).__name__, str(error), trace))


def _line(answer: _Answer) -> bytes:
    """Through `json`, because msgspec's own encoder refuses file names that are not UTF-8."""
    return json.dumps(msgspec.to_builtins(answer)).encode("ascii") + b"\n"


def _become(user: SessionUser) -> None:
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    os.umask(0o022)
