"""The running agent and a desktop that comes, goes and comes again: real buses, gio, rclone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from session_agent.desktop.rooms import Terms
from session_agent.lifecycle import companion
from session_agent.lifecycle.session import Place
from session_agent.model import Mode, SessionUser
from tests.support import storage
from tests.support.branches import branch
from tests.support.desktop import Bus, notification_service, process, session_bus, wait_until
from tests.support.session import ROOT, USER, KasmSession, kasm_session, step

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.skipif(
        not Path("/usr/libexec/gvfsd-metadata").exists() or shutil.which("dbus-daemon") is None,
        reason="needs gvfs-daemons and dbus-daemon",
    ),
]

SCRIPT = ROOT / "tests/data/kasm/emblems.sh"
DRIVE = {"gdrive-emblem"}
DOWN = {"gdrive-emblem", "session-agent-unavailable"}


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        yield made


@pytest.fixture
def bus(session: KasmSession) -> Iterator[Bus]:
    with session_bus(session.home, USER) as started:
        yield started


@contextlib.contextmanager
def drive(session: KasmSession) -> Iterator[storage.RcloneMount]:
    """A cloud drive in the vault; the agent is stopped before it goes."""
    (session.base / "cloud").mkdir()
    session.environment["CLOUD_MOUNTS"] = f"{session.vault}/gdrive|gdrive"
    with storage.rclone(session.base / "cloud", session.vault / "gdrive") as mounted:
        try:
            yield mounted
        finally:
            if mounted.process.poll() is None:
                mounted.resume()
            session.run("stop", "--force")


def log(session: KasmSession) -> str:
    return (session.state_dir / "agent.log").read_text()


def wait_for_emblems(bus: Bus, path: Path, emblems: set[str]) -> None:
    wait_until(lambda: bus.emblems(path) == emblems, f"{emblems} at {path}")


def touch_the_drive(session: KasmSession) -> None:
    subprocess.run(["ls", session.vault / "gdrive"], check=False, capture_output=True, timeout=20)


def test_a_desktop_that_comes_up_later_and_again(session: KasmSession, bus: Bus) -> None:
    session.first_launch(0)
    vault = session.vault
    assert bus.emblems(vault / "wiki") == set()
    with bus.stand_in() as desktop:
        wait_for_emblems(bus, vault / "wiki", {"session-agent-storage", "session-agent-read-only"})
        assert bus.emblems(vault / "engineering") == {"session-agent-storage"}
        assert bus.emblems(vault / "_inbox") == set()
        assert f"the desktop is process {desktop.pid}" in log(session)
        metadata = session.home / ".local/share/gvfs-metadata"
        assert {path.stat().st_uid for path in metadata.rglob("*")} == {USER}
    wait_until(lambda: "the desktop has ended" in log(session), "its end is noticed")
    bus.run("gio", "set", "-t", "unset", vault / "wiki", "metadata::emblems")
    bus.run("gio", "set", "-t", "unset", vault / "engineering", "metadata::emblems")
    with session_bus(session.home, USER) as other, other.stand_in():
        wait_for_emblems(other, vault / "engineering", {"session-agent-storage"})


def test_it_is_the_users_process_and_ends_with_the_agent(session: KasmSession) -> None:
    session.first_launch(0)
    pid = session.status()["pid"]
    worker = session.worker(pid)
    companions = [child for child in psutil.Process(pid).children() if child.pid != worker]
    assert [child.uids() for child in companions] == [(USER, USER, USER)]
    assert [child.gids() for child in companions] == [(USER, USER, USER)]
    held = [os.readlink(path) for path in Path(f"/proc/{companions[0].pid}/fd").iterdir()]
    assert not [
        target for target in held if "fuse" in target or target.startswith(str(session.vault))
    ]
    session.kill_agent(pid)
    wait_until(lambda: not companions[0].is_running(), "its end")


def test_a_drive_that_dies_is_told_once(session: KasmSession, bus: Bus) -> None:
    with (
        drive(session) as mounted,
        bus.stand_in(),
        notification_service(bus, session.home / "shown") as shown,
    ):
        session.first_launch(0)
        wait_for_emblems(bus, session.vault / "gdrive", DRIVE)
        mounted.kill()
        touch_the_drive(session)
        wait_for_emblems(bus, session.vault / "gdrive", DOWN)
        for _ in range(5):
            touch_the_drive(session)
        wait_until(lambda: shown() != [], "notification")
        assert [line.partition("|")[0] for line in shown()] == ["1 0 Google Drive does not answer"]
        # It is no deleted folder.
        assert "gdrive" in os.listdir(session.vault)
        assert (session.vault / "gdrive").is_dir()
        with pytest.raises(OSError, match="not connected"):
            os.listdir(session.vault / "gdrive")


def test_a_drive_that_is_dead_from_the_start(session: KasmSession, bus: Bus) -> None:
    with drive(session) as mounted, bus.stand_in():
        mounted.kill()
        session.first_launch(2)
        wait_for_emblems(bus, session.vault / "gdrive", DOWN)
        assert (session.vault / "gdrive").is_dir()
        assert "gdrive" in os.listdir(session.vault)
        with pytest.raises(OSError, match="not connected"):
            os.listdir(session.vault / "gdrive")
        with pytest.raises(OSError, match="not connected"):
            (session.vault / "gdrive/new.md").write_text("")


def test_watchers_are_told_and_the_folder_is_not_changed(session: KasmSession, bus: Bus) -> None:
    session.first_launch(0)
    host = session.base / "host/engineering"
    before = host.stat()
    log = session.base / "events"
    command = ["inotifywait", "-m", "-e", "attrib", "--format", "%e %f", str(session.vault)]
    with process(command, environment=bus.environment, log=log):
        wait_until(lambda: "established" in log.read_text(), "inotifywait")
        with bus.stand_in():
            wait_until(lambda: "ATTRIB,ISDIR engineering" in log.read_text(), "the event")
            wait_until(lambda: "ATTRIB,ISDIR wiki" in log.read_text(), "the read-only one's")
    after = host.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    # Anybody else's touch is one.
    bus.run("touch", session.vault / "engineering")
    assert host.stat().st_mtime_ns > before.st_mtime_ns


def test_a_drive_that_hangs_and_returns(session: KasmSession, bus: Bus) -> None:
    session.settings["overlay"] = {"remote_seconds": 0.5}
    with (
        drive(session) as mounted,
        bus.stand_in(),
        notification_service(bus, session.home / "shown") as shown,
    ):
        session.first_launch(0)
        wait_for_emblems(bus, session.vault / "gdrive", DRIVE)
        mounted.stop()
        touch_the_drive(session)
        wait_for_emblems(bus, session.vault / "gdrive", DOWN)
        mounted.resume()
        wait_for_emblems(bus, session.vault / "gdrive", DRIVE)
        wait_until(lambda: len(shown()) >= 2, "notifications")
        assert [line.partition("|")[0] for line in shown()] == [
            "1 0 Google Drive does not answer",
            "1 1 Google Drive is back",
        ]


@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_emblems_sh(session: KasmSession, bus: Bus, order: str) -> None:
    session.environment["CLOUD_MOUNTS"] = f"{session.vault}/wiki|s3"
    wiki = session.vault / "wiki"

    def run_the_script() -> None:
        variable = f"CLOUD_MOUNTS={session.environment['CLOUD_MOUNTS']}"
        bus.run("env", variable, "bash", "-c", SCRIPT.read_text())

    if order == "before":
        run_the_script()
        assert bus.emblems(wiki) == {"s3-emblem"}
    session.first_launch(0)
    with bus.stand_in():
        wait_for_emblems(bus, wiki, {"s3-emblem", "session-agent-read-only"})
        bookmarks = session.home / ".config/gtk-3.0/bookmarks"
        before = bookmarks.read_text()
        run_the_script()
        assert bus.emblems(wiki) == {"s3-emblem", "session-agent-read-only"}
        assert bookmarks.read_text() == before
        assert before.splitlines() == [
            f"file://{session.vault} Vault",
            f"file://{session.vault}/engineering Engineering",
            f"file://{wiki}",
        ]


def test_emblems_that_the_script_has_taken_away_are_given_again(
    session: KasmSession, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so at each start of the desktop where it cannot find its own bookmark."""
    monkeypatch.setattr(companion, "_SECOND_TIME", 2.0)
    user = SessionUser("kasm-user", USER, USER, (), str(session.home))
    home, state = str(session.home), str(session.state_dir)
    place = Place(
        user,
        str(session.vault),
        state,
        f"{home}/.config",
        Terms(f"{home}/rooms", str(session.vault)),
    )
    wiki = session.vault / "wiki"
    both = {"s3-emblem", "session-agent-read-only"}
    with bus.stand_in(), contextlib.ExitStack() as stack:
        started = companion.start(place)
        stack.callback(started.end)
        started.tell([branch("wiki", Mode.RO, "s3")])
        wait_for_emblems(bus, wiki, both)
        bus.run("gio", "set", "-t", "stringv", wiki, "metadata::emblems", "s3-emblem")
        assert bus.emblems(wiki) == {"s3-emblem"}
        wait_for_emblems(bus, wiki, both)


