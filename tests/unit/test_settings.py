"""Settings: what is accepted, and that everything else is an error which names the place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from session_agent import settings
from session_agent.errors import SettingsError
from session_agent.settings import load
from session_agent.settings_types import Settings
from tests.support.as_user import NOBODY, as_user, home_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file's path, in a folder that only its owner writes."""
    return tmp_path / "config.yaml"


def refused(file: Path, **variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(str(file), variables)
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_without_a_file_the_defaults_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "DEFAULT_FILE", str(tmp_path / "absent.yaml"))
    loaded = load(None, {"HOME": "/home/kasm-user"})
    assert loaded.settings == Settings()
    assert loaded.file == ""
    assert loaded.environment.home == "/home/kasm-user"


@pytest.mark.parametrize(
    "text", ["", "\ufeff", "\n# nothing but words\n", "---\n", "mounts:\n  # include: []\n"]
)
def test_an_empty_file_or_section_means_the_defaults(file: Path, text: str) -> None:
    file.write_text(text)
    assert load(str(file), {}).settings == Settings()


def test_every_key_is_read(file: Path) -> None:
    file.write_text(
        """
vault: /srv/notes/
root_branch: /srv/root
state_dir: /srv/state
user: 1000
mounts: {include: [/mnt/*], exclude: [/mnt/old], probe_seconds: 1}
rooms: {file: /srv/rooms.yaml, shared: "a.{name}", personal: "b.{name}-{username}"}
overlay: {enabled: false, cache_seconds: 0, remote_seconds: 2.5, remote_polls_per_minute: 7}
"""
    )
    found = load(str(file), {}).settings
    assert (found.vault, found.root_branch, found.state_dir) == (
        "/srv/notes",
        "/srv/root",
        "/srv/state",
    )
    assert found.user == 1000
    assert found.mounts.include == ("/mnt/*",)
    assert found.mounts.exclude == ("/mnt/old",)
    assert found.mounts.probe_seconds == 1
    assert found.rooms.file == "/srv/rooms.yaml"
    assert not found.overlay.enabled
    assert (found.overlay.cache_seconds, found.overlay.remote_seconds) == (0, 2.5)
    assert found.overlay.remote_polls_per_minute == 7


def test_variables_override_the_file(file: Path) -> None:
    file.write_text("vault: /a\nroot_branch: /b\nstate_dir: /c\n")
    found = load(
        None,
        {
            "SESSION_AGENT_CONFIG": str(file),
            "SESSION_AGENT_VAULT": "/v",
            "SESSION_AGENT_ROOT_BRANCH": "/r/",
            "SESSION_AGENT_STATE_DIR": "//s",
        },
    )
    assert (found.settings.vault, found.settings.root_branch, found.settings.state_dir) == (
        "/v",
        "/r",
        "/s",
    )
    assert found.file == str(file)


def test_the_option_wins_over_the_variable(file: Path, tmp_path: Path) -> None:
    file.write_text("vault: /option\n")
    other = tmp_path / "other.yaml"
    other.write_text("vault: /variable\n")
    assert load(str(file), {"SESSION_AGENT_CONFIG": str(other)}).settings.vault == "/option"


def test_an_empty_variable_counts_as_unset(file: Path) -> None:
    file.write_text("vault: /a\n")
    assert load(str(file), {"SESSION_AGENT_VAULT": ""}).settings.vault == "/a"


