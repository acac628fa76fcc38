"""SIGKILL while the desktop's files are written, at every step: the next run ends where one unkilled does."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from session_agent.desktop import bookmarks, obsidian, obsidian_registry, rooms
from session_agent.desktop.changes import Change
from session_agent.desktop.memory import Memory
from session_agent.settings_types import ObsidianSettings
from tests.support.branches import branches
from tests.support.kills import killed_at

USERS = {
    "root/.obsidian/app.json": {"vimMode": True, "attachmentFolderPath": "engineering/files"},
    "root/.obsidian/templates.json": {"folder": "engineering/t"},
    "root/.obsidian/community-plugins.json": ["mine"],
    "root/.obsidian/bookmarks.json": {"items": [{"type": "file", "path": "a.md"}]},
    ".config/obsidian/obsidian.json": {
        "vaults": {"00": {"path": "/x", "ts": 1}},
        "frame": "native",
    },
}
BOOKMARKS = ".config/gtk-3.0/bookmarks"
TEMPLATES: dict[str, dict[str, Any]] = {
    "first": {
        "app.json": {"spellcheck": True, "deep": {"a": 1, "b": 1}},
        "daily-notes.json": {"folder": "engineering/days"},
        "community-plugins.json": ["dataview", "tasks"],
        "snippets/a.css": "first",
        "snippets/b.css": "first",
    },
    "second": {
        "app.json": {"deep": {"a": 2}, "trashOption": "none"},
        "daily-notes.json": {"folder": "engineering/days", "format": "Y"},
        "community-plugins.json": ["dataview", "kanban"],
        "snippets/a.css": "second",
        "themes/c.css": "second",
    },
}
MOUNTED = {"first": ("engineering", "wiki:ro"), "second": ("wiki", "new")}


def write_all(home: Path, which: str) -> list[Change]:
    memory, config = Memory(str(home / "state")), str(home / ".config")
    found = branches(*MOUNTED[which])
    terms = rooms.Terms(f"{config}/session-agent/rooms.yaml", "/vault", username="ann")
    template = ObsidianSettings(str(home.parent / which))
    return [
        bookmarks.apply(config, "/vault", found, memory),
        *obsidian.apply(str(home / "root"), found, memory, obsidian.Terms(template)),
        *obsidian_registry.register(str(home), config, "/vault", memory),
        rooms.apply(rooms.rooms(found, terms), terms, memory),
    ]


@pytest.fixture
def base() -> Iterator[Path]:
    # Thousands of fsyncs would take a disk minutes.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="session-agent-test-", dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def home(base: Path) -> Path:
    """A home in which a user has settings, and an agent was once."""
    made = base / "home"
    for name, value in USERS.items():
        put(made / name, json.dumps(value))
    put(made / BOOKMARKS, "file:///x Mine\n")
    for which, files in TEMPLATES.items():
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            put(base / which / name, text)
    finish(made, "first")
    return made


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def finish(home: Path, which: str) -> None:
    changes = write_all(home, which)
    assert [change.problem for change in changes if change.problem] == []
    assert not any(change.changed for change in write_all(home, which))


def files(home: Path) -> dict[str, bytes]:
    """All content that somebody sees, without the times in it."""
    found = {}
    for path in home.rglob("*"):
        if path.is_file() and not path.name.startswith(".session-agent-new-"):
            data = path.read_bytes()
            found[str(path.relative_to(home))] = re.sub(rb'"(ctime|ts)": \d{10,}', b"", data)
    return found


def test_a_kill_at_any_step(home: Path, base: Path) -> None:
    start = base / "start"
    shutil.copytree(home, start)
    first = files(home)
    finish(home, "second")
    second = files(home)
    assert json.loads(second["root/.obsidian/templates.json"]) == {"folder": "_inbox"}
    finish(home, "first")
    again = files(home)
    assert json.loads(again["root/.obsidian/templates.json"]) == {"folder": "engineering/t"}
    number = 1
    while True:
        shutil.rmtree(home)
        shutil.copytree(start, home)
        if not killed_at(number, home, partial(write_all, home, "second")):
            break
        for name, data in files(home).items():
            if not name.startswith("state/"):
                assert data in (first.get(name), second.get(name)), (number, name)
        # A second kill where the next run repairs what the first has left, then what must come of it.
        killed_at(number // 2, home, partial(write_all, home, "second"))
        finish(home, "second")
        assert files(home) == second, number
        finish(home, "first")
        assert files(home) == again, number
        number += 1
    assert number > 50
