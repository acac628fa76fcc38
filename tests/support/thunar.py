"""Thunar on a desktop of its own, with a session's vault open in it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.desktop import Bus, has_gi, process, session_bus, wait_until
from tests.support.screen import COMMANDS, Part, Screen, x_server
from tests.support.session import ROOT, USER, KasmSession

ARTEFACTS = ROOT / ".cache/artefacts"
MISSING = [name for name in COMMANDS if shutil.which(name) is None]
if not list(Path("/usr/lib").glob("*/girepository-1.0/Atspi-2.0.typelib")):
    MISSING.append("gir1.2-atspi-2.0")
if not has_gi():
    MISSING.append("python3-gi")


@dataclass
class Desk:
    """A session with its vault open in Thunar."""

    session: KasmSession
    bus: Bus
    screen: Screen

    def host(self, branch: str) -> Path:
        """The folder behind a branch."""
        return self.session.base / "host" / branch

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait; if it does not come true there is a picture of what is on the screen instead."""
        try:
            wait_until(condition, what)
        except AssertionError:
            self.screen.picture(ARTEFACTS / "not-as-expected.png")
            raise

    def user_writes(self, path: Path, text: str) -> Path:
        self.bus.run("sh", "-c", 'printf %s "$1" >"$2"', "sh", text, str(path))
        return path

    def open(self, folder: str) -> None:
        """Show a branch in Thunar's window, as a list."""
        for part in self.screen.parts("table cell"):
            if part.name == folder and part.x < 180:
                self.screen.click(part)
                break
        else:
            raise AssertionError(f"{folder} is not in the side pane")
        self.until(
            lambda: [
                f
                for f in self.screen.parts("frame")
                if f.name.lower().startswith(f"{folder.lower()} ")
            ],
            f"{folder} in Thunar",
        )
        self.screen.focus_newest()
        self.screen.keys("ctrl+2")

    def undo(self) -> None:
        """Undo what was done last, once Thunar has noted that it is done."""
        time.sleep(0.5)
        self.screen.focus_newest()
        self.screen.keys("ctrl+z")

    def item(self, name: str) -> Part:
        """A file in Thunar's list, by its narrow name."""
        found = self.screen.find(name, "table cell")
        return Part(found.role, found.name, found.x, found.y, 60, found.height)

    def place(self, name: str) -> Part:
        """An entry of the side pane."""
        return next(p for p in self.screen.parts("table cell") if p.name == name and p.x < 180)


@contextlib.contextmanager
def thunar(session: KasmSession) -> Iterator[Desk]:
    """Start the agent, and Thunar in its vault."""
    with contextlib.ExitStack() as stack:
        stack.callback(session.run, "stop", "--force")
        subprocess.run(["chown", "-R", f"{USER}:{USER}", session.home], check=True)
        display = stack.enter_context(x_server())
        bus = stack.enter_context(session_bus(session.home, USER, display=display))
        session.first_launch(0)
        stack.enter_context(bus.stand_in())
        wait_until(lambda: bus.emblems(session.vault / "wiki"), "emblems")
        log = session.base / "thunar.log"
        command = ["thunar", str(session.vault)]
        stack.enter_context(process(command, environment=bus.environment, uid=USER, log=log))
        screen = Screen(bus)
        wait_until(lambda: screen.parts("frame"), "Thunar")
        screen.hand("windowsize", "--sync", screen.focus_newest(), 900, 560)
        yield Desk(session, bus, screen)
