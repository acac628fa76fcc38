"""Reading and writing JSON that another program may be writing at that moment."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from session_agent.desktop import jsonfile
from session_agent.desktop.changes import Change, FileChangedError, unless_changed
from session_agent.errors import UserFileError
from tests.support.branches import branches
from tests.support.obsidian import Vault, changed, problems


def test_what_another_program_has_written_since_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "app.json"
    path.write_text('{"a": 1}')
    document = jsonfile.load(str(path), dict)
    path.write_text('{"a": 2}')
    with pytest.raises(FileChangedError, match="written by another program"):
        jsonfile.replace_value(str(path), document, {"ours": 1})
    assert path.read_text() == '{"a": 2}'
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    with pytest.raises(FileChangedError):
        jsonfile.replace_value(str(path), document, {"ours": 1})


def test_it_is_tried_anew_a_few_times(tmp_path: Path) -> None:
    path = tmp_path / "app.json"
    seen = []

    def step() -> Change:
        document = jsonfile.load(str(path), dict)
        seen.append(document.value)
        if len(seen) < 3:
            path.write_text(json.dumps({"user": len(seen)}))  # Obsidian, meanwhile
        jsonfile.replace_value(str(path), document, {**(document.value or {}), "ours": 1})  # type: ignore[dict-item]
        return Change("", "", True)

    assert unless_changed(step).changed
    assert json.loads(path.read_text()) == {"user": 2, "ours": 1}
    assert seen == [None, {"user": 1}, {"user": 2}]


@pytest.mark.parametrize("first", [b"", b'{"theirs": '])
def test_a_file_that_is_being_written_in_place_is_awaited(
    tmp_path: Path, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonfile, "_SETTLE_SECONDS", 20.0)
    vault = Vault(tmp_path)
    vault.write("app", first)
    rest = threading.Timer(0.2, lambda: vault.write("app", {"theirs": 1}))
    rest.start()
    try:
        changes = vault.apply(branches("wiki"))
    finally:
        rest.join()
    assert problems(changes) == []
    assert "app.json" in changed(changes)
    assert vault.read("app")["theirs"] == 1
    assert next(iter(vault.read("app"))) == "theirs"


@pytest.mark.parametrize("text", ['{"a": 1e999}', '{"a": -1e999}', "[" * 101 + "]" * 101])
def test_what_could_not_be_written_again_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match=r"too large|too deeply"):
        jsonfile.parse(text.encode())


def test_deep_is_not_too_deep(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" * 99 + "]" * 99)
    assert jsonfile.load(str(path), list).value is not None
    with pytest.raises(UserFileError, match="holds a list"):
        jsonfile.load(str(path), dict)