def test_a_relative_xdg_path_is_ignored(file: Path) -> None:
    file.write_text("")
    environment = load(str(file), {"XDG_CONFIG_HOME": "config", "HOME": "/h/"}).environment
    assert (environment.config_home, environment.home) == ("", "/h")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\nvalut: /v\n", "line 2: valut: there is no such key; did you mean vault?"),
        ("zebra: 1\n", "line 1: zebra: there is no such key; known are vault, root_branch"),
        (
            "mounts:\n  exclud: []\n",
            "line 2: mounts.exclud: there is no such key; did you mean exclude?",
        ),
        ("vault: 7\n", "line 1: vault: expected text, not a whole number"),
        ("vault: vault\n", "line 1: vault: expected an absolute path"),
        ("vault: /\n", "line 1: vault: expected an absolute path below /"),
        ("vault: /a/../..\n", "vault: expected an absolute path"),
        ('vault: "/a\\0b"\n', "vault: expected an absolute path"),
        ("vault: null\n", "vault: expected text, not nothing"),
        ("state_dir: ~/state\n", "state_dir: expected an absolute path"),
        ("mounts: [a]\n", "line 1: mounts: expected a group of keys, not a list"),
        ("mounts:\n  include: /mnt\n", "line 2: mounts.include: expected a list, not text"),
        ("mounts: {include: [1]}\n", "line 1: mounts.include[0]: expected text"),
        ("mounts: {include: [mnt]}\n", "mounts.include: expected a list of absolute paths"),
        (
            "obsidian:\n  paths:\n  - {file: a.json, pointr: /x}\n",
            "line 2: obsidian.paths[0].pointr: there is no such key; did you mean pointer?",
        ),
        (
            "obsidian:\n  paths: [{file: /a, pointer: /x}]\n",
            "line 2: obsidian.paths: expected a list of",
        ),
        ("obsidian: {template: etc}\n", "line 1: obsidian.template: expected an absolute path"),
        ("\n\nmounts: {probe_seconds: -1}\n", "line 3: mounts.probe_seconds: expected seconds"),
        ("mounts: {probe_seconds: .nan}\n", "mounts.probe_seconds: expected seconds"),
        ("mounts: {probe_seconds: .inf}\n", "mounts.probe_seconds: expected seconds"),
        ("mounts: {probe_seconds: soon}\n", "mounts.probe_seconds: expected a number, not text"),
        ("overlay: {cache_seconds: -0.1}\n", "overlay.cache_seconds: expected seconds, from 0"),
        ("overlay: {remote_seconds: 0}\n", "overlay.remote_seconds: expected seconds"),
        ("overlay: {remote_polls_per_minute: 6001}\n", "overlay.remote_polls_per_minute: expected"),
        ("overlay: {enabled: 1}\n", "overlay.enabled: expected true or false"),
        ("rooms: {shared: folder}\n", "rooms.shared: expected letters"),
        ('rooms: {shared: "{name}-{name}"}\n', "rooms.shared: expected letters"),
        ("rooms: {shared: 'f/{name}'}\n", "rooms.shared: expected letters"),
        ("rooms: {personal: 'u-{name}'}\n", "rooms.personal: expected such as user-{username}"),
        ("rooms: {personal: 'u.{username}.{name}'}\n", "rooms.personal: expected such as"),
        ("rooms: {personal: 'folder-{username}-{name}'}\n", "rooms.personal: expected such as"),
        ("rooms: {personal: 'fold{username}-{name}'}\n", "rooms.personal: expected such as"),
        ("rooms: {shared: '{name}'}\n", "rooms.shared: expected letters"),
        ("rooms: {shared: 'user{name}'}\n", "rooms.personal: expected such as"),
        ("rooms: {username: ' '}\n", "rooms.username: expected the user's name"),
        ("user: true\n", "user: expected a whole number or text or nothing, not true or false"),
        ("user: -1\n", "user: expected a user's name or number"),
        ("user: 4294967295\n", "user: expected a user's name or number"),
        ("- vault\n", "expected keys with values"),
        ("just text\n", "expected keys with values"),
        ("1: 2\n", "expected keys that are text"),
        ("vault: /a\nvault: /b\n", "line 2: vault: given twice, first in line 1"),
        ("mounts: &m {include: *m}\n", "mounts.include: expected a list"),
        ("vault: [\n", "line 2, column 1: not YAML"),
        ("vault: 'a\n", "not YAML"),
        ("vault: a: b\n", "line 1, column 9: not YAML"),
        ("vault: /a\0b\n", "not YAML: special characters are not allowed"),
        ("vault: !!python/object:os.system /a\n", "not YAML"),
        ("vault: 2024-99-99\n", "not YAML"),
        ("? {a: b}\n: 1\n", "not YAML"),
        ("vault: !!bool x\n", "not YAML"),
        ("vault: !!timestamp x\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_place(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    message = refused(file)
    assert str(file) in message
    assert told in message


def test_bytes_that_are_not_text(file: Path) -> None:
    file.write_bytes(b"vault: /\xff\n")
    assert "byte 8 is not UTF-8" in refused(file)


@pytest.mark.parametrize("value", ["notes", "/", "/a/../b"])
def test_a_wrong_variable_is_named(file: Path, value: str) -> None:
    file.write_text("")
    assert "SESSION_AGENT_STATE_DIR" in refused(file, SESSION_AGENT_STATE_DIR=value)


def test_a_named_file_must_exist(file: Path) -> None:
    assert "does not exist" in refused(file)


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    assert "not a regular file" in refused(tmp_path)


def test_a_fifo_does_not_hold_anything_up(file: Path) -> None:
    os.mkfifo(file, 0o644)
    assert "not a regular file" in refused(file)


def test_a_file_without_end(file: Path) -> None:
    file.write_bytes(b"#" * (256 * 1024 + 1))
    assert "larger than 256 KiB" in refused(file)


@pytest.mark.needs_root
def test_an_unreadable_file() -> None:
    with home_of() as folder:
        file = folder / "config.yaml"
        file.write_text("vault: /v\n")
        file.chmod(0)

        def check() -> None:
            assert "cannot be read: Permission denied" in refused(file)

        as_user(check)


@pytest.mark.needs_root
def test_a_users_own_file_may_be_the_users() -> None:
    with home_of() as folder:
        file = folder / "config.yaml"
        file.write_text("vault: /v\n")
        os.chown(file, NOBODY, NOBODY)

        def check() -> None:
            assert load(str(file), {}).settings.vault == "/v"

        as_user(check)


class TestWhoCanWriteIt:
    """Run as root, what others than root can change is refused."""

    pytestmark = pytest.mark.needs_root

    @pytest.fixture(autouse=True)
    def written(self, file: Path) -> None:
        file.write_text("vault: /v\n")
        file.chmod(0o644)

    def test_a_file_of_roots_own_is_accepted(self, file: Path) -> None:
        assert load(str(file), {}).settings.vault == "/v"

    @pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
    def test_a_file_that_others_write(self, file: Path, mode: int) -> None:
        file.chmod(mode)
        assert f"others than root can change {file}" in refused(file)

    def test_a_file_that_somebody_else_owns(self, file: Path) -> None:
        os.chown(file, 1000, 0)
        assert f"others than root can change {file}" in refused(file)

    def test_the_variable_gets_the_same_check(self, file: Path) -> None:
        os.chown(file, 1000, 0)
        with pytest.raises(SettingsError, match="others than root"):
            load(None, {"SESSION_AGENT_CONFIG": str(file)})

    def test_a_folder_above_that_others_write(self, file: Path) -> None:
        file.parent.chmod(0o777)
        assert f"others than root can change {file.parent}" in refused(file)

    def test_a_sticky_folder_above_is_fine(self, file: Path) -> None:
        file.parent.chmod(0o1777)
        assert load(str(file), {}).settings.vault == "/v"

    def test_a_folder_above_that_somebody_else_owns(self, file: Path) -> None:
        os.chown(file.parent, 1000, 0)
        assert f"others than root can change {file.parent}" in refused(file)

    def test_a_link_out_of_a_users_folder(self, file: Path, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / "link.yaml").symlink_to(file)
        os.chown(home, 1000, 0)
        assert f"others than root can change {home}" in refused(home / "link.yaml")

    def test_a_link_through_a_users_folder(self, file: Path, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / "hop").symlink_to(file)
        os.chown(home, 1000, 0)
        (tmp_path / "outer.yaml").symlink_to("home/../home/./hop")
        assert f"others than root can change {home}" in refused(tmp_path / "outer.yaml")

    def test_a_link_between_roots_folders_is_fine(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "link.yaml").symlink_to(file.name)
        assert load(str(tmp_path / "link.yaml"), {}).settings.vault == "/v"

    def test_a_loop_of_links(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").symlink_to("b.yaml")
        (tmp_path / "b.yaml").symlink_to("a.yaml")
        assert "loop of symbolic links" in refused(tmp_path / "a.yaml")
