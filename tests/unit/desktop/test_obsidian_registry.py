"""Obsidian's list of vaults: ours is in it, and everybody else's as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from session_agent.desktop import obsidian_registry
from session_agent.desktop.changes import Change
from session_agent.desktop.memory import Memory
from session_agent.desktop.merge import Json
from session_agent.errors import UserFileError

BROKEN = [b"{not json", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'"text"', b"3"]


def vault_list(config_home: Path) -> Any:
    return json.loads((config_home / "obsidian" / "obsidian.json").read_bytes())


def register(home: Path, vault: str = "/vault") -> list[Change]:
    memory = Memory(str(home / "state"))
    return obsidian_registry.register(str(home), str(home / ".config"), vault, memory)


def test_the_vault_is_registered_and_opened_once(tmp_path: Path) -> None:
    (change,) = register(tmp_path)
    assert (change.changed, change.problem) == (True, "")
    ((key, entry),) = vault_list(tmp_path / ".config")["vaults"].items()
    assert len(key) == 16
    assert int(key, 16)
    assert (entry["path"], entry["open"]) == ("/vault", True)
    assert entry["ts"] > 1_600_000_000_000
    assert [change.changed for change in register(tmp_path)] == [False]


def test_other_vaults_and_keys_are_untouched(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "obsidian"
    folder.mkdir(parents=True)
    theirs = {"vaults": {"00": {"path": "/x", "ts": 1, "open": True}, "01": 7}, "frame": "native"}
    (folder / "obsidian.json").write_text(json.dumps(theirs))
    register(tmp_path)
    after = vault_list(tmp_path / ".config")
    (ours,) = (entry for key, entry in after["vaults"].items() if key not in theirs["vaults"])
    assert ours["open"]
    assert {
        **after,
        "vaults": {k: v for k, v in after["vaults"].items() if v is not ours},
    } == theirs


def test_a_vault_that_is_listed_keeps_its_id_and_is_opened(tmp_path: Path) -> None:
    theirs: dict[str, Json] = {"vaults": {"beef": {"path": "/vault/", "ts": 1}}}
    after = obsidian_registry.render_vaults(theirs, "/vault", now_ms=2)
    assert after == {"vaults": {"beef": {"path": "/vault/", "ts": 1, "open": True}}}


def test_an_id_that_is_taken_is_not_taken_away() -> None:
    first: Any = obsidian_registry.render_vaults(None, "/vault", now_ms=1)
    (key,) = first["vaults"]
    moved: Any = {"vaults": {key: {"path": "/moved"}}}
    after: Any = obsidian_registry.render_vaults(moved, "/vault", now_ms=1)
    assert after["vaults"][key] == {"path": "/moved"}
    assert len(after["vaults"]) == 2


def test_flatpak_and_snap_get_it_where_they_are(tmp_path: Path) -> None:
    for folder in (
        ".var/app/md.obsidian.Obsidian/config/obsidian",
        "snap/obsidian/current/.config",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (change,) = register(tmp_path)
    assert ".var/app" in change.path
    (tmp_path / "snap/obsidian/current/.config/obsidian").mkdir()
    (tmp_path / ".config/obsidian").mkdir(parents=True)
    assert [change.changed for change in register(tmp_path)] == [True, False, True]


@pytest.mark.parametrize("broken", [*BROKEN, b'{"vaults": []}'])
def test_a_broken_list_is_left_alone(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / ".config" / "obsidian" / "obsidian.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(broken)
    (change,) = register(tmp_path)
    assert change.problem
    assert file.read_bytes() == broken


def test_a_vault_that_obsidian_cannot_name(tmp_path: Path) -> None:
    (change,) = register(tmp_path, "/\udcff")
    assert "not UTF-8" in change.problem


def test_a_broken_vaults_value_raises() -> None:
    with pytest.raises(UserFileError):
        obsidian_registry.render_vaults({"vaults": 3}, "/vault", now_ms=1)
