from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_agent.desktop import jsonfile, obsidian
from session_agent.desktop.changes import Change
from session_agent.desktop.jsonfile import Document
from session_agent.desktop.memory import Memory
from session_agent.desktop.merge import Json, Remembered, same
from session_agent.errors import UserFileError
from session_agent.model import Branch
from tests.support.branches import branches


class Vault:
    """A root branch, and an agent that sets it up."""

    def __init__(self, folder: Path) -> None:
        self.top = folder / "root"
        self.memory = Memory(str(folder / "state"))

    def apply(self, found: list[Branch] | None = None) -> list[Change]:
        return obsidian.apply(str(self.top), found or [], self.memory)

    def path(self, name: str) -> Path:
        return self.top / ".obsidian" / f"{name}.json"

    def read(self, name: str) -> Any:
        return json.loads(self.path(name).read_bytes())

    def write(self, name: str, value: object) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.path(name).write_bytes(data)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def problems(changes: list[Change]) -> list[str]:
    return [change.problem for change in changes if change.problem]


def changed(changes: list[Change]) -> list[str]:
    return [os.path.basename(change.path) for change in changes if change.changed]


def test_an_empty_vault_gets_everything_once(vault: Vault) -> None:
    found = branches("wiki:ro", "engineering", ".hidden", "wiki/nested", "\udcff")
    first = vault.apply(found)
    assert problems(first) == []
    assert changed(first) == ["_inbox", "app.json", "core-plugins.json", "bookmarks.json"]
    assert vault.read("app") == obsidian.APP_SETTINGS
    assert vault.read("core-plugins") == obsidian.DEFAULT_CORE_PLUGINS
    (group,) = vault.read("bookmarks")["items"]
    assert (group["type"], group["title"]) == ("group", "Mounted folders")
    assert [(i["type"], i["path"], i["title"]) for i in group["items"]] == [
        ("folder", "engineering", "Engineering"),
        ("folder", "wiki", "Wiki (read-only)"),
        ("folder", "wiki/nested", "Nested"),
    ]
    assert (vault.top / "_inbox" / "attachments").is_dir()
    assert vault.path("app").read_text() == json.dumps(dict(obsidian.APP_SETTINGS), indent=2)
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
    monkeypatch.setattr(obsidian, "APP_SETTINGS", {"newFileFolderPath": "inbox2"})
    assert changed(vault.apply()) == ["app.json"]
    assert vault.read("app")["newFileFolderPath"] == "inbox2"


def test_a_vault_made_anew_gets_everything_again(vault: Vault) -> None:
    found = branches("a")
    vault.apply(found)
    for name in ("core-plugins", "bookmarks"):
        vault.path(name).unlink()
    vault.write("app", {"vimMode": True})
    assert changed(vault.apply(found)) == ["app.json", "core-plugins.json", "bookmarks.json"]
    assert vault.read("app") == {"vimMode": True, **obsidian.APP_SETTINGS}


def test_an_old_array_of_core_plugins_loses_nothing(vault: Vault) -> None:
    vault.write("core-plugins", ["file-explorer", "graph", "my-own", "starred"])
    vault.apply()
    plugins = vault.read("core-plugins")
    assert list(plugins)[:4] == ["file-explorer", "graph", "my-own", "starred"]
    on = {name for name, value in plugins.items() if value}
    assert on == {"file-explorer", "graph", "my-own", "starred"}
    assert set(obsidian.DEFAULT_CORE_PLUGINS) <= set(plugins)
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
    assert vault.read("app") == obsidian.APP_SETTINGS


def test_a_file_in_the_inboxs_place_is_a_problem_only(vault: Vault) -> None:
    vault.top.mkdir()
    (vault.top / "_inbox").write_bytes(b"note")
    (problem,) = problems(vault.apply())
    assert "_inbox" in problem
    assert vault.read("app") == obsidian.APP_SETTINGS


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
SETTINGS = st.dictionaries(st.sampled_from([*obsidian.APP_SETTINGS, "x", "y"]), JSON)
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


@given(SETTINGS, st.sampled_from([obsidian.render_app, obsidian.render_core_plugins]))
def test_settings_are_merged_without_loss(theirs: dict[str, Json], render: Any) -> None:
    value, remembered = render(theirs, Remembered(), True)
    assert list(value)[: len(theirs)] == list(theirs)
    assert all(same(value[key], theirs[key]) for key in theirs)
    again, remembered_again = render(value, remembered, False)
    assert same(again, value)
    assert remembered_again == remembered


@given(st.lists(ITEMS, max_size=4), st.sampled_from([["a"], ["a", "b"], []]))
def test_bookmarks_are_merged_without_loss(theirs: list[Json], names: list[str]) -> None:
    def render(value: Json, remembered: Remembered, *found: str) -> Any:
        return obsidian.render_bookmarks(
            value, remembered, False, branches=branches(*found), now_ms=1
        )

    first, remembered = render({"items": theirs}, Remembered(), *names)
    again, remembered_again = render(first, remembered, *names)
    assert same(again, first)
    assert remembered_again == remembered
    last, _ = render(first, remembered)
    assert same(last["items"], theirs)


def vault_list(config_home: Path) -> Any:
    return json.loads((config_home / "obsidian" / "obsidian.json").read_bytes())


def register(home: Path, vault: str = "/vault") -> list[Change]:
    memory = Memory(str(home / "state"))
    return obsidian.register(str(home), str(home / ".config"), vault, memory)


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
    assert "open" not in ours
    assert {
        **after,
        "vaults": {k: v for k, v in after["vaults"].items() if v is not ours},
    } == theirs


def test_a_vault_that_is_listed_keeps_its_id_and_is_opened(tmp_path: Path) -> None:
    theirs: dict[str, Json] = {"vaults": {"beef": {"path": "/vault/", "ts": 1}}}
    after = obsidian.render_vaults(theirs, "/vault", now_ms=2)
    assert after == {"vaults": {"beef": {"path": "/vault/", "ts": 1, "open": True}}}


def test_an_id_that_is_taken_is_not_taken_away() -> None:
    first: Any = obsidian.render_vaults(None, "/vault", now_ms=1)
    (key,) = first["vaults"]
    moved: Any = {"vaults": {key: {"path": "/moved"}}}
    after: Any = obsidian.render_vaults(moved, "/vault", now_ms=1)
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
        obsidian.render_vaults({"vaults": 3}, "/vault", now_ms=1)
