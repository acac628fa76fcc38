"""SIGKILL at any step that a function takes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What Python does to files; it tells of each before the step itself.
STEPS = {"open", "os.rename", "os.mkdir", "os.remove"}


def killed_at(number: int, home: Path, step: Callable[[], object]) -> bool:
    """Do `step` in a process that is killed before its step `number`; whether there was one.

    Steps are what is done to files below `home`, links that are made, and every process that is started.
    """
    pid = os.fork()
    if pid == 0:
        count = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            on_file = event in STEPS and str(arguments[0]).startswith(str(home))
            # By a folder's descriptor, the name alone tells nothing.
            by_folder = event == "os.symlink" or (event == "os.remove" and arguments[1] != -1)
            if on_file or by_folder or event == "subprocess.Popen":
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        step()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0
