"""The files of an administrator's template, and settings that fall back, where something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from session_agent.desktop import obsidian_template
from session_agent.settings_types import ObsidianPath
from tests.support.as_user import NOBODY, as_user, home_of
from tests.support.branches import branches
from tests.support.obsidian import Vault, changed, problems
from tests.unit.desktop.test_hostile import dangling, fifo, folder, loop, snapshot

FILES: dict[str, bytes] = {
    "app.json": b'{"attachmentFolderPath": "team/files"}',
    "daily-notes.json": b'{"folder": "team/days"}',
    "templates.json": b'{"folder": "team/t"}',
    "plugins/x/data.json": b'{"folder": "team/x"}',
    "plugins/x/main.js": b"code",
    "community-plugins.json": b'["x"]',
}
TEMPLATE: dict[str, object] = {
    "daily-notes.json": {"format": "Y"},
    "templates.json": {"dateFormat": "Y"},
    "plugins/x/data.json": {"on": True},
    "plugins/x/main.js": b"code",
    "community-plugins.json": ["x"],
}
TARGETS = pytest.mark.parametrize("target", list(FILES))


def vault_in(home: Path) -> Vault:
    """One in which team was mounted, so that what leads there falls back now."""
    vault = Vault(home)
    for name, content in TEMPLATE.items():
        vault.give(name, content)
    vault.paths = (ObsidianPath("plugins/x/data.json", "/folder"),)
    with vault.memory.locked() as notes:
        notes.see(["team"])
    return vault


@pytest.mark.timeout(20)
@TARGETS
@pytest.mark.parametrize("make", [fifo, folder, dangling, loop])
def test_something_else_in_a_files_place(
    tmp_path: Path, target: str, make: Callable[[Path], None]
) -> None:
    vault = vault_in(tmp_path)
    path = vault.top / ".obsidian" / target
    path.parent.mkdir(parents=True)
    make(path)
    before = path.lstat()
    told = problems(vault.apply())
    assert told
    assert all(str(path) in problem for problem in told)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    for other in TEMPLATE.keys() - {target}:
        assert (vault.top / ".obsidian" / other).is_file(), other


@pytest.mark.needs_root
@TARGETS
def test_a_file_of_somebody_else_is_left_alone(target: str) -> None:
    with home_of() as home:
        vault = vault_in(home)
        path = vault.top / ".obsidian" / target
        path.parent.mkdir(parents=True)
        subprocess.run(["chown", "-R", str(NOBODY), home], check=True)
        content = FILES[target].replace(b"code", b"root's")
        path.write_bytes(content)

        def step() -> None:
            told = problems(vault.apply())
            assert all("write-protected" in problem for problem in told)
            assert bool(told) == (target not in {"community-plugins.json", "plugins/x/main.js"})

        as_user(step)
        assert (path.read_bytes(), path.stat().st_uid) == (content, 0)


@pytest.mark.needs_root
@TARGETS
def test_a_link_planted_to_a_file_of_root(target: str) -> None:
    with home_of(0) as roots, home_of() as home:
        roots.chmod(0o755)
        secret = roots / "secret"
        secret.write_bytes(FILES[target])
        vault = vault_in(home)
        path = vault.top / ".obsidian" / target
        path.parent.mkdir(parents=True)
        path.symlink_to(secret)

        def step() -> None:
            vault.apply()

        subprocess.run(["chown", "-R", "-h", str(NOBODY), home], check=True)
        as_user(step)
        secret.chmod(0o600)
        as_user(step)
        assert (secret.read_bytes(), secret.stat().st_uid) == (FILES[target], 0)
        assert path.is_symlink()


@pytest.mark.needs_root
def test_no_space_loses_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", tmp_path], check=True)
    try:
        vault = vault_in(tmp_path)
        theirs = {name: data for name, data in FILES.items() if b"team" in data}
        for name, data in theirs.items():
            path = vault.top / ".obsidian" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (vault.top / "_inbox/attachments").mkdir(parents=True)
        with (tmp_path / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(b"x" * 4096):
                pass
        before = snapshot(vault.top)
        changes = vault.apply(branches("wiki"))
        assert changed(changes) == []
        assert "No space" in " ".join(problems(changes))
        assert snapshot(vault.top) == before
        (tmp_path / "filler").unlink()
        assert problems(vault.apply(branches("wiki"))) == []
        assert vault.read("daily-notes") == {"folder": "_inbox", "format": "Y"}
        assert problems(vault.apply(branches("team"))) == []
        for name, data in theirs.items():
            found = json.loads((vault.top / ".obsidian" / name).read_bytes())
            assert {**found, **json.loads(data)} == found
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_invalid_utf8_in_every_file(tmp_path: Path) -> None:
    vault = vault_in(tmp_path)
    names = [name for name in FILES if name.endswith(".json")]
    for name in names:
        vault.write(name.removesuffix(".json"), b'{"a": "\xff"}')
    told = problems(vault.apply())
    assert len(told) == len(names)
    for name in names:
        path = vault.top / ".obsidian" / name
        assert path.read_bytes() == b'{"a": "\xff"}'
        assert any(str(path) in problem for problem in told)


def test_a_template_full_of_nonsense(tmp_path: Path) -> None:
    """It is the administrator's, and still not to be trusted to be right."""
    vault = vault_in(tmp_path)
    for name, content in {
        "app.json": {"attachmentFolderPath": ["x"], "newFileLocation": None, "": {"": {"/~": 1}}},
        "core-plugins.json": [1, None, {"a": 2}],
        "community-plugins.json": [1, "x", ["y"]],
        "bookmarks.json": {"items": 3},
        "daily-notes.json": {"folder": "\0/x", "template": {}},
        "plugins/x/data.json": {"folder": "../../etc"},
    }.items():
        vault.give(name, content)
    vault.apply(branches("wiki"))
    changes = vault.apply(branches("wiki"))
    (problem,) = problems(changes)
    assert "bookmarks.json" in problem
    assert changed(changes) == []
    assert vault.read("app")[""] == {"": {"/~": 1}}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [fifo, folder, dangling, loop])
def test_something_else_in_the_templates_place(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    for name in ("template", "template/app.json", "template/snippets/a.css"):
        base = tmp_path / name.replace("/", "-")
        path = base / name
        path.parent.mkdir(parents=True)
        make(path)
        found = obsidian_template.read(str(base / "template"), root_only=False)
        assert not found.settings
        assert not found.files
        assert found.problems or make is folder


def test_two_agents_at_once(tmp_path: Path) -> None:
    """Each sees other branches, and so lets other settings fall back; all return in the end."""
    vault = vault_in(tmp_path)
    theirs = {"folder": "team/t"}
    vault.write("templates", theirs)
    children = []
    for found in (branches("team"), branches("wiki")):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = int(any(problems(vault.apply(found)) for _ in range(10)))
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    vault.apply(branches("team"))
    assert changed(vault.apply(branches("team"))) == []
    assert vault.read("templates") == {**theirs, "dateFormat": "Y"}
    assert vault.read("community-plugins") == ["x"]
