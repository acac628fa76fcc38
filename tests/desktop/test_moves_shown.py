"""Moves of the running agent as its user sees them: the verb, its bars, and notifications on a real bus.

What is moved goes to or from an rclone mount with little bandwidth, so there is time to look.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import storage
from tests.support.as_user import as_user
from tests.support.desktop import Bus, notification_service, session_bus, wait_until
from tests.support.session import USER, KasmSession, kasm_session

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.needs_rclone,
]

needs_bus = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None or not Path("/usr/bin/python3").exists(),
    reason="needs dbus-daemon",
)

MIB = 1 << 20
FILM = os.urandom(4 * MIB)
SIZES = {"letter": 10_000, "film": len(FILM), "series": 30 * MIB, "album": 30 * MIB}  # on the drive


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        made.settings["mounts"]["exclude"].append(str(made.base / "cloud"))
        made.settings["mounts"]["include"] = [str(made.vault / "big")]
        made.settings["moves"] = {"inline_bytes": 1000, "grace_seconds": 0.5}
        yield made


@pytest.fixture
def drive(session: KasmSession) -> Iterator[storage.RcloneMount]:
    """A slow cloud drive in the vault, and `big` beside it."""
    with (
        storage.tmpfs(session.vault / "big", size="100m") as big,
        storage.tmpfs(session.base / "cloud", size="100m") as folder,
    ):
        os.chown(big, USER, USER)
        for name, size in SIZES.items():
            (folder / name).write_bytes(FILM if name == "film" else os.urandom(size))
        with slow_drive(session, folder) as mounted:
            yield mounted


@contextlib.contextmanager
def slow_drive(session: KasmSession, folder: Path) -> Iterator[storage.RcloneMount]:
    """`folder` mounted as a drive with little bandwidth; the agent is stopped before it goes."""
    with storage.rclone(folder, session.vault / "drive", bandwidth="1M") as mounted:
        try:
            yield mounted
        finally:
            session.run("stop", "--force")


@pytest.fixture
def bus(session: KasmSession) -> Iterator[Bus]:
    with session_bus(session.home, USER) as started:
        yield started


def listing(session: KasmSession, code: int = 0) -> list[dict[str, Any]]:
    done = session.run("moves", "--json")
    assert done.returncode == code, done.stderr
    told = json.loads(done.stdout)
    assert isinstance(told["moves"], list)
    return told["moves"]


def listing_any(session: KasmSession) -> list[dict[str, Any]]:
    told = json.loads(session.run("moves", "--json").stdout)["moves"]
    assert isinstance(told, list)
    return told


def download(session: KasmSession, name: str) -> dict[str, Any]:
    """Begin to move a file from the drive; what is told of it then."""
    vault = session.vault
    return _begin(session, vault / "drive" / name, vault / "big" / name)


def upload(session: KasmSession, name: str, size: int) -> dict[str, Any]:
    """Begin to move a new file to the drive. That only ends, or fails, once rclone has sent all of it."""
    old = session.vault / "big" / name
    old.write_bytes(os.urandom(size))
    os.chown(old, USER, USER)
    return _begin(session, old, session.vault / "drive" / name)


def _begin(session: KasmSession, old: Path, new: Path) -> dict[str, Any]:
    as_user(lambda: os.rename(old, new), USER)
    moving = [one for one in listing_any(session) if one["to"] == str(new)]
    assert len(moving) == 1
    return moving[0]


def state_of(session: KasmSession, move_id: str, code: int = 0) -> str:
    states = {one["id"]: one["state"] for one in listing(session, code)}
    return str(states.get(move_id))


def test_progress_and_the_end(session: KasmSession, drive: storage.RcloneMount) -> None:
    session.first_launch(0)
    begun = time.time()
    first = download(session, "film")
    assert first["from"] == f"{session.vault}/drive/film"
    assert first["to"] == f"{session.vault}/big/film"
    assert first["background"]
    assert begun - 1 < first["started"] < time.time()

    def half_way() -> dict[str, Any] | None:
        told = listing(session)[0]
        return told if told["seconds_left"] and told["bytes"] > MIB else None

    wait_until(lambda: half_way() or listing(session)[0]["state"] == "done", "half way")
    told = listing(session)[0]
    assert told["state"] == "staging", told
    assert told["strategy"] == "copy"
    assert (told["total_bytes"], told["total_files"]) == (len(FILM), 1)
    assert 0 < told["bytes"] < len(FILM)
    assert 0.3 * MIB < told["rate"] < 4 * MIB
    assert "1 move is under way: see" in session.run("status").stdout
    assert session.run("moves", "--watch").returncode == 0
    ended = listing(session)[0]
    assert (ended["id"], ended["state"], ended["bytes"]) == (first["id"], "done", len(FILM))
    assert ended["started"] < ended["ended"] <= time.time()
    assert "move is under way" not in session.run("status").stdout


def test_cancelled(session: KasmSession, drive: storage.RcloneMount) -> None:
    session.first_launch(0)
    move_id = download(session, "series")["id"]
    assert (session.vault / "big/series").exists()
    done = session.run("moves", "cancel", move_id)
    assert done.returncode == 0, done.stderr
    assert f"{session.vault}/drive/series is where it was" in done.stdout
    assert state_of(session, move_id) == "cancelled"
    assert (session.vault / "drive/series").stat().st_size == SIZES["series"]
    assert not (session.vault / "big/series").exists()
    again = session.run("moves", "cancel", move_id)
    assert again.returncode == 1
    assert f"There is no move {move_id} under way" in again.stderr


def test_one_that_waits_for_its_turn_is_cancelled_at_once(
    session: KasmSession, drive: storage.RcloneMount
) -> None:
    session.first_launch(0)
    busy = [download(session, name) for name in ("album", "series")]
    waiting = upload(session, "photo", MIB)
    assert waiting["state"] == "accepted"
    assert session.run("moves", "cancel", waiting["id"]).returncode == 0
    assert (session.vault / "big/photo").stat().st_size == MIB
    assert not (session.vault / "drive/photo").exists()
    assert {state_of(session, one["id"]) for one in busy} == {"staging"}
    assert session.run("moves", "cancel", busy[1]["id"]).returncode == 0


def test_a_stop_waits_for_the_grace_period_and_leaves_the_rest_recorded(
    session: KasmSession, drive: storage.RcloneMount
) -> None:
    session.settings["moves"]["grace_seconds"] = 6.0  # more than a stop takes without
    session.first_launch(0)
    short, long = (download(session, name)["id"] for name in ("letter", "series"))
    begun = time.monotonic()
    stopped = session.run("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert 6.0 <= time.monotonic() - begun < 20
    assert state_of(session, short, 2) == "None"
    assert state_of(session, long, 2) in ("accepted", "staging")


@pytest.mark.parametrize("how", ["killed", "mounted anew"])
def test_it_goes_on_with_the_next_start(
    session: KasmSession, drive: storage.RcloneMount, how: str
) -> None:
    session.first_launch(0)
    move_id = download(session, "film")["id"]
    with contextlib.ExitStack() as stack:
        if how == "killed":
            session.kill_agent()
            wait_until(lambda: session.status()["state"] == "stopped", "its end")
        else:
            assert session.run("stop").returncode == 0
        if how == "mounted anew":  # as in another container
            drive.kill()
            storage.run("umount", "--lazy", str(drive.path))
            stack.enter_context(slow_drive(session, drive.behind))
        session.first_launch(0)
        new = session.vault / "big/film"
        wait_until(new.exists, "the new name", seconds=8)
        assert not (session.vault / "drive/film").exists()
        wait_until(lambda: state_of(session, move_id) == "done", "the end of the move")
        assert new.read_bytes() == FILM
        assert sorted(os.listdir(drive.behind)) == ["album", "letter", "series"]


def test_a_failure_stays_until_it_is_acknowledged(
    session: KasmSession, drive: storage.RcloneMount
) -> None:
    session.first_launch(0)
    first, second = (upload(session, name, 20 * MIB)["id"] for name in ("a", "b"))
    drive.kill()
    wait_until(
        lambda: {one["state"] for one in listing_any(session)} == {"failed"}, "both have failed"
    )
    told = listing(session, 2)
    assert {one["id"] for one in told} == {first, second}
    assert all(one["error"] and one["reason"] for one in told)
    assert "2 moves have failed: see" in session.run("status").stdout
    assert session.run("moves", "ack", first).returncode == 0
    assert session.run("stop").returncode == 0
    left = [one for one in listing(session, 2) if one["state"] == "failed"]
    assert [one["id"] for one in left] == [second]
    assert session.run("moves", "ack", second).returncode == 0
    assert listing(session) == []
    assert session.run("moves", "ack", second).returncode == 1
    journal = session.state_dir / "moves.journal"
    assert journal.stat().st_uid == USER


def test_after_a_kill_the_journal_tells(session: KasmSession, drive: storage.RcloneMount) -> None:
    session.first_launch(0)
    move_id = download(session, "series")["id"]
    pid = session.status()["pid"]
    session.kill_agent(pid)
    wait_until(lambda: session.status()["state"] == "stopped", "its end")
    done = session.run("moves")
    assert done.returncode == 2
    assert move_id in done.stdout
    assert "No agent runs" in done.stderr


@needs_bus
def test_the_desktop_is_told_of_failures_at_once(
    session: KasmSession, drive: storage.RcloneMount, bus: Bus
) -> None:
    with bus.stand_in(), notification_service(bus, session.home / "shown") as shown:
        session.first_launch(0)
        wait_for_desktop(session)
        for name in ("film <1>", "film <2>"):
            upload(session, name, 20 * MIB)
        drive.kill()
        wait_until(lambda: any("film" in line for line in shown()), "notification")
        told = [line for line in shown() if "film" in line]
    assert len(told) == 1
    assert "2 moves have failed|film &lt;" in told[0]


@needs_bus
def test_the_desktop_is_told_of_what_took_long_and_of_nothing_else(
    session: KasmSession, drive: storage.RcloneMount, bus: Bus
) -> None:
    with bus.stand_in(), notification_service(bus, session.home / "shown") as shown:
        session.first_launch(0)
        wait_for_desktop(session)
        upload(session, "short", 4000)
        wait_until(lambda: listing(session)[-1]["state"] == "done", "the end of the short one")
        upload(session, "long", 4 * MIB)
        wait_until(lambda: shown() != [], "notification", seconds=40)
    assert len(shown()) == 1
    summary, _, body = shown()[0].split(" ", 2)[2].partition("|")
    assert summary == "long has been moved"
    assert body.startswith(f"It is at {session.vault}/drive/long.")


@needs_bus
def test_a_desktop_that_comes_up_later_is_told_then(
    session: KasmSession, drive: storage.RcloneMount, bus: Bus
) -> None:
    session.first_launch(0)
    names = [f"note {number}" for number in range(3)]
    for name in names:
        upload(session, name, 20 * MIB)
    drive.kill()
    wait_until(lambda: len(failed(session)) == 3, "all have failed")
    with notification_service(bus, session.home / "shown") as shown, bus.stand_in():
        wait_until(lambda: any("moves" in line for line in shown()), "notification")
        told = [line for line in shown() if "moves" in line]
    assert len(told) == 1
    assert "3 moves have failed|" in told[0]
    assert all(name in told[0] for name in names)


def failed(session: KasmSession) -> list[str]:
    return [one["id"] for one in listing_any(session) if one["state"] == "failed"]


def wait_for_desktop(session: KasmSession) -> None:
    log = session.state_dir / "agent.log"
    wait_until(lambda: "the desktop is process" in log.read_text(), "the desktop is found")
