from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from session_agent.desktop import links
from session_agent.desktop.dry_run import dry_run
from session_agent.desktop.links import Linked
from session_agent.desktop.memory import FILE_NAME, Memory
from session_agent.model import Branch, MountState, SessionUser
from tests.support.as_user import NOBODY, home_of
from tests.support.branches import branch
from tests.support.kills import killed_at

ME = SessionUser("me", os.getuid(), os.getgid(), tuple(os.getgroups()), "/")
USER = SessionUser("nobody", NOBODY, NOBODY, (), "/")
S3, DRIVE = {"s3": "/s3"}, {"gdrive": "/mnt/gdrive"}


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    folder = tmp_path / "vault"
    folder.mkdir()
    return folder


def bring(vault: Path, targets: dict[str, str], user: SessionUser = ME) -> Linked:
    return links.apply(str(vault), targets, user, Memory(str(vault.parent / "state")))


def shown(vault: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in vault.iterdir() if path.is_symlink()}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (branch("s3", path="/s3"), S3),
        (branch("wiki", path="/vault/wiki"), {}),
        (branch("srv", path="/srv"), {"srv": "/srv"}),
        (branch("all", path="/"), {}),
        (replace(branch("s3", path="/s3"), state=MountState.HUNG), {}),
        (replace(branch("s3", path="/s3"), state=MountState.DEAD), {}),
    ],
)
def test_which_branches_need_one(found: Branch, expected: dict[str, str]) -> None:
    assert links.wanted([found], "/vault") == expected


def test_the_mount_that_holds_the_vault_has_none() -> None:
    assert links.wanted([branch("srv", path="/srv")], "/srv/ann/vault") == {}


def test_made_left_alone_and_removed(vault: Path) -> None:
    first = bring(vault, S3 | DRIVE)
    assert shown(vault) == S3 | DRIVE
    assert (first.change.changed, first.names) == (True, ["gdrive", "s3"])
    again = bring(vault, S3 | DRIVE)
    assert (again.change.changed, again.names) == (False, ["gdrive", "s3"])
    assert bring(vault, S3).change.changed
    assert shown(vault) == S3
    moved = bring(vault, {"s3": "/mnt/s3"})
    assert moved.change.changed
    assert shown(vault) == {"s3": "/mnt/s3"}
    gone = bring(vault, {})
    assert (gone.change.changed, gone.change.problem, shown(vault)) == (True, "", {})


def test_a_new_vault_gets_them_again(vault: Path) -> None:
    bring(vault, S3)
    (vault / "s3").unlink()
    assert bring(vault, S3).change.changed
    assert shown(vault) == S3


def test_what_is_not_ours_stays(vault: Path) -> None:
    (vault / "s3").write_text("a note\n")
    (vault / "gdrive").symlink_to("/elsewhere")
    told = bring(vault, S3 | DRIVE)
    assert not told.change.changed
    assert told.names == []
    assert told.change.problem.count("is something else, and stays") == 2
    assert (vault / "s3").read_text() == "a note\n"
    bring(vault, {})
    assert shown(vault) == {"gdrive": "/elsewhere"}


@pytest.mark.parametrize("wanted", [S3, {}, {"s3": "/mnt/s3"}])
def test_a_link_that_the_user_changed_stays(vault: Path, wanted: dict[str, str]) -> None:
    bring(vault, S3)
    (vault / "s3").unlink()
    (vault / "s3").symlink_to("notes")
    assert not bring(vault, wanted).change.changed
    assert shown(vault) == {"s3": "notes"}


def test_a_link_of_the_users_own_that_leads_there_is_as_good_and_stays(vault: Path) -> None:
    (vault / "s3").symlink_to("/s3")
    told = bring(vault, S3)
    assert (told.change.changed, told.change.problem, told.names) == (False, "", ["s3"])
    bring(vault, {})
    assert shown(vault) == S3


def test_a_planted_link_is_not_written_through(vault: Path, tmp_path: Path) -> None:
    (vault / "s3").symlink_to(tmp_path / "absent")
    bring(vault, S3)
    assert not os.path.lexists(tmp_path / "absent")


