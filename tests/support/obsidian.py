"""A vault's own folder, and an agent that writes `.obsidian` in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from session_agent.desktop import obsidian
from session_agent.desktop.changes import Change
from session_agent.desktop.memory import Memory
from session_agent.model import Branch
from session_agent.settings_types import ObsidianPath, ObsidianSettings


class Vault:
    """A root branch, the agent's memory, and an administrator's template, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.top = folder / "root"
        self.state = folder / "state"
        self.template = folder / "template"
        self.memory = Memory(str(self.state))
        self.paths: tuple[ObsidianPath, ...] = ()

    def apply(self, found: list[Branch] | None = None) -> list[Change]:
        """Bring it up to date; with the template, if there is one."""
        template = str(self.template) if self.template.exists() else None
        terms = obsidian.Terms(ObsidianSettings(template, self.paths))
        return obsidian.apply(str(self.top), found or [], self.memory, terms)

    def path(self, name: str) -> Path:
        return self.top / ".obsidian" / f"{name}.json"

    def read(self, name: str) -> Any:
        return json.loads(self.path(name).read_bytes())

    def write(self, name: str, value: object) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.path(name).write_bytes(data)

    def change(self, name: str, **values: object) -> None:
        """What a user does in Obsidian."""
        self.write(name, {**self.read(name), **values})

    def give(self, name: str, value: object) -> None:
        """What an administrator does: a file of the template; None removes it."""
        path = self.template / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if value is None:
            path.unlink()
        else:
            path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())


def problems(changes: list[Change]) -> list[str]:
    return [change.problem for change in changes if change.problem]


def changed(changes: list[Change]) -> list[str]:
    return [os.path.basename(change.path) for change in changes if change.changed]
