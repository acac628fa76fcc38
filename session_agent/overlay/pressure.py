"""Whether copying in the background had better wait: because memory is short, or the target's disk is."""

from __future__ import annotations

import os
import re

_MEMORY_PERCENT = 20.0  # of the time that everything waited for memory, over the last ten seconds
_ROOM = 64 << 20  # bytes to be left on the target for others; less on a small disk
_SMALL = 100  # a small disk has to keep this part of its size free


def reason_to_wait(folder: int) -> str:
    """Why copying into the folder had better wait, "" if it need not. May wait for a remote one."""
    if memory_is_short():
        return "the copying waits: memory is short"
    try:
        if disk_is_short(folder):
            return "the copying waits: there is little room on the target"
    except OSError:
        pass  # it is closed by now, or the copying will meet the same error
    return ""


def memory_is_short() -> bool:
    """By the kernel's pressure stall information; False where it gives none."""
    try:
        with open("/proc/pressure/memory", encoding="ascii") as file:
            return stalled_percent(file.read()) > _MEMORY_PERCENT
    except OSError:
        return False


def stalled_percent(text: str) -> float:
    """The share of time in which no task could go on, of Documentation/accounting/psi.rst's `full avg10`."""
    found = re.search(r"^full avg10=([0-9.]+)", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def disk_is_short(folder: int) -> bool:
    """Whether little is left on the folder's file system. May wait for a remote one."""
    room = os.fstatvfs(folder)
    unit = room.f_frsize or room.f_bsize
    wanted = min(_ROOM, room.f_blocks * unit // _SMALL)
    return room.f_blocks > 0 and room.f_bavail * unit < wanted