def test_a_name_that_is_not_unicode(vault: Path) -> None:
    name = os.fsdecode(b"b\xfcro")
    assert bring(vault, {name: f"/{name}"}).names == [name]
    assert os.readlink(os.fsencode(vault) + b"/b\xfcro") == b"/b\xfcro"
    assert bring(vault, {}).change.changed
    assert shown(vault) == {}


def test_a_dry_run_makes_nothing(vault: Path) -> None:
    with dry_run() as differences:
        told = bring(vault, S3)
    assert (told.change.changed, told.names, shown(vault)) == (True, ["s3"], {})
    assert "/s3" in differences[0].text
    with dry_run():
        told = bring(vault / "absent", S3)
    assert (told.change.changed, told.change.problem) == (True, "")


def test_killed_at_every_step(tmp_path: Path) -> None:
    """What a killed run made is the agent's all the same: the next one brings it to an end."""
    killed = 0
    for number in range(1, 200):
        folder = tmp_path / str(number) / "vault"
        folder.mkdir(parents=True)
        bring(folder, S3 | {"old": "/old"})
        step = partial(bring, folder, {"s3": "/mnt/s3"} | DRIVE)
        if not killed_at(number, folder.parent, step):
            break
        killed += 1
        assert bring(folder, {"s3": "/mnt/s3"} | DRIVE).change.problem == ""
        assert shown(folder) == {"s3": "/mnt/s3"} | DRIVE
        bring(folder, {})
        assert shown(folder) == {}
    assert killed > 5


@pytest.mark.needs_root
class TestAsRoot:
    """The agent is root, the vault's user is not."""

    @pytest.fixture
    def home(self) -> Iterator[Path]:
        with home_of() as home:
            os.chmod(home, 0o755)
            (home / "state").mkdir()
            os.chown(home / "state", NOBODY, NOBODY)
            yield home

    def vault_of(self, home: Path, owner: int) -> Path:
        os.chown(home, 0, 0)
        vault = home / "vault"
        vault.mkdir()
        os.chown(vault, owner, owner)
        return vault

    @pytest.mark.parametrize("owner", [0, NOBODY])
    def test_the_links_are_the_users(self, home: Path, owner: int) -> None:
        vault = self.vault_of(home, owner)
        told = bring(vault, S3, USER)
        assert (told.change.problem, told.names) == ("", ["s3"])
        assert (vault / "s3").lstat().st_uid == NOBODY
        assert (home / f"state/{FILE_NAME}").stat().st_uid == NOBODY
        assert bring(vault, {}, USER).change.changed
        assert shown(vault) == {}

    def test_nothing_is_done_in_a_folder_that_somebody_else_can_change(self, home: Path) -> None:
        vault = self.vault_of(home, 12345)
        told = bring(vault, S3, USER)
        assert "neither its user nor root alone" in told.change.problem
        assert shown(vault) == {}

    def test_nor_below_one(self, home: Path) -> None:
        vault = self.vault_of(home, 0)
        os.chown(home, 12345, 12345)
        assert "neither its user nor root alone" in bring(vault, S3, USER).change.problem

    def test_a_link_in_the_path_is_not_followed(self, home: Path) -> None:
        vault = self.vault_of(home, 0)
        os.symlink(vault, home / "other")
        assert bring(home / "other", S3, USER).change.problem
        assert shown(vault) == {}

    @pytest.mark.parametrize("name", ["theirs", "../outside", "below/it"])
    def test_a_forged_memory_removes_nothing_of_roots(self, home: Path, name: str) -> None:
        vault = self.vault_of(home, 0)
        (vault / "below").mkdir()
        os.symlink("/s3", vault / name)
        if name != "theirs":
            os.chown(vault / name, NOBODY, NOBODY, follow_symlinks=False)
        forged = {"files": {f"links in {vault}": {"written": {name: "/s3"}}}}
        (home / f"state/{FILE_NAME}").write_text(json.dumps(forged))
        os.chown(home / f"state/{FILE_NAME}", NOBODY, NOBODY)
        bring(vault, {}, USER)
        assert os.path.islink(vault / name)
