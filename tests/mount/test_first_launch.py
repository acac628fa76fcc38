"""`first-launch` on real mounts, run as root for the session user, the way a Kasm hook does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import storage
from tests.support.as_user import as_user
from tests.support.session import USER, KasmSession, kasm_session, step

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        yield made


def test_the_vault_is_served_and_the_desktop_told(session: KasmSession) -> None:
    report = session.first_launch(0)
    assert report["state"] == "ok"
    assert report["warnings"] == []
    assert step(report, "mounts")["detail"] == "2 mounts"
    assert session.overlay_mounts() == [str(session.vault)]

    def use_the_vault() -> None:
        vault = session.vault
        assert (vault / "wiki/note.md").read_text() == "wiki\n"
        (vault / "top.md").write_text("top\n")
        (vault / "top.md").rename(vault / "engineering/top.md")
        with pytest.raises(OSError, match="Read-only"):
            (vault / "wiki/new").write_text("")

    as_user(use_the_vault, USER)
    assert (session.base / "host/engineering/top.md").read_text() == "top\n"
    assert (session.vault / ".obsidian/app.json").stat().st_uid == USER
    bookmarks = session.home / ".config/gtk-3.0/bookmarks"
    assert f"file://{session.vault}/engineering" in bookmarks.read_text()
    rooms = session.home / ".config/session-agent/rooms.yaml"
    assert f"{session.vault}/wiki" in rooms.read_text()
    assert str(session.vault) in (session.home / ".config/obsidian/obsidian.json").read_text()


def test_what_is_made_in_the_home_belongs_to_the_user(session: KasmSession) -> None:
    session.first_launch(0)
    made = list(session.home.rglob("*"))
    assert {path.lstat().st_uid for path in made} == {USER}
    assert {path.lstat().st_gid for path in made} == {USER}
    assert session.state_dir.stat().st_mode & 0o777 == 0o700
    assert session.root_branch.stat().st_mode & 0o777 == 0o700
    assert (session.state_dir / "control.sock").stat().st_mode & 0o777 == 0o600


def test_a_second_run_changes_nothing(session: KasmSession) -> None:
    session.first_launch(0)
    before = {path: path.lstat().st_mtime_ns for path in session.home.rglob("*")}
    pid = session.status()["pid"]
    report = session.first_launch(0)
    assert not report["changed"]
    assert not any(step["changed"] for step in report["steps"])
    assert {path: path.lstat().st_mtime_ns for path in session.home.rglob("*")} == before
    assert session.status()["pid"] == pid
    assert "Everything is unchanged" in session.run("first-launch").stdout


def test_status_and_stop(session: KasmSession) -> None:
    assert session.status()["state"] == "stopped"
    session.first_launch(0)
    document = session.status()
    assert document == {
        "state": "running",
        "vault": str(session.vault),
        "pid": document["pid"],
        "branches": [
            {
                "name": name,
                "path": str(session.vault / name),
                "mode": mode,
                "state": "alive",
            }
            for name, mode in (("engineering", "rw"), ("wiki", "ro"))
        ],
        "moves": [],
        "warnings": [],
        "foreign": document["foreign"],
    }
    counts = ["watched", "unwatched", "polled", "polls", "announced", "coalesced", "dropped"]
    assert list(document["foreign"]) == [*counts, "rescanned"]
    assert document["foreign"]["watched"] >= 2
    assert session.run("status").returncode == 0
    stopped = session.run("stop", "--json")
    assert json.loads(stopped.stdout) == {"stopped": True, "vault": str(session.vault)}
    assert session.overlay_mounts() == []
    assert not is_running(document["pid"])
    again = session.run("stop")
    assert (again.returncode, again.stdout) == (0, "Nothing was running.\n")
    assert session.run("status").returncode == 1


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than a zombie that nobody has buried yet."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def test_the_session_user_can_ask_and_stop_what_root_started(session: KasmSession) -> None:
    session.first_launch(0)
    assert session.status(as_user=True)["state"] == "running"
    assert session.run("stop", as_user=True).returncode == 0
    assert session.overlay_mounts() == []


def test_the_mount_of_a_killed_agent_is_taken_over(session: KasmSession) -> None:
    session.first_launch(0)
    session.kill_agent()
    wait_for_dead_mount(session)
    document = session.status()
    assert document["state"] == "stopped"
    assert "left its mount behind" in document["warnings"][0]
    report = session.first_launch(0)
    assert step(report, "vault")["changed"]
    assert session.overlay_mounts() == [str(session.vault)]
    assert (session.vault / "engineering/note.md").read_text() == "engineering\n"


def test_stop_removes_the_mount_of_a_killed_agent(session: KasmSession) -> None:
    session.first_launch(0)
    session.kill_agent()
    wait_for_dead_mount(session)
    assert session.run("stop").returncode == 0
    assert session.overlay_mounts() == []


def wait_for_dead_mount(session: KasmSession) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.statvfs(session.vault)
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError("the mount outlives its server")


def test_an_agent_that_hangs_is_reported_and_can_be_forced_out(session: KasmSession) -> None:
    session.first_launch(0)
    agent = session.status()["pid"]
    pid = session.worker(agent)
    os.kill(pid, signal.SIGSTOP)
    try:
        report = session.first_launch(2)
        assert "stop --force" in step(report, "vault")["hint"]
        assert session.status()["state"] == "degraded"
        stubborn = session.run("stop")
        assert stubborn.returncode == 1
        assert "--force" in stubborn.stderr
        assert session.run("stop", "--force").returncode == 0
        assert not is_running(pid)
        assert not is_running(agent)
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGCONT)
    assert session.overlay_mounts() == []


def test_two_at_once_start_one_agent(session: KasmSession) -> None:
    runs = [session.start("first-launch", "--json") for _ in range(2)]
    outputs = [run.communicate(timeout=30) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert session.overlay_mounts() == [str(session.vault)]
    assert session.status()["state"] == "running"
    bookmarks = (session.home / ".config/gtk-3.0/bookmarks").read_text()
    assert bookmarks.count("/engineering") == 1


def test_a_new_mount_is_taken_in_and_one_that_is_gone_goes(session: KasmSession) -> None:
    session.first_launch(0)
    before = session.status()["pid"]
    elsewhere = session.base / "drive"
    source = session.base / "host/drive"
    source.mkdir()
    (source / "film").write_text("x")
    holder = subprocess.Popen(["sleep", "60"], cwd=session.vault / "engineering")
    try:
        with storage.bind(source, elsewhere):
            session.first_launch(0)
            assert session.status()["pid"] == before
            assert (session.vault / "drive/film").read_text() == "x"
        report = session.first_launch(2)
        assert "mounts have changed" in step(report, "vault")["detail"]
        assert session.status()["pid"] == before
    finally:
        holder.kill()
        holder.wait()
    session.first_launch(0)
    assert session.status()["pid"] != before
    assert not (session.vault / "drive").exists()
    session.run("stop")


def test_what_the_overlay_hides_is_told_with_its_remedy(session: KasmSession) -> None:
    (session.vault / "old.md").write_text("old\n")
    os.chown(session.vault, USER, USER)
    os.chown(session.vault / "old.md", USER, USER)
    (warning,) = session.first_launch(0)["warnings"]
    assert "holds: old.md." in warning
    assert f"`root_branch: {session.vault}`" in warning
    assert session.status()["warnings"] == [warning]
    assert not (session.vault / "old.md").exists()
    session.run("stop")

    session.settings["root_branch"] = str(session.vault)
    assert session.first_launch(0)["warnings"] == []
    assert (session.vault / "old.md").read_text() == "old\n"
    assert (session.vault / ".obsidian/app.json").exists()
    assert not session.first_launch(0)["changed"]


def test_a_mount_behind_a_door_that_is_closed_to_the_user(session: KasmSession) -> None:
    """Root sees it, and must not hand it on."""
    inner = session.secret / "inner"
    with storage.tmpfs(inner):
        (inner / "letter").write_text("root's own\n")
        inner.chmod(0o777)
        session.first_launch(2)
        states = {b["name"]: b["state"] for b in session.status()["branches"]}
        assert states["inner"] == "dead"
        assert not (session.vault / "inner/letter").exists()
        session.run("stop")


def test_links_planted_in_the_home_lead_root_nowhere(session: KasmSession) -> None:
    """Whatever the user puts where the agent writes, what only root may touch stays as it is."""
    shadow = session.secret / "shadow"
    home = session.home
    plants = {
        ".config/gtk-3.0/bookmarks": shadow,
        ".config/obsidian/obsidian.json": shadow,
        ".config/session-agent": session.secret,
        ".local/state/session-agent/agent.log": shadow,
        ".local/state/session-agent/agent.lock": session.secret / "made-lock",
        ".local/state/session-agent/desktop.lock": session.secret / "made-desktop-lock",
        ".local/state/session-agent/desktop-memory.json": shadow,
        ".local/state/session-agent/control.sock": shadow,
        ".local/share/session-agent/root": session.secret,
    }

    def plant() -> None:
        for name, target in plants.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).symlink_to(target)

    as_user(plant, USER)
    before = fingerprint(session.secret)
    assert session.run("first-launch").returncode == 2
    assert fingerprint(session.secret) == before


def test_a_link_in_place_of_the_state_directory(session: KasmSession) -> None:
    as_user(lambda: session.state_dir.parent.mkdir(parents=True), USER)
    as_user(lambda: session.state_dir.symlink_to(session.secret), USER)
    before = fingerprint(session.secret)
    assert session.run("first-launch").returncode == 2
    assert fingerprint(session.secret) == before


class TestServe:
    """In the foreground, the way a service manager runs it."""

    @pytest.fixture
    def serving(self, session: KasmSession) -> Iterator[subprocess.Popen[str]]:
        process = session.start("serve", "--json")
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ready": True}
        assert session.overlay_mounts() == [str(session.vault)]
        yield process
        if process.poll() is None:
            session.kill_agent(process.pid)
        process.communicate()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_in_order(
        self, session: KasmSession, serving: subprocess.Popen[str], number: signal.Signals
    ) -> None:
        serving.send_signal(number)
        _, log = serving.communicate(timeout=10)
        assert serving.returncode == 0, log
        assert number.name in log
        assert session.overlay_mounts() == []

    def test_it_takes_over_too(self, session: KasmSession, serving: subprocess.Popen[str]) -> None:
        session.kill_agent(serving.pid)
        wait_for_dead_mount(session)
        again = session.start("serve", "--json")
        assert again.stdout is not None
        assert json.loads(again.stdout.readline()) == {"ready": True}
        assert session.overlay_mounts() == [str(session.vault)]
        again.terminate()
        assert "took over" in again.communicate(timeout=10)[1]

    def test_so_does_umount(self, session: KasmSession, serving: subprocess.Popen[str]) -> None:
        subprocess.run(["umount", session.vault], check=True)
        _, log = serving.communicate(timeout=10)
        assert serving.returncode == 0, log

    def test_so_does_stop(self, session: KasmSession, serving: subprocess.Popen[str]) -> None:
        assert session.status()["pid"] == serving.pid
        assert session.run("stop").returncode == 0
        assert serving.wait(10) == 0


def fingerprint(folder: Path) -> list[object]:
    paths = [folder, *sorted(folder.rglob("*"))]
    return [
        (
            str(p),
            s.st_mode,
            s.st_uid,
            s.st_ino,
            s.st_mtime_ns,
            s.st_ctime_ns,
            p.is_file() and p.read_bytes(),
        )
        for p in paths
        for s in [p.lstat()]
    ]


def test_a_package_planted_in_the_working_directory_is_not_run(session: KasmSession) -> None:
    """Hooks are run in the home: `python -m` in the daemon must not look there."""
    planted = session.home / "session_agent"
    planted.mkdir()
    (planted / "__main__.py").write_text(f"open({str(session.base / 'taken')!r}, 'w')\n")
    (planted / "__init__.py").touch()
    session.write_config()
    command = "import sys; sys.path.remove(''); from session_agent.cli import main as m"
    done = subprocess.run(
        [sys.executable, "-c", f"{command}; sys.exit(m.main())", "first-launch"],
        cwd=session.home,
        env={
            "HOME": str(session.home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "SESSION_AGENT_CONFIG": str(session.config),
        },
        check=False,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert session.status()["state"] == "running"
    assert not (session.base / "taken").exists()
