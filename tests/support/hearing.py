"""Prints what happens in a folder, as inotify has it, with watchdog's bindings alone; run in containers.

First `ready`, then a line for each event, as inotifywait prints them: `MOVED_TO,ISDIR name`.
"""

from __future__ import annotations

import os
import struct
import sys

from watchdog.observers.inotify_c import InotifyConstants, inotify_add_watch, inotify_init

_EVENTS = ("CREATE", "DELETE", "MODIFY", "ATTRIB", "MOVED_FROM", "MOVED_TO")
_HEADER = struct.Struct("iIII")


def say(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def main() -> None:
    masks = {name: int(getattr(InotifyConstants, f"IN_{name}")) for name in _EVENTS}
    instance = inotify_init()
    if inotify_add_watch(instance, os.fsencode(sys.argv[1]), sum(masks.values())) < 0:
        raise OSError(f"{sys.argv[1]} cannot be watched")
    say(["ready"])
    while data := os.read(instance, 1 << 16):
        lines, position = [], 0
        while position < len(data):
            _, mask, _, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size + length
            name = data[position - length : position].rstrip(b"\0").decode()
            event = next((event for event, bit in masks.items() if mask & bit), f"{mask:#x}")
            folder = ",ISDIR" if mask & InotifyConstants.IN_ISDIR else ""
            lines.append(f"{event}{folder} {name}")
        say(lines)


main()
