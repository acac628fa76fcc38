"""Who the session user is, and where things are."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from session_agent.desktop.rooms import Terms
from session_agent.errors import SettingsError
from session_agent.lifecycle import session as sessions
from session_agent.lifecycle.session import find_place, session_user
from session_agent.mounts import mountinfo
from session_agent.settings import Environment, Loaded
from session_agent.settings_types import MountSettings, RoomSettings, Settings
from tests.support import storage
from tests.support.as_user import NOBODY, as_user, home_of

as_root = pytest.mark.needs_root
UNKNOWN = 54321  # no such user


def loaded(home: str = "", **settings: Any) -> Loaded:
    return Loaded(Settings(**settings), Environment(home=home))


class TestAsRoot:
    """For whom root acts."""

    pytestmark = as_root

    def test_the_owner_of_the_home(self) -> None:
        with home_of(NOBODY) as home:
            user = session_user(loaded(str(home)))
        assert (user.uid, user.home) == (NOBODY, str(home))
        entry = pwd.getpwuid(NOBODY)
        assert (user.name, user.gid) == (entry.pw_name, entry.pw_gid)
        assert entry.pw_gid in user.groups

    def test_an_owner_whom_the_user_database_does_not_know(self) -> None:
        with home_of(UNKNOWN) as home:
            os.chown(home, UNKNOWN, 0)  # Kasm's homes belong to group root, which is not the user's
            user = session_user(loaded(str(home)))
        assert (user.name, user.uid, user.gid, user.groups) == (str(UNKNOWN), UNKNOWN, UNKNOWN, ())

    @pytest.mark.parametrize("who", [NOBODY, pwd.getpwuid(NOBODY).pw_name])
    def test_the_configured_one(self, who: str | int, tmp_path: Path) -> None:
        user = session_user(loaded(str(tmp_path), user=who))
        assert user.uid == NOBODY
        assert user.home == pwd.getpwuid(NOBODY).pw_dir  # not root's home that HOME names

    def test_the_configured_one_in_its_own_home(self) -> None:
        with home_of(NOBODY) as home:
            assert session_user(loaded(str(home), user=NOBODY)).home == str(home)

    def test_a_number_without_any_home(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="home of user 54321 is not known"):
            session_user(loaded(str(tmp_path), user=UNKNOWN))

    def test_root_in_roots_home(self, tmp_path: Path) -> None:
        assert session_user(loaded(str(tmp_path))).uid == 0

    def test_root_in_anothers_place_is_told(self, tmp_path: Path) -> None:
        (warning,) = find_place(loaded(str(tmp_path))).warnings
        assert "belongs to root" in warning

    def test_roots_config_home_is_not_the_users(self) -> None:
        with home_of(NOBODY) as home:
            both = Loaded(Settings(), Environment(home=str(home), config_home="/etc/xdg"))
            assert find_place(both).config_home == f"{home}/.config"

    def test_what_root_writes_for_others_comes_from_root_alone(self) -> None:
        with home_of(NOBODY) as home:
            assert find_place(loaded(str(home))).obsidian.root_only

            def step() -> None:
                assert not find_place(loaded(str(home))).obsidian.root_only

            as_user(step)


def test_no_home_at_all() -> None:
    user = session_user(loaded(""))
    assert (user.uid, user.home) == (os.getuid(), pwd.getpwuid(os.getuid()).pw_dir)


@as_root
def test_a_user_acts_for_nobody_else() -> None:
    def check() -> None:
        assert session_user(loaded("/nonexistent")).uid == NOBODY
        assert session_user(loaded("/nonexistent", user=NOBODY)).uid == NOBODY
        with pytest.raises(SettingsError, match="only root"):
            session_user(loaded("/nonexistent", user=0))

    as_user(check)


@pytest.mark.parametrize("who", ["no-such-user", "x" * 300])
def test_a_name_that_nobody_has(who: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no user"):
        session_user(loaded(str(tmp_path), user=who))


def test_where_things_are(tmp_path: Path) -> None:
    place = find_place(loaded(str(tmp_path)))
    assert place.vault == "/vault"
    assert place.state_dir == f"{tmp_path}/.local/state/session-agent"
    assert place.config_home == f"{tmp_path}/.config"
    assert place.rooms == Terms(f"{tmp_path}/.config/session-agent/rooms.yaml", "/vault")
    own = RoomSettings(file="/r", username="bob", server="ws://settings:1")
    kasm = Environment(
        home=str(tmp_path),
        config_home="/c",
        kasm_user_name="ada",
        kasm_user_id="7",
        sync_server_url="wss://variable/x",
    )
    place = find_place(Loaded(Settings(state_dir="/s", rooms=own), kasm))
    assert (place.state_dir, place.config_home) == ("/s", "/c")
    assert place.rooms == Terms("/r", "/vault", own, "ada", "7", "wss://variable/x")
    place = find_place(Loaded(Settings(rooms=own), Environment(home=str(tmp_path))))
    assert place.rooms == Terms("/r", "/vault", own, "bob", server="ws://settings:1")


@pytest.mark.parametrize(
    "url", ["ws://ann:hunter2@x", "ws://x/?token=hunter2", "http://x", "ws://"]
)
def test_a_server_that_cannot_stand_in_a_file_is_told_of_and_not_shown(
    tmp_path: Path, url: str
) -> None:
    environment = Environment(home=str(tmp_path), sync_server_url=url)
    place = find_place(Loaded(Settings(), environment))
    assert place.rooms.server == ""
    told = "".join(place.warnings)
    assert "SYNC_SERVER_URL" in told
    assert "hunter2" not in told


def test_paths_are_real_ones(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to("home")
    (tmp_path / "vault-link").symlink_to("home/vault")
    place = find_place(loaded(f"{tmp_path}/link", vault=f"{tmp_path}/vault-link"))
    assert place.user.home == f"{tmp_path}/home"
    assert place.vault == f"{tmp_path}/home/vault"


@pytest.mark.parametrize("vault", ["home", "home/.local", "."])
def test_a_vault_that_would_cover_what_it_needs(tmp_path: Path, vault: str) -> None:
    (tmp_path / "home").mkdir()
    with pytest.raises(SettingsError, match="would cover"):
        find_place(loaded(f"{tmp_path}/home", vault=os.path.normpath(f"{tmp_path}/{vault}")))


class TestBuild:
    """From settings and mounts to a session."""

    @pytest.fixture(autouse=True)
    def no_mounts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("session_agent.mounts.mountinfo.read", list)

    def build(self, tmp_path: Path, **settings: Any) -> Any:
        configured = loaded(str(tmp_path), **settings)
        return sessions.build(configured, find_place(configured))

    def test_the_root_branch_lives_in_the_home(self, tmp_path: Path) -> None:
        session = self.build(tmp_path)
        assert session.root_branch == f"{tmp_path}/.local/share/session-agent/root"
        assert session.mounts == ()

    def test_the_vaults_own_folder_can_be_the_root_branch(self, tmp_path: Path) -> None:
        vault = f"{tmp_path}/vault"
        assert self.build(tmp_path, vault=vault, root_branch=vault).root_branch == vault

    @pytest.mark.parametrize(
        ("root", "vault"), [("v/inner", "v"), ("r", "r/vault"), ("r", "r/a/b")]
    )
    def test_one_in_the_other_is_refused(self, tmp_path: Path, root: str, vault: str) -> None:
        with pytest.raises(SettingsError, match="root_branch:"):
            self.build(tmp_path, vault=f"{tmp_path}/{vault}", root_branch=f"{tmp_path}/{root}")


@pytest.mark.needs_root
class TestBuildFromMounts:
    """With real mounts below a folder of the test's."""

    def build(self, base: Path, **settings: Any) -> Any:
        others = [e.path for e in mountinfo.read() if not e.path.startswith(f"{base}/")]
        exclude = tuple(path for path in others if path != "/")
        configured = loaded(
            f"{base}/home",
            vault=f"{base}/vault",
            mounts=MountSettings(exclude=exclude),
            **settings,
        )
        return sessions.build(configured, find_place(configured))

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        (tmp_path / "home").mkdir()
        return tmp_path

    def test_a_mount_at_the_vaults_path_is_the_root_branch(self, base: Path) -> None:
        with storage.tmpfs(base / "vault"), storage.tmpfs(base / "vault/a"):
            session = self.build(base)
            assert session.root_branch == f"{base}/vault"
            assert [mount.name for mount in session.mounts] == ["a"]
            session = self.build(base, root_branch=f"{base}/elsewhere")
            assert session.root_branch == f"{base}/elsewhere"
            assert [mount.name for mount in session.mounts] == ["a"]

    def test_a_mount_that_is_the_root_branch_is_no_other_branch(self, base: Path) -> None:
        with storage.tmpfs(base / "notes"), storage.tmpfs(base / "b"):
            session = self.build(base, root_branch=f"{base}/notes")
            assert [mount.name for mount in session.mounts] == ["b"]

    def test_a_personal_folder_of_a_user_whose_name_is_not_known_is_told_of(
        self, base: Path
    ) -> None:
        with storage.tmpfs(base / "vault/personal"):
            assert "no sync room" in "".join(self.build(base).warnings)
            known = RoomSettings(username="ann")
            assert "no sync room" not in "".join(self.build(base, rooms=known).warnings)
