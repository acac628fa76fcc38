from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_agent.desktop import jsonfile, obsidian, obsidian_bookmarks, obsidian_settings
from session_agent.desktop.jsonfile import Document
from session_agent.desktop.merge import Json, Remembered, same
from session_agent.desktop.obsidian_settings import APP, DEFAULT_CORE_PLUGINS, SettingsFile
from tests.support.branches import branches
from tests.support.obsidian import Vault, changed, problems


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def test_an_empty_vault_gets_everything_once(vault: Vault) -> None:
    found = branches("wiki:ro", "engineering", ".hidden", "wiki/nested", "\udcff")
    first = vault.apply(found)
    assert problems(first) == []
    assert changed(first) == ["_inbox", "app.json", "core-plugins.json", "bookmarks.json"]
    assert vault.read("app") == APP
    assert vault.read("core-plugins") == DEFAULT_CORE_PLUGINS
    (group,) = vault.read("bookmarks")["items"]
    assert (group["type"], group["title"]) == ("group", "Mounted folders")
    assert [(i["type"], i["path"], i["title"]) for i in group["items"]] == [
        ("folder", "engineering", "Engineering"),
        ("folder", "wiki", "Wiki (read-only)"),
        ("folder", "wiki/nested", "Nested"),
    ]
    assert (vault.top / "_inbox" / "attachments").is_dir()
    assert vault.path("app").read_text() == json.dumps(dict(APP), indent=2)
    assert changed(vault.apply(found)) == []


def test_what_the_user_chose_stays_and_keeps_its_place(vault: Vault) -> None:
    theirs = {"zoom": 1, "trashOption": "none", "attachmentFolderPath": "./", "a": {"z": 1, "b": 2}}
    vault.write("app", theirs)
    assert problems(vault.apply()) == []
    after = vault.read("app")
    assert list(after.items())[:4] == list(theirs.items())
    assert {**after, **theirs} == after
    assert after["newFileFolderPath"] == "_inbox"


def test_a_folder_chosen_for_new_notes_is_not_switched_on_or_replaced(vault: Vault) -> None:
    vault.write("app", {"newFileFolderPath": "notes"})
    vault.apply()
    assert vault.read("app").get("newFileLocation") is None
    assert vault.read("app")["newFileFolderPath"] == "notes"


def test_a_value_changed_or_removed_later_stays_so(vault: Vault) -> None:
    vault.apply()
    app = vault.read("app")
    app["trashOption"] = "system"
    del app["attachmentFolderPath"]
    vault.write("app", app)
    plugins = {**vault.read("core-plugins"), "bookmarks": False}
    vault.write("core-plugins", plugins)
    for _ in range(2):
        assert changed(vault.apply()) == []
    assert (vault.read("app"), vault.read("core-plugins")) == (app, plugins)


