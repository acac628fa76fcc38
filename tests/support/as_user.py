"""Running a step as somebody who is not root, so that permissions mean something."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


def as_user(step: Callable[[], None], uid: int = NOBODY) -> None:
    """Run `step` in a child with the rights of `uid` alone; fails if it raises there."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            step()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must never return into pytest
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "see the child's traceback"


@contextmanager
def home_of(uid: int = NOBODY) -> Iterator[Path]:
    """A folder that belongs to `uid`, whom pytest's own temporary folders keep out."""
    folder = Path(tempfile.mkdtemp())
    try:
        os.chown(folder, uid, uid)
        yield folder
    finally:
        shutil.rmtree(folder)