def test_without_an_agent_first_launch_does_it(session: KasmSession, bus: Bus) -> None:
    session.settings["overlay"] = {"enabled": False}
    report = session.first_launch(2)
    assert step(report, "emblems")["detail"] == "the desktop is not up"
    with bus.stand_in():
        told = session.run("first-launch", "--dry-run").stdout
        assert f"{session.vault}/engineering: none -> session-agent-storage" in told
        assert bus.emblems(session.vault / "engineering") == set()
        assert step(session.first_launch(2), "emblems")["changed"]
        assert bus.emblems(session.vault / "engineering") == {"session-agent-storage"}
        again = step(session.first_launch(2), "emblems")
        assert (again["changed"], again["state"]) == (False, "ok")


def test_icons_are_installed_for_everybody_by_root(session: KasmSession) -> None:
    icons = session.icons / "scalable/emblems"
    assert step(session.first_launch(0), "emblem icons")["changed"]
    assert (icons / "gdrive-emblem.svg").stat().st_mode & 0o777 == 0o644
    assert len(list(icons.iterdir())) == 18
    assert not (session.home / ".local/share/icons").exists()
    assert not step(session.first_launch(0), "emblem icons")["changed"]


def test_where_the_image_cannot_be_changed_the_home_gets_them(session: KasmSession) -> None:
    subprocess.run(["mount", "-o", "remount,bind,ro", "/usr/share/icons/hicolor"], check=True)
    session.first_launch(0)
    icons = session.home / ".local/share/icons/hicolor/scalable/emblems"
    assert len(list(icons.iterdir())) == 18
    assert {path.stat().st_uid for path in icons.iterdir()} == {USER}
