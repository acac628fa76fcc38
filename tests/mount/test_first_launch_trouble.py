"""`first-launch` when things are wrong: bad input, dead and hung mounts, missing privileges."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.lifecycle.privileges import RUN_CONFIG
from tests.support import storage
from tests.support.as_user import as_user
from tests.support.session import LIMIT, USER, KasmSession, fuse_device, kasm_session, step

pytestmark = [pytest.mark.needs_root]


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        yield made


def nothing_was_done(session: KasmSession) -> bool:
    return session.overlay_mounts() == [] and list(session.home.iterdir()) == []


class TestWrongSettings:
    """Exit 1, the place named, nothing done."""

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("vault: [\n", "line 2, column 1: not YAML"),
            ("vautl: /vault\n", "line 1: vautl: there is no such key; did you mean vault?"),
            ("mounts: {probe_seconds: -1}\n", "mounts.probe_seconds: expected seconds"),
            ("user: nobody-of-that-name\n", "there is no user 'nobody-of-that-name'"),
        ],
    )
    def test_the_file(self, session: KasmSession, text: str, told: str) -> None:
        broken = session.base / "broken.yaml"
        broken.write_text(text)
        done = session.run("first-launch", "--config", str(broken))
        assert done.returncode == 1
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert nothing_was_done(session)

    def test_a_file_that_the_user_can_write(self, session: KasmSession) -> None:
        planted = session.home / "config.yaml"
        planted.write_text("vault: /etc\n")
        os.chown(planted, USER, USER)
        session.environment["SESSION_AGENT_CONFIG"] = str(planted)
        done = session.run("first-launch")
        assert done.returncode == 1
        assert "others than root can change" in done.stderr

    @pytest.mark.parametrize(
        "path", ["/etc/vault-of-the-user", "/usr/local/x", "/var/lib", "/root"]
    )
    def test_no_variable_makes_root_give_the_user_a_system_folder(
        self, session: KasmSession, path: str
    ) -> None:
        existed = Path(path).exists()
        session.environment["SESSION_AGENT_VAULT"] = path
        done = session.run("first-launch")
        assert done.returncode == 1
        assert "is the system's" in done.stderr
        assert nothing_was_done(session)
        assert Path(path).exists() == existed

    def test_a_vault_that_holds_the_home(self, session: KasmSession) -> None:
        session.environment["SESSION_AGENT_VAULT"] = str(session.base)
        done = session.run("first-launch")
        assert done.returncode == 1
        assert "holds the home" in done.stderr

    def test_a_root_branch_in_the_vault(self, session: KasmSession) -> None:
        session.settings["root_branch"] = str(session.vault / "inner")
        done = session.run("first-launch")
        assert done.returncode == 1
        assert "root_branch:" in done.stderr

    @pytest.mark.parametrize("below", ["", "/deeper"])
    def test_a_vault_that_is_a_file(self, session: KasmSession, below: str) -> None:
        file = session.base / "file"
        file.touch()
        session.environment["SESSION_AGENT_VAULT"] = f"{file}{below}"
        done = session.run("first-launch")
        assert done.returncode == 1
        assert "is a file" in done.stderr
        assert nothing_was_done(session)

    def test_exit_zero_is_for_hooks_that_must_not_fail(self, session: KasmSession) -> None:
        session.environment["SESSION_AGENT_VAULT"] = "relative"
        done = session.run("first-launch", "--exit-zero")
        assert done.returncode == 0
        assert "SESSION_AGENT_VAULT" in done.stderr


@pytest.mark.needs_fuse
class TestBadInput:
    """The rest is done, and what is missing is said."""

    def test_nonsense_in_cloud_mounts(self, session: KasmSession) -> None:
        session.environment["CLOUD_MOUNTS"] = f",, no|path ,{session.base}/absent|s3,|||"
        report = session.first_launch(0)
        assert any("'no|path'" in warning for warning in report["warnings"])
        assert step(report, "mounts")["detail"] == "2 mounts"

    def test_an_unwritable_home(self, session: KasmSession) -> None:
        os.chmod(session.home, 0o555)
        report = session.first_launch(2)
        assert "Permission denied" in step(report, "bookmarks")["detail"]
        assert "Permission denied" in step(report, "vault")["detail"]
        assert step(report, "vault")["hint"]
        assert session.overlay_mounts() == []

    def test_an_unwritable_home_with_the_rest_elsewhere(self, session: KasmSession) -> None:
        os.chmod(session.home, 0o555)
        place = session.base / "local"
        place.mkdir()
        os.chown(place, USER, USER)
        session.settings |= {"state_dir": f"{place}/state", "root_branch": f"{place}/root"}
        report = session.first_launch(2)
        assert step(report, "vault")["state"] == "ok"
        assert step(report, "bookmarks")["state"] == "degraded"
        assert session.overlay_mounts() == [str(session.vault)]

    def test_a_home_that_does_not_exist(self, session: KasmSession) -> None:
        session.environment["HOME"] = str(session.base / "nowhere")
        done = session.run("first-launch")
        assert done.returncode == 1
        assert "HOME=" in done.stderr

    def test_fifos_where_files_are_expected(self, session: KasmSession) -> None:
        names = (".config/gtk-3.0/bookmarks", ".local/state/session-agent/agent.lock")

        def plant() -> None:
            for name in names:
                (session.home / name).parent.mkdir(parents=True, exist_ok=True)
                os.mkfifo(session.home / name)

        as_user(plant, USER)
        report = session.first_launch(2)
        assert "special file" in step(report, "bookmarks")["detail"]
        assert "no regular file" in step(report, "vault")["detail"]

    def test_a_vault_that_is_absent_is_made_for_the_user(self, session: KasmSession) -> None:
        session.settings["vault"] = str(session.base / "new/vault")
        session.first_launch(0)
        session.run("stop")
        made = session.base / "new/vault"
        assert (made.stat().st_uid, made.parent.stat().st_uid) == (USER, 0)


@pytest.mark.needs_fuse
class TestTwoSessions:
    """One vault cannot have two agents."""

    def test_an_agent_with_another_state_directory(self, session: KasmSession) -> None:
        session.first_launch(0)
        session.environment["SESSION_AGENT_STATE_DIR"] = str(session.home / "other-state")
        report = session.first_launch(2)
        assert "served by another agent" in step(report, "vault")["detail"]
        assert session.run("stop").returncode == 1
        session.environment.clear()
        assert session.status()["state"] == "running"

    def test_a_second_serve(self, session: KasmSession) -> None:
        session.first_launch(0)
        done = session.run("serve")
        assert done.returncode == 1
        assert "serves this session already" in done.stderr
        assert session.status()["state"] == "running"


@pytest.mark.needs_fuse
@pytest.mark.needs_rclone
class TestDeadAndHung:
    """A cloud drive that does not answer costs nobody else anything."""

    @pytest.fixture
    def drives(self, session: KasmSession) -> Iterator[dict[str, storage.RcloneMount]]:
        with contextlib.ExitStack() as stack:
            yield {
                name: stack.enter_context(
                    storage.rclone(session.base / "cloud" / name, path, remote=name)
                )
                for name, path in (
                    ("dead", session.base / "dead"),
                    ("hung", session.vault / "hung"),
                )
            }
            session.run("stop", "--force")

    def test_it(self, session: KasmSession, drives: dict[str, storage.RcloneMount]) -> None:
        drives["dead"].kill()
        drives["hung"].stop()
        session.environment["CLOUD_MOUNTS"] = f"{session.base}/dead|s3,{session.vault}/hung|gdrive"
        report = session.first_launch(2)
        detail = step(report, "mounts")["detail"]
        assert f"{session.base}/dead is dead" in detail
        assert f"{session.vault}/hung is hung" in detail
        assert step(report, "vault")["state"] == "degraded"
        assert step(report, "bookmarks")["state"] == "ok"
        states = {b["name"]: b["state"] for b in session.status()["branches"]}
        assert states == {"engineering": "alive", "wiki": "alive", "dead": "dead", "hung": "hung"}

        def use_the_others() -> None:
            (session.vault / "engineering/new").write_text("x")
            begun = time.monotonic()
            with pytest.raises(OSError, match=r"Transport|timed out"):
                os.listdir(session.vault / "hung")
            assert time.monotonic() - begun < LIMIT

        as_user(use_the_others, USER)
        again = session.first_launch(2)
        assert not again["changed"]
        assert step(again, "mounts")["detail"] == detail
        assert session.run("mounts", "--json").returncode == 2

    def test_a_second_one_waits_for_the_agent_of_the_first(
        self, session: KasmSession, drives: dict[str, storage.RcloneMount]
    ) -> None:
        """Probing what hangs takes the agent two seconds before it listens."""
        drives["hung"].stop()
        first = session.start("first-launch")
        while not (session.state_dir / "agent.lock").exists():
            time.sleep(0.05)
        second = session.first_launch(2)
        assert "is served" in step(second, "vault")["detail"]
        first.communicate(timeout=30)
        assert first.returncode == 2

    def test_one_that_dies_while_the_agent_runs(
        self, session: KasmSession, drives: dict[str, storage.RcloneMount]
    ) -> None:
        session.first_launch(0)
        drives["hung"].kill()
        report = session.first_launch(2)
        assert f"{session.vault}/hung is dead" in step(report, "mounts")["detail"]


class TestWithoutFuse:
    """Everything but the vault is done, and the remedy is told."""

    def check(self, session: KasmSession, *, as_user: bool = False) -> str:
        report = session.first_launch(2, as_user=as_user)
        vault = step(report, "vault")
        assert vault["state"] == "degraded"
        for step_done in report["steps"]:
            assert step_done["state"] == "ok" or step_done is vault
        assert (session.vault / ".obsidian/app.json").exists()
        again = session.first_launch(2, as_user=as_user)
        assert not again["changed"]
        return f"{vault['detail']} {vault['hint']}"

    def test_switched_off(self, session: KasmSession) -> None:
        os.chown(session.vault, USER, USER)
        session.settings["overlay"] = {"enabled": False}
        told = self.check(session)
        assert "overlay.enabled is false" in told
        assert RUN_CONFIG in told

    def test_the_vaults_folder_is_made_all_the_same(self, session: KasmSession) -> None:
        session.vault = session.base / "new"
        session.settings |= {"vault": str(session.vault), "overlay": {"enabled": False}}
        self.check(session)
        assert session.vault.stat().st_uid == USER

    @pytest.mark.needs_fuse
    def test_a_device_that_the_user_cannot_open(self, session: KasmSession) -> None:
        os.chown(session.vault, USER, USER)
        with fuse_device(session, 0o600):
            told = self.check(session, as_user=True)
        assert "/dev/fuse cannot be opened (Permission denied)" in told

    def test_obsidian_gets_a_plugin_and_it_is_not_switched_on(self, session: KasmSession) -> None:
        os.chown(session.vault, USER, USER)
        session.settings["overlay"] = {"enabled": False}
        self.check(session)
        settings = session.vault / ".obsidian"
        plugin = settings / "plugins/session-agent-moves"
        assert sorted(os.listdir(plugin)) == ["main.js", "manifest.json"]
        assert (plugin / "main.js").stat().st_uid == USER
        assert not (settings / "community-plugins.json").exists()

    def test_bookmarks_lead_to_where_the_mounts_are(self, session: KasmSession) -> None:
        os.chown(session.vault, USER, USER)
        session.settings["overlay"] = {"enabled": False}
        with storage.tmpfs(session.base / "drive"):
            self.check(session)
        bookmarks = (session.home / ".config/gtk-3.0/bookmarks").read_text()
        assert f"file://{session.base}/drive" in bookmarks
        assert f"file://{session.vault}/engineering" in bookmarks
        rooms = (session.home / ".config/session-agent/rooms.yaml").read_text()
        assert "drive" not in rooms

    @pytest.mark.needs_fuse
    def test_drives_elsewhere_are_linked_until_there_is_an_overlay(
        self, session: KasmSession
    ) -> None:
        os.chown(session.vault, USER, USER)
        session.settings["overlay"] = {"enabled": False}
        link = session.vault / "drive"
        with storage.tmpfs(session.base / "drive"):
            self.check(session)
            assert os.readlink(link) == f"{session.base}/drive"
            assert link.lstat().st_uid == USER
            bookmarks = json.loads((session.vault / ".obsidian/bookmarks.json").read_text())
            assert "drive" in json.dumps(bookmarks)
            session.settings["overlay"] = {"enabled": True}
            assert step(session.first_launch(0), "links in the vault")["changed"]
            assert not link.is_symlink()
            session.run("stop")
        assert not os.path.lexists(link)

    def test_a_link_to_a_drive_that_is_gone_goes(self, session: KasmSession) -> None:
        os.chown(session.vault, USER, USER)
        session.settings["overlay"] = {"enabled": False}
        with storage.tmpfs(session.base / "drive"):
            self.check(session)
        self.check(session)
        assert not os.path.lexists(session.vault / "drive")


@pytest.mark.needs_fuse
class TestAsTheUser:
    """Without root: through fusermount3."""

    @pytest.fixture(autouse=True)
    def device(self, session: KasmSession) -> Iterator[None]:
        os.chown(session.vault, USER, USER)
        with fuse_device(session, 0o666):
            yield
            session.run("stop", "--force", as_user=True)

    def test_the_whole_of_it(self, session: KasmSession) -> None:
        report = session.first_launch(0, as_user=True)
        assert report["state"] == "ok"

        def use_the_vault() -> None:
            (session.vault / "top.md").write_text("top\n")
            (session.vault / "top.md").rename(session.vault / "engineering/top.md")

        as_user(use_the_vault, USER)
        assert (session.base / "host/engineering/top.md").read_text() == "top\n"
        assert not session.first_launch(0, as_user=True)["changed"]
        assert session.run("stop", as_user=True).returncode == 0
        assert session.overlay_mounts() == []

    def test_a_killed_agent(self, session: KasmSession) -> None:
        session.first_launch(0, as_user=True)
        pid = session.status(as_user=True)["pid"]
        session.kill_agent(pid)
        session.first_launch(0, as_user=True)
        assert session.overlay_mounts() == [str(session.vault)]
        assert session.status(as_user=True)["pid"] != pid

    def test_acting_for_somebody_else_is_refused(self, session: KasmSession) -> None:
        session.settings["user"] = USER + 1
        done = session.run("first-launch", as_user=True)
        assert done.returncode == 1
        assert "only root can act for another user" in done.stderr
