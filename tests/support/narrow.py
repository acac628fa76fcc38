"""The kernel's own limits of inotify, made narrow for a test alone: in a user namespace of its own.

What is set there (/proc/sys/user) holds for the namespace; nothing of the machine's is changed.
"""

from __future__ import annotations

import ctypes
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_NEW_USERS, _NEW_MOUNTS = 0x10000000, 0x00020000  # CLONE_NEWUSER, CLONE_NEWNS (sched.h)
_EVERYBODY = "0 0 65536\n"
_SYSTEM = Path("/proc/sys/user")


class NotHereError(Exception):
    """This machine gives nobody a user namespace."""


def allow(*, watches: int | None = None, instances: int | None = None) -> None:
    """In the namespace: how many folders may be watched by each user, and through how many instances."""
    for name, count in (("watches", watches), ("instances", instances)):
        if count is not None:
            (_SYSTEM / f"max_inotify_{name}").write_text(str(count), encoding="ascii")


def narrowed(step: Callable[[], T]) -> T:
    """The result of `step` in a child with namespaces of its own, as their root; what it raises is raised.

    It sees what is mounted now, and what it mounts goes with it. NotHereError where there are none.
    """
    reading, writing = os.pipe()
    mapped, mapping = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer: tuple[object, BaseException | None] = (None, RuntimeError("no answer"))
        try:
            os.close(reading)
            os.close(mapping)
            answer = (_in_child(step, writing, mapped), None)
        except BaseException as failure:  # noqa: BLE001 - the child must never return into pytest
            answer = (None, failure)
        finally:
            os.write(writing, pickle.dumps(answer))
            os._exit(0)
    os.close(writing)
    os.close(mapped)
    with open(reading, "rb") as pipe, open(mapping, "wb") as told:
        if pipe.read(1) == b"+":
            for which in ("gid", "uid"):
                Path(f"/proc/{pid}/{which}_map").write_text(_EVERYBODY, encoding="ascii")
            told.write(b"+")
            told.flush()
            data = pipe.read()
        else:
            data = b""
    os.waitpid(pid, 0)
    if not data:
        raise NotHereError
    result, raised = pickle.loads(data)  # noqa: S301 - from our own child
    if raised is not None:
        raise raised
    return result  # type: ignore[no-any-return]  # what `step` returned


def _in_child(step: Callable[[], T], telling: int, mapped: int) -> T:
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_NEW_USERS | _NEW_MOUNTS):
        os.write(telling, b"-")
        os._exit(0)
    os.write(telling, b"+")
    os.read(mapped, 1)
    return step()