def test_a_value_that_the_agent_wrote_moves_along(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.apply()
    monkeypatch.setattr(obsidian_settings, "APP", {"newFileFolderPath": "inbox2"})
    assert changed(vault.apply()) == ["app.json"]
    assert vault.read("app")["newFileFolderPath"] == "inbox2"


def test_a_vault_made_anew_gets_everything_again(vault: Vault) -> None:
    found = branches("a")
    vault.apply(found)
    for name in ("core-plugins", "bookmarks"):
        vault.path(name).unlink()
    vault.write("app", {"vimMode": True})
    assert changed(vault.apply(found)) == ["app.json", "core-plugins.json", "bookmarks.json"]
    assert vault.read("app") == {"vimMode": True, **APP}


def test_an_old_array_of_core_plugins_loses_nothing(vault: Vault) -> None:
    vault.write("core-plugins", ["file-explorer", "graph", "my-own", "starred"])
    vault.apply()
    plugins = vault.read("core-plugins")
    assert list(plugins)[:4] == ["file-explorer", "graph", "my-own", "starred"]
    on = {name for name, value in plugins.items() if value}
    assert on == {"file-explorer", "graph", "my-own", "starred"}
    assert set(DEFAULT_CORE_PLUGINS) <= set(plugins)
    assert changed(vault.apply()) == []


THEIRS = [
    {"type": "file", "path": "a.md", "ctime": 5, "title": "A"},
    {"type": "folder", "path": "engineering", "ctime": 6, "title": "Mine"},
    {"type": "group", "title": "Own", "ctime": 7, "items": [{"type": "search", "query": "x"}]},
    "nonsense",
]


def test_own_bookmarks_are_untouched_and_a_gone_branch_goes(vault: Vault) -> None:
    vault.write("bookmarks", {"version": 2, "items": THEIRS})
    vault.apply(branches("engineering", "wiki"))
    assert vault.read("bookmarks")["version"] == 2
    assert vault.read("bookmarks")["items"][:4] == THEIRS
    before = vault.read("bookmarks")["items"][4]["items"][1]
    assert changed(vault.apply(branches("wiki:ro"))) == ["bookmarks.json"]
    (item,) = vault.read("bookmarks")["items"][4]["items"]
    assert item == {**before, "title": "Wiki (read-only)"}
    vault.apply([])
    assert vault.read("bookmarks") == {"version": 2, "items": THEIRS}
    assert changed(vault.apply([])) == []


def test_what_the_user_did_in_our_group_stays(vault: Vault) -> None:
    vault.apply(branches("a", "b", "c"))
    content = vault.read("bookmarks")
    items = content["items"][0]["items"]
    items[0]["title"] = "Mine"
    note = {"type": "file", "path": "n.md"}
    content["items"][0]["items"] = [items[2], note, items[0]]
    vault.write("bookmarks", content)
    assert changed(vault.apply(branches("a:ro", "b", "c"))) == []
    vault.apply([])
    (group,) = vault.read("bookmarks")["items"]
    assert group["items"] == [note, items[0]]


def test_a_group_that_the_user_deleted_stays_away(vault: Vault) -> None:
    vault.apply(branches("a"))
    vault.write("bookmarks", {"items": THEIRS})
    for found in (branches("a"), branches("a", "b")):
        assert changed(vault.apply(found)) == []
    assert vault.read("bookmarks") == {"items": THEIRS}


BROKEN = [b"{not json", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'"text"', b"3"]


@pytest.mark.parametrize("name", ["app", "core-plugins", "bookmarks"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_file_is_kept_reported_and_left_alone(
    vault: Vault, name: str, broken: bytes
) -> None:
    vault.write(name, broken)
    for run in range(2):
        changes = vault.apply(branches("a"))
        (problem,) = problems(changes)
        assert f"{name}.json" in problem
        assert vault.path(name).read_bytes() == broken
        copies = list(vault.path(name).parent.glob(f"{name}.json.broken-*"))
        assert [copy.read_bytes() for copy in copies] == [broken]
        assert len(changed(changes)) == (3 if run == 0 else 0)


@pytest.mark.parametrize("value", [{"items": {}}, {"items": [{"type": "group"}], "x": 1}])
def test_bookmarks_of_another_form(vault: Vault, value: dict[str, object]) -> None:
    vault.write("bookmarks", value)
    after = problems(vault.apply(branches("a")))
    assert bool(after) == isinstance(value["items"], dict)


def test_an_empty_file_holds_nothing_to_keep(vault: Vault) -> None:
    vault.write("app", b" \n")
    assert problems(vault.apply()) == []
    assert vault.read("app") == APP


def test_a_file_in_the_inboxs_place_is_a_problem_only(vault: Vault) -> None:
    vault.top.mkdir()
    (vault.top / "_inbox").write_bytes(b"note")
    (problem,) = problems(vault.apply())
    assert "_inbox" in problem
    assert vault.read("app") == APP


def test_indentation_and_odd_text_survive() -> None:
    data = b'{\n\t"a": "\\ud800 \xc3\xbc",\n\t"b": [1.0, 12345678901234567890]\n}'
    document = jsonfile.parse(b"\xef\xbb\xbf" + data)
    assert document.indent == "\t"
    assert json.loads(jsonfile.dump(document)) == json.loads(data)
    assert b"\n\t" in jsonfile.dump(document)


JSON: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
SETTINGS = st.dictionaries(st.sampled_from([*APP, "x", "y"]), JSON)
ITEMS = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["folder", "file"])},
        optional={"path": st.sampled_from(["a", "b", ""]), "title": JSON},
    ),
    lambda inner: st.fixed_dictionaries(
        {
            "type": st.just("group"),
            "title": st.sampled_from(["Mounted folders", "Own"]),
            "items": st.lists(inner, max_size=3),
        }
    ),
    max_leaves=6,
)


@given(JSON)
def test_json_is_written_as_it_was_read(value: Json) -> None:
    assert same(jsonfile.parse(jsonfile.dump(Document(value))).value, value)


@given(SETTINGS, st.sampled_from(["app.json", "core-plugins.json"]))
def test_settings_are_merged_without_loss(theirs: dict[str, Json], name: str) -> None:
    def render(current: Json, remembered: Remembered, fresh: bool) -> Any:
        rendered = SettingsFile(name).render(current, remembered, fresh)
        return rendered.value, rendered.remembered

    value, remembered = render(theirs, Remembered(), True)
    assert list(value)[: len(theirs)] == list(theirs)
    ignored = theirs.get("userIgnoreFilters")
    if isinstance(ignored, list) and all(isinstance(element, str) for element in ignored):
        assert value["userIgnoreFilters"][: len(ignored)] == ignored
        theirs = {**theirs, "userIgnoreFilters": value["userIgnoreFilters"]}
    assert all(same(value[key], theirs[key]) for key in theirs)
    again, remembered_again = render(value, remembered, False)
    assert same(again, value)
    assert remembered_again == remembered


@given(st.lists(ITEMS, max_size=4), st.sampled_from([["a"], ["a", "b"], []]))
def test_bookmarks_are_merged_without_loss(theirs: list[Json], names: list[str]) -> None:
    def render(value: Json, remembered: Remembered, *found: str) -> Any:
        rendered = obsidian_bookmarks.render(
            value, remembered, False, branches=branches(*found), now_ms=1
        )
        return rendered.value, rendered.remembered

    first, remembered = render({"items": theirs}, Remembered(), *names)
    again, remembered_again = render(first, remembered, *names)
    assert same(again, first)
    assert remembered_again == remembered
    last, _ = render(first, remembered)
    assert same(last["items"], theirs)


def test_the_vault_is_one_whether_reached_through_the_overlay_or_beside_it(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    through = tmp_path / "vault"
    through.symlink_to(vault.top, target_is_directory=True)
    obsidian.apply(str(vault.top), branches("a", "b"), vault.memory, known_as="/vault")
    after = obsidian.apply(str(through), branches("b"), vault.memory, known_as="/vault")
    assert changed(after) == ["bookmarks.json"]
    (group,) = vault.read("bookmarks")["items"]
    assert [item["path"] for item in group["items"]] == ["b"]
