"""Prints what the programs on a session bus show, as accessibility (at-spi) has it; Debian's Python.

One line of JSON for each part: role, name, and where it is on the screen: x, y, width, height.
"""

from __future__ import annotations

import json
from typing import Any

import gi  # type: ignore[import-not-found]

gi.require_version("Atspi", "2.0")
from gi.repository import Atspi, GLib  # type: ignore[import-not-found]  # noqa: E402

_DEPTH = 30


def show(part: Any, depth: int) -> None:
    try:
        box = part.get_extents(Atspi.CoordType.SCREEN)
        place = [box.x, box.y, box.width, box.height]
        print(json.dumps([part.get_role_name(), part.get_name(), *place]))
        children = [part.get_child_at_index(i) for i in range(part.get_child_count())]
    except (GLib.Error, AttributeError):  # it has gone meanwhile, or has no place
        return
    for child in children:
        if child is not None and depth < _DEPTH:
            show(child, depth + 1)


def main() -> None:
    Atspi.init()
    desktop = Atspi.get_desktop(0)
    for index in range(desktop.get_child_count()):
        program = desktop.get_child_at_index(index)
        for number in range(program.get_child_count() if program else 0):
            show(program.get_child_at_index(number), 0)


main()
