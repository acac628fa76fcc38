"""An administrator's template below the user's own settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from session_agent.desktop import obsidian, obsidian_template
from session_agent.desktop.dry_run import dry_run
from session_agent.desktop.memory import Memory
from session_agent.settings_types import ObsidianSettings
from tests.support.as_user import NOBODY, as_user, home_of
from tests.support.branches import branches
from tests.support.obsidian import Vault, changed, problems


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def test_it_comes_before_the_agents_own_and_after_the_users(vault: Vault) -> None:
    vault.write("app", {"vimMode": True, "spellcheck": True})
    vault.give("app.json", {"trashOption": "none", "vimMode": False, "deep": {"a": {"b": 1}}})
    assert problems(vault.apply()) == []
    found = vault.read("app")
    assert (found["trashOption"], found["vimMode"], found["deep"]) == (
        "none",
        True,
        {"a": {"b": 1}},
    )
    assert found["newFileFolderPath"] == "_inbox"
    assert list(found)[:2] == ["vimMode", "spellcheck"]
    assert changed(vault.apply()) == []


def test_what_the_administrator_changes_moves_along_and_what_the_user_did_stays(
    vault: Vault,
) -> None:
    vault.give("app.json", {"a": 1, "b": 1, "c": 1, "d": {"x": 1, "y": 1}, "trashOption": "none"})
    vault.apply()
    app = {**vault.read("app"), "b": 5, "d": {"x": 1, "y": 5}}
    del app["c"]
    vault.write("app", app)
    vault.give("app.json", {"a": 2, "b": 2, "c": 2, "d": {"x": 2, "y": 2}, "e": 2})
    assert changed(vault.apply()) == ["app.json"]
    expected = {**app, "a": 2, "d": {"x": 2, "y": 5}, "e": 2, "trashOption": "local"}
    assert vault.read("app") == expected
    assert list(vault.read("app")) == [*app, "e"]
    vault.give("app.json", {})
    vault.apply()
    for gone in ("a", "e"):
        del expected[gone]
    assert vault.read("app") == {**expected, "d": {"y": 5}}
    assert changed(vault.apply()) == []


def test_another_type_of_the_users_stands_in_the_way(vault: Vault) -> None:
    theirs = {"a": 1, "b": {"x": 1}, "userIgnoreFilters": "none"}
    vault.write("app", theirs)
    vault.give("app.json", {"a": {"x": 1}, "b": 2, "userIgnoreFilters": ["x/"]})
    for _ in range(2):
        assert problems(vault.apply()) == []
        assert {**vault.read("app"), **theirs} == vault.read("app")
    assert changed(vault.apply()) == []


def test_lists_that_are_sets_are_merged_by_element(vault: Vault) -> None:
    vault.write("community-plugins", ["mine", "dataview"])
    vault.give("community-plugins.json", ["dataview", "templater-obsidian", "tasks"])
    vault.apply()
    assert vault.read("community-plugins") == ["mine", "dataview", "templater-obsidian", "tasks"]
    vault.write("community-plugins", ["mine", "dataview", "tasks", "other"])
    vault.give("community-plugins.json", ["templater-obsidian", "new"])
    assert changed(vault.apply()) == ["community-plugins.json"]
    assert vault.read("community-plugins") == ["mine", "dataview", "other", "new"]
    assert changed(vault.apply()) == []


def test_a_list_of_filters_of_the_administrators_replaces_the_agents(vault: Vault) -> None:
    vault.apply()
    vault.change("app", userIgnoreFilters=[*vault.read("app")["userIgnoreFilters"], "mine/"])
    vault.give("app.json", {"userIgnoreFilters": ["archive/"]})
    vault.apply()
    assert vault.read("app")["userIgnoreFilters"] == ["mine/", "archive/"]


def test_core_plugins_move_along_in_a_file_of_the_agents_making(vault: Vault) -> None:
    vault.apply()
    vault.change("core-plugins", graph=False)
    vault.give("core-plugins.json", ["file-explorer", "graph", "slides"])
    assert changed(vault.apply()) == ["core-plugins.json"]
    found = vault.read("core-plugins")
    assert (found["slides"], found["graph"], found["daily-notes"]) == (True, False, False)
    shutil.rmtree(vault.template)
    vault.apply()
    found = vault.read("core-plugins")
    assert (found["slides"], found["graph"], found["daily-notes"]) == (False, False, True)


FILES = {
    "plugins/dataview/main.js": b"code\xff" * 1000,
    "plugins/dataview/manifest.json": b'{"id": "dataview", "version": "1"}',
    "themes/Plain/theme.css": b"body {}",
    "workspace.json": b'{"main": {}}',
}


def test_other_files_are_copied_whole(vault: Vault) -> None:
    for name, data in FILES.items():
        vault.give(name, data)
    vault.give("plugins/dataview/data.json", {"depth": 1})
    vault.give(".git/config", b"no setting")
    changes = vault.apply()
    assert problems(changes) == []
    assert changed(changes)[-2:] == ["bookmarks.json", ".obsidian"] or ".obsidian" in changed(
        changes
    )
    settings = vault.top / ".obsidian"
    for name, data in FILES.items():
        assert (settings / name).read_bytes() == data
    assert vault.read("plugins/dataview/data") == {"depth": 1}
    assert not (settings / ".git").exists()
    assert changed(vault.apply()) == []


def test_a_whole_file_is_the_users_once_changed_or_removed(vault: Vault) -> None:
    for name, data in FILES.items():
        vault.give(name, data)
    vault.apply()
    settings = vault.top / ".obsidian"
    (settings / "workspace.json").write_bytes(b"moved about")
    (settings / "themes/Plain/theme.css").unlink()
    for name in FILES:
        vault.give(name, b"2")
    assert changed(vault.apply()) == [".obsidian"]
    assert (settings / "workspace.json").read_bytes() == b"moved about"
    assert not (settings / "themes/Plain/theme.css").exists()
    assert (settings / "plugins/dataview/main.js").read_bytes() == b"2"
    vault.give("plugins/dataview/main.js", None)
    vault.give("workspace.json", None)
    assert changed(vault.apply()) == [".obsidian"]
    assert not (settings / "plugins/dataview/main.js").exists()
    assert (settings / "workspace.json").read_bytes() == b"moved about"
    assert changed(vault.apply()) == []


def test_a_file_of_the_users_from_before_is_left_alone(vault: Vault) -> None:
    theirs = vault.top / ".obsidian/snippets/a.css"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"mine")
    vault.give("snippets/a.css", b"template")
    vault.apply()
    vault.give("snippets/a.css", None)
    vault.apply()
    assert theirs.read_bytes() == b"mine"


def test_bookmarks_begin_with_those_of_the_template(vault: Vault) -> None:
    vault.give("bookmarks.json", {"items": [{"type": "file", "path": "a.md"}]})
    vault.apply(branches("wiki"))
    assert [item["type"] for item in vault.read("bookmarks")["items"]] == ["file", "group"]
    vault.write("bookmarks", {"items": []})
    assert changed(vault.apply(branches("wiki"))) == []


@pytest.mark.parametrize("how", ["gone", "file", "too many", "loop"])
def test_of_a_template_that_cannot_be_read_nothing_is_removed(
    vault: Vault, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.give("app.json", {"x": 1, "newFileLocation": "root"})
    vault.give("appearance.json", {"theme": "obsidian"})
    vault.give("snippets/a.css", b"a")
    vault.apply()
    before = {p: p.read_bytes() for p in vault.top.rglob("*") if p.is_file()}
    settings = ObsidianSettings(str(vault.template))
    if how == "too many":
        monkeypatch.setattr(obsidian_template, "COUNT_LIMIT", 2)
    else:
        shutil.rmtree(vault.template)
    if how == "file":
        vault.template.write_bytes(b"")
    if how == "loop":
        vault.template.symlink_to("template")
    for _ in range(2):
        changes = obsidian.apply(str(vault.top), [], vault.memory, obsidian.Terms(settings))
        (problem,) = problems(changes)
        assert str(vault.template) in problem
        assert changed(changes) == []
        assert {p: p.read_bytes() for p in vault.top.rglob("*") if p.is_file()} == before


def test_what_is_wrong_in_it_is_left_out_and_reported(vault: Vault) -> None:
    vault.give("app.json", {"x": 1})
    vault.give("hotkeys.json", b"{not json")
    vault.give("daily-notes.json", b'{"folder": 1e999}')
    vault.give("appearance.json", {"theme": "obsidian"})
    vault.give("templates.json", ["not an object"])
    (vault.template / "graph.json").symlink_to("/etc/passwd")
    os.mkfifo(vault.template / "types.json")
    told = problems(vault.apply())
    for name in ("hotkeys.json", "daily-notes.json", "graph.json", "types.json", "templates.json"):
        assert any(name in problem for problem in told), name
    assert vault.read("app")["x"] == 1
    assert vault.read("appearance") == {"theme": "obsidian"}
    there = {p.name for p in (vault.top / ".obsidian").iterdir()}
    assert there == {"app.json", "appearance.json", "core-plugins.json"}


def test_it_is_bounded(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obsidian_template, "FILE_LIMIT", 1000)
    monkeypatch.setattr(obsidian_template, "TOTAL_LIMIT", 1500)
    vault.give("a.css", b"x" * 1001)
    vault.give("b.css", b"x" * 1000)
    found = obsidian_template.read(str(vault.template), root_only=False)
    assert list(found.files) == ["b.css"]
    assert "larger than 1000 bytes" in found.problems[0]
    vault.give("c.css", b"x" * 1000)
    found = obsidian_template.read(str(vault.template), root_only=False)
    assert "more than 1500 bytes" in found.problems[-1]


@pytest.mark.needs_root
def test_for_roots_agent_it_must_be_roots_alone(vault: Vault) -> None:
    with home_of(0) as place:
        folder = place / "template"
        (folder / "snippets").mkdir(parents=True)
        (folder / "snippets/a.css").write_bytes(b"a")
        place.chmod(0o755)

        def files() -> list[str]:
            return list(obsidian_template.read(str(folder), root_only=True).files)

        def step() -> None:
            assert files() == ["snippets/a.css"]

        as_user(step)
        for path in (folder, folder / "snippets", folder / "snippets/a.css"):
            os.chown(path, NOBODY, NOBODY)
            assert files() == []
            assert obsidian_template.read(str(folder), root_only=False).whole
            os.chown(path, 0, 0)
        (folder / "snippets").chmod(0o777)
        (problem,) = obsidian_template.read(str(folder), root_only=True).problems
        assert f"others than root can change {folder}/snippets" in problem


@pytest.mark.needs_root
def test_it_is_read_with_the_users_rights() -> None:
    with home_of(0) as place, home_of() as home:
        place.chmod(0o755)
        (place / "secret.css").write_bytes(b"root's own")
        (place / "secret.css").chmod(0o600)
        (place / "app.json").write_text(json.dumps({"x": 1}))
        terms = obsidian.Terms(ObsidianSettings(str(place)), root_only=True)

        def step() -> None:
            memory = Memory(str(home / "state"))
            (problem,) = problems(obsidian.apply(str(home / "root"), [], memory, terms))
            assert "secret.css: Permission denied" in problem

        as_user(step)
        assert json.loads((home / "root/.obsidian/app.json").read_bytes())["x"] == 1
        assert not (home / "root/.obsidian/secret.css").exists()


def test_a_dry_run_shows_its_differences(vault: Vault) -> None:
    vault.apply()
    vault.give("app.json", {"vimMode": True})
    vault.give("snippets/a.css", b"body {}\n")
    with dry_run() as found:
        assert changed(vault.apply()) == ["app.json", ".obsidian"]
    told = {os.path.basename(difference.path): difference.text for difference in found}
    assert '+  "vimMode": true' in told["app.json"]
    assert "+body {}" in told["a.css"]
    vault.apply()
    vault.give("snippets/a.css", None)
    with dry_run() as found:
        vault.apply()
    assert [d.text for d in found] == [f"{vault.top}/.obsidian/snippets/a.css removed"]
    assert (vault.top / ".obsidian/snippets/a.css").exists()


@pytest.mark.needs_root
def test_a_file_that_cannot_be_written_keeps_no_other_from_it() -> None:
    with home_of() as home:
        vault = Vault(home)
        vault.give("snippets/a.css", b"a")
        vault.give("snippets/b.css", b"b")
        blocked = vault.top / ".obsidian/snippets/a.css"
        blocked.mkdir(parents=True)
        subprocess.run(["chown", "-R", str(NOBODY), home], check=True)

        def step() -> None:
            (problem,) = problems(vault.apply())
            assert "a.css is a folder" in problem
            assert (blocked.parent / "b.css").read_bytes() == b"b"
            blocked.rmdir()
            assert changed(vault.apply()) == [".obsidian"]
            assert blocked.read_bytes() == b"a"

        as_user(step)
