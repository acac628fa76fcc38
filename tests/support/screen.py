"""What is on the screen of a test's desktop, and a hand on its mouse and keyboard."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.desktop import Bus, process, wait_until

_READER = Path(__file__).with_name("accessible.py")
_START = 20.0  # seconds
_DRAG_STEPS = 12
COMMANDS = ("Xvfb", "thunar", "xdotool", "import", "convert")


@dataclass(frozen=True)
class Part:
    """Something shown: what it is, its name, and its place in pixels."""

    role: str
    name: str
    x: int
    y: int
    width: int
    height: int

    @property
    def middle(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.height // 2

    @property
    def shown(self) -> bool:
        return self.x >= 0 and self.y >= 0 and self.width > 1 and self.height > 1


class Screen:
    """The screen of the desktop on `bus`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def parts(self, *roles: str) -> list[Part]:
        """Everything shown in one of these roles, in the programs' order."""
        source = _READER.read_text(encoding="utf-8")
        lines = self._bus.run("/usr/bin/python3", "-W", "ignore", "-c", source).splitlines()
        parts = [Part(*json.loads(line)) for line in lines]
        return [part for part in parts if part.shown and (not roles or part.role in roles)]

    def find(self, name: str, *roles: str) -> Part:
        """The part of that name, once it is shown; the largest of several."""
        found: list[Part] = []

        def look() -> bool:
            found[:] = [part for part in self.parts(*roles) if part.name == name]
            return bool(found)

        wait_until(look, f"{name} on the screen")
        return max(found, key=lambda part: part.width)

    def hand(self, *words: str | int) -> str:
        """xdotool."""
        done = subprocess.run(
            ["xdotool", *map(str, words)],
            env=self._bus.environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=_START,
        )
        return done.stdout

    def click(self, part: Part) -> None:
        self.hand("mousemove", *part.middle, "click", 1)

    def keys(self, *names: str) -> None:
        self.hand("key", "--delay", 60, *names)

    def drag(self, part: Part, target: Part) -> None:
        """Press on `part`, go to `target` as a hand does, and let go there."""
        (x, y), (to_x, to_y) = part.middle, target.middle
        self.hand("mousemove", x, y, "mousedown", 1)
        for step in range(1, _DRAG_STEPS + 1):
            part_way = step / _DRAG_STEPS
            self.hand("mousemove", int(x + (to_x - x) * part_way), int(y + (to_y - y) * part_way))
            time.sleep(0.03)
        time.sleep(0.3)
        self.hand("mouseup", 1)

    def focus_newest(self) -> str:
        """Without a window manager nobody else gives a new window the keyboard; its id."""
        windows = self.hand("search", "--onlyvisible", "--class", "thunar").split()
        self.hand("windowfocus", "--sync", windows[-1])
        return windows[-1]

    def picture(self, path: Path) -> Path:
        """A screenshot."""
        path.parent.mkdir(parents=True, exist_ok=True)
        environment = {**self._bus.environment, "TMPDIR": "/tmp"}
        subprocess.run(
            ["import", "-window", "root", path], env=environment, check=True, timeout=_START
        )
        return path


def colours(picture: Path, part: Part) -> list[tuple[int, int, int]]:
    """The pixels of that part of a screenshot."""
    box = f"{part.width}x{part.height}+{part.x}+{part.y}"
    done = subprocess.run(
        ["convert", picture, "-crop", box, "+repage", "-depth", "8", "rgb:-"],
        env={**os.environ, "TMPDIR": "/tmp"},
        check=True,
        capture_output=True,
        timeout=_START,
    )
    data = done.stdout
    return [(data[i], data[i + 1], data[i + 2]) for i in range(0, len(data) - 2, 3)]


def count(pixels: Sequence[tuple[int, int, int]], colour: str) -> int:
    """How many pixels are of about that colour ("#rrggbb")."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return sum(
        all(abs(one - other) <= 12 for one, other in zip(pixel, wanted, strict=True))
        for pixel in pixels
    )


@contextlib.contextmanager
def x_server() -> Iterator[str]:
    """A screen of 1000 by 600 pixels; its DISPLAY."""
    reading, writing = os.pipe()
    command = [
        "Xvfb",
        "-displayfd",
        str(writing),
        "-screen",
        "0",
        "1000x600x24",
        "-nolisten",
        "tcp",
        "-noreset",  # else it turns clients away for a moment when the last one has gone
    ]
    try:
        with process(command, environment={"PATH": "/usr/bin:/bin"}, pass_fds=[writing]):
            os.close(writing)
            ready, _, _ = select.select([reading], [], [], _START)
            assert ready, "Xvfb did not start"
            yield f":{os.read(reading, 64).decode().strip()}"
    finally:
        os.close(reading)
