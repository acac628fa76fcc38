"""A failpoint at every system call, in whatever code is running, without patching it.

Python tells a profile function of each call of a built-in function before it makes it. What happens
there happens instead of the call: the process dies, or the call fails.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

# What answers from the process's own memory: a failure there tells nothing. And close: a descriptor
# whose close has failed is gone on Linux, but a call that was not made would leave it open.
_NO_STEP = frozenset({"close", "fspath", "strerror", "_exit", "_raise"})
_BY_CTYPES = "fsutil/syscalls.py"

Action = Callable[[str], None]


@contextmanager
def steps(action: Action) -> Iterator[None]:
    """Call `action` with the name of each system call in this thread, just before it is made.

    What it raises is raised instead of the call.
    """

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        name = ""
        if event == "c_call" and argument.__module__ == "posix":
            name = argument.__name__
        elif event == "call" and frame.f_code.co_filename.endswith(_BY_CTYPES):
            name = frame.f_code.co_name
        if name and name not in _NO_STEP:
            action(name)

    def watch_again(_frame: FrameType, event: str, _argument: object) -> Any:
        # A profile function that raises is dropped by the interpreter.
        if event == "exception" and sys.getprofile() is None:
            sys.setprofile(watch)
        return watch_again

    before = sys.gettrace()
    sys.settrace(watch_again)
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)
        sys.settrace(before)


def at(name: str, action: Callable[[], object], count: int = 1) -> Action:
    """For `steps`: calls `action` before the system call `name` is made for the `count`th time."""
    met = 0

    def step(called: str) -> None:
        nonlocal met
        met += called == name
        if called == name and met == count:
            action()

    return step


def record(function: Callable[[], object]) -> list[str]:
    """The names of the system calls that `function` makes, in their order."""
    names: list[str] = []
    with steps(names.append):
        function()
    return names


@contextmanager
def failing(
    number: int, errno: int, *, only: Collection[str] = (), lasting: bool = False
) -> Iterator[None]:
    """Let the system call of that number (from 0 on) fail with `errno`; with `lasting`, all after it too.

    `only`: count and fail the calls of these names alone.
    """
    count = 0

    def action(name: str) -> None:
        nonlocal count
        if only and name not in only:
            return
        count += 1
        if count == number + 1 or (lasting and count > number):
            raise OSError(errno, f"{os.strerror(errno)} (injected at {name}, step {number})")

    with steps(action):
        yield


def killed_at(number: int, function: Callable[[], object]) -> bool:
    """Run `function` in a child that dies just before its system call of that number.

    False if it was through before it came to that.
    """
    pid = os.fork()
    if pid == 0:
        _die_at(number, function)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"step {number} ended with {code}"
    return code != 0


def _die_at(number: int, function: Callable[[], object]) -> NoReturn:
    count = 0

    def action(_name: str) -> None:
        nonlocal count
        count += 1
        if count == number + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        with steps(action):
            function()
        status = 0
    finally:
        os._exit(status)
