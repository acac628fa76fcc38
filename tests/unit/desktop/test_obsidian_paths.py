"""Settings that lead to folders which are not mounted today."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from session_agent.desktop.memory import FILE_NAME
from session_agent.desktop.obsidian_paths import PathSetting, Today, folder_of, stand_in
from session_agent.model import MountState
from session_agent.settings_types import ObsidianPath
from tests.support.as_user import NOBODY, as_user, home_of
from tests.support.branches import branches
from tests.support.obsidian import Vault, changed, problems

THEIRS: dict[str, dict[str, Any]] = {
    "app": {"newFileFolderPath": "engineering/new", "attachmentFolderPath": "engineering/files"},
    "daily-notes": {"folder": "engineering/days", "template": "engineering/t/day", "format": "Y"},
    "templates": {"folder": "engineering/t"},
    "plugins/templater-obsidian/data": {"x": {"templates_folder": "engineering/t"}, "n": 1},
    "plugins/quickadd/data": {"choices": [1], "log": "/engineering/log.md"},
}
STAND_INS = {
    "app": {"newFileFolderPath": "_inbox", "attachmentFolderPath": "_inbox/attachments"},
    "daily-notes": {"folder": "_inbox", "template": "", "format": "Y"},
    "templates": {"folder": "_inbox"},
    "plugins/templater-obsidian/data": {"x": {"templates_folder": "_inbox"}, "n": 1},
    "plugins/quickadd/data": {"choices": [1], "log": "_inbox/log.md"},
}
PATHS = (
    ObsidianPath("plugins/templater-obsidian/data.json", "/x/templates_folder"),
    ObsidianPath("plugins/quickadd/data.json", "/log"),
)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    made = Vault(tmp_path)
    made.paths = PATHS
    return made


def theirs(vault: Vault) -> None:
    """A user who has chosen folders of engineering while that is mounted."""
    for name, value in THEIRS.items():
        vault.write(name, value)
    assert problems(vault.apply(branches("engineering"))) == []
    assert shown(vault) == THEIRS


def shown(vault: Vault) -> dict[str, Any]:
    """What the files hold of the keys that the user has set."""
    return {
        name: {key: value for key, value in vault.read(name).items() if key in THEIRS[name]}
        for name in THEIRS
    }


def test_they_fall_back_and_return(vault: Vault) -> None:
    theirs(vault)
    assert problems(vault.apply([])) == []
    assert shown(vault) == STAND_INS
    assert changed(vault.apply([])) == []
    assert problems(vault.apply(branches("engineering"))) == []
    assert shown(vault) == THEIRS
    assert changed(vault.apply(branches("engineering"))) == []
    vault.apply([])
    assert shown(vault) == STAND_INS


def test_personal_stands_in_if_it_can_be_written(vault: Vault) -> None:
    theirs(vault)
    vault.apply(branches("personal"))
    assert vault.read("app")["newFileFolderPath"] == "personal"
    assert vault.read("app")["attachmentFolderPath"] == "personal/attachments"
    vault.apply(branches("personal:ro"))
    assert vault.read("app")["newFileFolderPath"] == "_inbox"
    vault.apply([])
    assert shown(vault) == STAND_INS
    vault.apply(branches("engineering"))
    assert shown(vault) == THEIRS


def test_a_change_of_the_users_wins_and_ends_it(vault: Vault) -> None:
    theirs(vault)
    vault.apply([])
    vault.change("app", newFileFolderPath="mine")
    vault.change("templates", folder="engineering/t")  # chosen again, though it is not there
    daily = vault.read("daily-notes")
    del daily["folder"]
    vault.write("daily-notes", daily)
    for _ in range(2):
        assert changed(vault.apply([])) == []
    vault.apply(branches("engineering"))
    assert vault.read("app")["newFileFolderPath"] == "mine"
    assert vault.read("app")["attachmentFolderPath"] == "engineering/files"
    assert vault.read("templates") == {"folder": "engineering/t"}
    assert "folder" not in vault.read("daily-notes")
    # What was insisted on once is no wish for ever.
    vault.apply([])
    assert vault.read("templates") == {"folder": "_inbox"}


def test_a_folder_that_was_never_a_branch_is_obsidians_to_make(vault: Vault) -> None:
    for name, value in THEIRS.items():
        vault.write(name, value)
    vault.apply(branches("wiki"))
    assert shown(vault) == THEIRS


def test_values_that_lead_nowhere_in_particular(vault: Vault) -> None:
    vault.apply(branches("engineering"))
    vault.apply([])
    values: list[Any] = [
        "/",
        "",
        "./",
        "./sub",
        "..",
        "../engineering",
        7,
        None,
        ["engineering"],
        {},
    ]
    for value in values:
        vault.write("templates", {"folder": value})
        assert changed(vault.apply([])) == []


def test_read_only_is_no_place_for_new_files_but_one_for_templates(vault: Vault) -> None:
    theirs(vault)
    vault.apply(branches("engineering:ro"))
    assert vault.read("app")["newFileFolderPath"] == "_inbox"
    assert vault.read("daily-notes") == {**THEIRS["daily-notes"], "folder": "_inbox"}
    assert vault.read("templates") == THEIRS["templates"]
    vault.apply(branches("engineering"))
    assert shown(vault) == THEIRS


def test_a_branch_that_does_not_answer_is_as_good_as_gone(vault: Vault) -> None:
    theirs(vault)
    (dead,) = branches("engineering")
    for state in (MountState.DEAD, MountState.HUNG):
        vault.apply([replace(dead, state=state)])
        assert shown(vault) == STAND_INS
    vault.apply([dead])
    assert shown(vault) == THEIRS


def test_an_empty_folder_that_a_mount_left_behind_is_not_there(vault: Vault) -> None:
    theirs(vault)
    left = vault.top / "engineering"
    left.mkdir()
    vault.apply([])
    assert shown(vault) == STAND_INS
    (left / "note.md").touch()
    vault.apply([])
    assert shown(vault) == THEIRS


def test_the_longest_name_says_which_branch_it_is() -> None:
    today = Today({"wiki": (True, True)}, frozenset({"wiki/nested", "old"}))
    setting = PathSetting("x.json", "/x")
    assert stand_in(setting, "wiki/nested/x", today) == "_inbox"
    assert stand_in(setting, "wiki/other", today) is None
    assert stand_in(setting, "old", today) == "_inbox"
    assert stand_in(setting, "older", today) is None
    nested = Today({"old/nested": (True, True)}, frozenset({"old"}))
    assert stand_in(setting, "old/nested/x", nested) is None


def test_folders_are_named_in_many_ways() -> None:
    assert folder_of("/engineering//x/") == "engineering/x"
    assert folder_of("a/./b/..") == "a"
    assert folder_of("a/../..") is None
    assert folder_of("a\0b") is None


def test_what_the_template_gives_falls_back_as_well(vault: Vault) -> None:
    vault.give("daily-notes.json", {"folder": "engineering/days", "format": "Y"})
    vault.give("app.json", {"newFileFolderPath": "team/new", "newFileLocation": "folder"})
    vault.apply([])
    assert vault.read("daily-notes") == {"folder": "_inbox", "format": "Y"}
    assert vault.read("app")["newFileFolderPath"] == "_inbox"
    assert changed(vault.apply([])) == []
    vault.apply(branches("engineering"))
    assert vault.read("daily-notes")["folder"] == "engineering/days"
    vault.apply([])
    vault.give("daily-notes.json", {"folder": "wiki/days", "format": "Y"})
    assert changed(vault.apply([])) == []
    vault.apply(branches("wiki"))
    assert vault.read("daily-notes")["folder"] == "wiki/days"
    vault.apply([])
    vault.change("daily-notes", folder="mine")
    vault.apply(branches("wiki"))
    assert vault.read("daily-notes")["folder"] == "mine"
    (vault.top / "team").mkdir()
    vault.apply([])
    assert vault.read("app")["newFileFolderPath"] == "team/new"


def test_a_folder_that_only_the_template_names_of_the_users_choice(vault: Vault) -> None:
    vault.write("templates", {"folder": "engineering/mine"})
    vault.give("daily-notes.json", {"folder": "engineering/days"})
    vault.apply([])
    assert vault.read("templates") == {"folder": "_inbox"}
    vault.apply(branches("engineering"))
    assert vault.read("templates") == {"folder": "engineering/mine"}


@pytest.mark.needs_root
@pytest.mark.parametrize("how", ["lost", "unwritable"])
def test_without_a_memory_nothing_of_the_users_is_replaced(how: str) -> None:
    with home_of() as home:
        vault = Vault(home)
        vault.write("templates", {"folder": "engineering/t"})
        subprocess.run(["chown", "-R", str(NOBODY), home], check=True)
        as_user(lambda: assert_fine(vault.apply(branches("engineering"))))
        if how == "lost":
            (vault.state / FILE_NAME).unlink()
        else:
            os.chown(vault.state, 0, 0)
            os.chown(vault.state / FILE_NAME, 0, 0)
        as_user(lambda: assert_nothing_replaced(vault))
        assert json.loads(vault.path("templates").read_bytes()) == {"folder": "engineering/t"}


def assert_fine(changes: Any) -> None:
    assert problems(changes) == []


def assert_nothing_replaced(vault: Vault) -> None:
    vault.apply([])
    assert vault.read("templates") == {"folder": "engineering/t"}
