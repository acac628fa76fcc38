"""The vault's folder and the root branch: made, checked, or refused with a reason."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.errors import MountError, SettingsError
from session_agent.lifecycle import vault
from session_agent.model import SessionUser
from session_agent.overlay import connection
from tests.support import storage
from tests.support.as_user import NOBODY, home_of

ME = SessionUser("me", os.getuid(), os.getgid(), tuple(os.getgroups()), "/")
USER = SessionUser("nobody", NOBODY, NOBODY, (), "/")


def test_an_absent_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a/vault"
    vault.prepare(str(path), ME)
    assert path.is_dir()
    vault.prepare(str(path), ME)


@pytest.mark.parametrize("name", ["file", "file/below", "link-to-file"])
def test_a_file_is_no_vault(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link-to-file").symlink_to("file")
    with pytest.raises(SettingsError, match="is a file"):
        vault.prepare(str(tmp_path / name), ME)


def test_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MountError, match="Too many levels"):
        vault.prepare(str(tmp_path / "loop/vault"), ME)


def test_the_root_branch(tmp_path: Path) -> None:
    path = tmp_path / "share/root"
    vault.make_root_branch(str(path), ME)
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    vault.make_root_branch(str(path), ME)
    assert path.stat().st_mode & 0o777 == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="it is no folder"):
        vault.make_root_branch(str(tmp_path / "file"), ME)


def test_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "note.md").touch()
    (tmp_path / "folder").mkdir()
    assert vault.hidden_entries(str(tmp_path), ME) == ["folder", "note.md"]
    assert vault.hidden_entries(str(tmp_path / "absent"), ME) == []


def test_a_plain_folder_is_not_ours(tmp_path: Path) -> None:
    assert not connection.is_mounted(str(tmp_path))
    assert not vault.take_over(str(tmp_path), ME)


@pytest.mark.needs_root
class TestMounts:
    """With a mount in the vault."""

    def test_mounts_and_the_folders_above_them_are_not_hidden(self, tmp_path: Path) -> None:
        (tmp_path / "note.md").touch()
        with storage.tmpfs(tmp_path / "a"), storage.tmpfs(tmp_path / "team/wiki"):
            assert vault.hidden_entries(str(tmp_path), ME) == ["note.md"]

    def test_a_mount_of_somebody_else_is_left_alone(self, tmp_path: Path) -> None:
        with storage.tmpfs(tmp_path / "vault"):
            assert not connection.is_mounted(f"{tmp_path}/vault")
            assert not vault.take_over(f"{tmp_path}/vault", ME)
            assert os.path.ismount(tmp_path / "vault")

    def test_one_that_is_in_use_is_unmounted_only_lazily(self, tmp_path: Path) -> None:
        path = tmp_path / "vault"
        with storage.tmpfs(path):
            (path / "below").touch()
            subprocess.run(["mount", "-t", "tmpfs", "upper", path], check=True)
            with (path / "open").open("w"), pytest.raises(MountError, match="busy"):
                vault.unmount(str(path), lazy=False)
            with (path / "open").open("w"):
                vault.unmount(str(path), lazy=True)
            assert (path / "below").exists()


@pytest.mark.needs_root
class TestAsRootForAUser:
    """Root makes what the user may not, and only where nobody can lead it astray."""

    @pytest.fixture
    def base(self) -> Iterator[Path]:
        with home_of(0) as folder:
            folder.chmod(0o755)
            yield folder

    def test_it_belongs_to_the_user_the_folders_above_to_root(self, base: Path) -> None:
        vault.prepare(f"{base}/srv/vault", USER)
        assert (base / "srv/vault").stat().st_uid == NOBODY
        assert (base / "srv").stat().st_uid == 0

    def test_an_existing_one_stays_whose_it_is(self, base: Path) -> None:
        (base / "vault").mkdir()
        vault.prepare(f"{base}/vault", USER)
        assert (base / "vault").stat().st_uid == 0

    def test_in_the_home_it_is_the_users_doing(self) -> None:
        with home_of() as home:
            vault.prepare(f"{home}/a/vault", USER)
            assert {path.stat().st_uid for path in home.rglob("*")} == {NOBODY}

    @pytest.mark.parametrize(("owner", "mode"), [(0, 0o707), (0, 0o770), (NOBODY - 1, 0o755)])
    def test_below_a_folder_that_others_change(self, base: Path, owner: int, mode: int) -> None:
        """Between the user's failure and root's success somebody could have put a link there."""
        (base / "open").mkdir()
        os.chown(base / "open", owner, NOBODY - 1)
        (base / "open").chmod(mode)
        (base / "open/inner").mkdir()
        with pytest.raises(MountError, match="cannot be made"):
            vault.prepare(f"{base}/open/inner/vault", USER)
        assert not (base / "open/inner/vault").exists()

    def test_through_a_link(self, base: Path) -> None:
        (base / "target").mkdir()
        (base / "link").symlink_to("target")
        with pytest.raises(MountError, match="cannot be made"):
            vault.prepare(f"{base}/link/vault", USER)
        assert not (base / "target/vault").exists()

    def test_behind_a_door_that_is_closed_to_the_user(self, base: Path) -> None:
        (base / "closed").mkdir(mode=0o700)
        with pytest.raises(MountError, match="Permission denied"):
            vault.make_root_branch(f"{base}/closed/root", USER)
        assert list((base / "closed").iterdir()) == []

    def test_a_root_branch_that_the_user_cannot_write(self, base: Path) -> None:
        (base / "root").mkdir()
        with pytest.raises(MountError, match="not writable"):
            vault.make_root_branch(f"{base}/root", USER)

    @pytest.mark.parametrize("path", ["/etc", "/etc/cron.d/x", "/usr/local/vault", "/root"])
    def test_system_folders_are_refused(self, path: str) -> None:
        with pytest.raises(SettingsError, match="is the system's"):
            vault.prepare(path, USER)

    def test_names_that_only_begin_like_one_are_not(self) -> None:
        vault._refuse_system_folder("/etcetera")
