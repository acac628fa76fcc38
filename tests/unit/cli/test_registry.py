"""The verb `registry`, and the entry and configs in image/kasm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from session_agent.cli.main import main

KASM = Path(__file__).parents[3] / "image" / "kasm"
LEVELS = ("1-no-privilege", "2-fuse", "3-fuse-handles")


def check(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["registry", "check", *map(str, words)])
    return code, capsys.readouterr().out


def findings(capsys: pytest.CaptureFixture[str], file: Path) -> list[dict[str, str]]:
    _, out = check(capsys, "--json", file)
    (one,) = json.loads(out)["files"]
    assert one["file"] == str(file)
    listed = one["findings"]
    assert isinstance(listed, list)
    return listed


def load(name: str) -> dict[str, Any]:
    value = json.loads((KASM / name).read_text())
    assert isinstance(value, dict)
    return value


class TestVerb:
    def test_exit_codes(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        document = load("workspace.json") | {"run_config": {}, "exec_config": {}}
        fine = tmp_path / "workspace.json"
        fine.write_text(json.dumps(document))
        (tmp_path / "icon.svg").touch()
        assert check(capsys, fine) == (0, f"{fine}: nothing is wrong.\n")
        assert check(capsys, fine, KASM / "workspace.json")[0] == 2
        assert check(capsys, tmp_path / "absent", KASM / "workspace.json", fine)[0] == 1
        assert check(capsys)[0] == 1

    def test_lines(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        file = tmp_path / "a\nb.json"
        file.write_text('{"evil\\u001b[2J": 1}')
        code, out = check(capsys, file)
        assert code == 1
        assert "\x1b" not in out
        assert f"{tmp_path}/a\\nb.json: error: /name: It is missing. Write the image" in out
        assert out.count("\n") == 8

    def test_json(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        file = tmp_path / "workspace.json"
        code, out = check(capsys, "--json", file)
        assert code == 1
        finding = {
            "key": "",
            "severity": "error",
            "message": "It cannot be read: No such file or directory.",
            "remedy": "Name a workspace.json.",
        }
        assert json.loads(out) == {
            "files": [{"file": str(file), "valid": False, "findings": [finding]}]
        }


class TestOurOwn:
    def test_the_notes_explain_every_warning(self, capsys: pytest.CaptureFixture[str]) -> None:
        notes = load("workspace.json")["notes"]
        found = findings(capsys, KASM / "workspace.json")
        names = [one["key"].split("/")[1:3] for one in found]
        assert [name[-1] for name in names] == [
            "devices",
            "cap_add",
            "security_opt",
            "first_launch",
        ]
        assert {one["severity"] for one in found} == {"kasm-warning", "warning"}
        for name in names:
            assert f"{name[-1]}: " in notes or f"{name[0]}: {name[-1]}" in notes

    @pytest.mark.parametrize("level", LEVELS)
    def test_each_level(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, level: str
    ) -> None:
        configs = {name: load(f"{level}.{name}.json") for name in ("run_config", "exec_config")}
        file = tmp_path / "workspace.json"
        file.write_text(json.dumps(load("workspace.json") | configs))
        (tmp_path / "icon.svg").touch()
        keys = [one["key"] for one in findings(capsys, file) if one["severity"] != "warning"]
        flagged = ("devices", "cap_add", "security_opt") if level != LEVELS[0] else ()
        assert keys == [f"/run_config/{name}" for name in flagged]

    def test_the_entry_has_the_second_level(self) -> None:
        document = load("workspace.json")
        assert document["run_config"] == {"hostname": "kasm"} | load("2-fuse.run_config.json")
        assert document["exec_config"] == load("2-fuse.exec_config.json")
