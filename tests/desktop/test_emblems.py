"""Emblems set for real, through gio, a session bus and GVfs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from session_agent.desktop import emblems
from session_agent.desktop.bus import Desktop
from session_agent.desktop.changes import Change
from session_agent.desktop.dry_run import dry_run
from session_agent.desktop.memory import FILE_NAME, LOCK_NAME, Memory
from session_agent.fsutil import bounded
from session_agent.model import Branch, MountState, SessionUser
from tests.support import storage
from tests.support.as_user import home_of
from tests.support.branches import branch, branches
from tests.support.desktop import Bus, session_bus
from tests.support.kills import killed_at

USER = 1000
AS_USER = SessionUser("user", USER, USER, (), "/")

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(
        not Path("/usr/libexec/gvfsd-metadata").exists() or shutil.which("dbus-daemon") is None,
        reason="needs gvfs-daemons and dbus-daemon",
    ),
]


@pytest.fixture
def home() -> Iterator[Path]:
    with home_of(USER) as folder:
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def bus(home: Path) -> Iterator[Bus]:
    with session_bus(home, USER) as started:
        yield started


@pytest.fixture
def vault(home: Path) -> Path:
    for name in ("a", "b"):
        (home / "vault" / name).mkdir(parents=True)
    return home / "vault"


def give(bus: Bus, vault: Path, shown: Sequence[Branch], *, limit: float = 5.0) -> Change:
    """As the companion does it, in a process of the user's."""
    desktop = Desktop(os.getpid(), bus.environment)
    memory = Memory(str(vault.parent / "state"))
    return bounded.run(
        lambda: emblems.apply(desktop, str(vault), shown, memory, time_limit=limit),
        Change,
        time_limit=20,
        user=AS_USER,
    )


def test_a_second_run_changes_nothing(bus: Bus, vault: Path) -> None:
    first = give(bus, vault, branches("a", "b:ro"))
    assert (first.changed, first.problem, first.detail) == (True, "", "2 places")
    assert bus.emblems(vault / "b") == {"session-agent-storage", "session-agent-read-only"}
    second = give(bus, vault, branches("a", "b:ro"))
    assert (second.changed, second.problem) == (False, "")
    assert {path.name for path in vault.parent.iterdir()} == {".local", "state", "vault"}


def test_the_users_emblems_stay_and_what_is_taken_away_stays_away(bus: Bus, vault: Path) -> None:
    mine = ("gio", "set", "-t", "stringv", vault / "a", "metadata::emblems")
    bus.run(*mine, "emblem-important")
    give(bus, vault, branches("a", "b"))
    assert bus.emblems(vault / "a") == {"session-agent-storage", "emblem-important"}
    bus.run(*mine, "emblem-important")
    dead = [replace(b, state=MountState.DEAD) for b in branches("a", "b")]
    give(bus, vault, dead)
    assert bus.emblems(vault / "a") == {"emblem-important"}
    assert "session-agent-unavailable" in bus.emblems(vault / "b")
    give(bus, vault, [])
    assert bus.emblems(vault / "a") == {"emblem-important"}
    assert bus.emblems(vault / "b") == set()


@pytest.mark.parametrize(
    "name", ["with space", "50%", 'it\'s "so"', "büro", "line\nbreak", "-x", "caf\udce9"]
)
def test_names_of_all_kinds(bus: Bus, vault: Path, name: str) -> None:
    (vault / name).mkdir()
    change = give(bus, vault, [branch(name, cloud_type="s3")])
    assert (change.changed, change.problem) == (True, "")
    assert bus.emblems(vault / name) == {"s3-emblem"}
    assert not give(bus, vault, [branch(name, cloud_type="s3")]).changed


def test_a_folder_that_is_not_there_keeps_no_other_from_its_emblem(bus: Bus, vault: Path) -> None:
    change = give(bus, vault, branches("a", "gone"))
    assert change.changed
    assert f"{vault}/gone" in change.problem
    assert bus.emblems(vault / "a") == {"session-agent-storage"}


@pytest.mark.needs_fuse
@pytest.mark.needs_rclone
def test_a_folder_that_hangs_keeps_nobody_waiting(bus: Bus, vault: Path) -> None:
    with storage.rclone(vault.parent / "behind", vault / "cloud") as mounted:
        mounted.stop()
        begun = time.monotonic()
        change = give(bus, vault, branches("a", "cloud"), limit=1.0)
        assert time.monotonic() - begun < 6
        mounted.resume()
    assert change.changed
    assert f"{vault}/cloud did not answer within 1 s" in change.problem
    assert bus.emblems(vault / "a") == {"session-agent-storage"}


def test_without_gvfs_it_says_so(home: Path, vault: Path) -> None:
    with session_bus(home, USER, services=False) as bus:
        change = give(bus, vault, branches("a"))
    assert not change.changed
    assert f"{vault}/a: " in change.problem
    assert "not supported" in change.problem


def test_a_bus_that_is_gone_is_a_problem(home: Path, vault: Path) -> None:
    with session_bus(home, USER) as bus:
        pass
    change = give(bus, vault, branches("a"))
    assert not change.changed
    assert str(vault / "a") in change.problem


def test_a_dry_run_sets_nothing(bus: Bus, vault: Path) -> None:
    def look() -> list[str]:
        desktop = Desktop(os.getpid(), bus.environment)
        with dry_run() as found:
            emblems.apply(desktop, str(vault), branches("a"), Memory(str(vault.parent / "state")))
        return [difference.text for difference in found]

    told = bounded.run(look, list[str], time_limit=20, user=AS_USER)
    assert told == [f"{vault}/a: none -> session-agent-storage"]
    assert bus.emblems(vault / "a") == set()
    assert not (vault.parent / "state").exists()


def test_two_agents_at_once(bus: Bus, vault: Path) -> None:
    desktop = Desktop(os.getpid(), bus.environment)
    memory = Memory(str(vault.parent / "state"))

    def work(names: Sequence[str]) -> list[Change]:
        return [emblems.apply(desktop, str(vault), branches(*names), memory) for _ in range(4)]

    steps = {
        names: bounded.start(partial(work, names), list[Change], AS_USER)
        for names in (("a", "b"), ("b:ro",))
    }
    for outcome in bounded.collect(steps, 30).values():
        assert isinstance(outcome, list), outcome
        assert not [change.problem for change in outcome if change.problem]
    give(bus, vault, branches("a", "b"))
    assert bus.emblems(vault / "a") == bus.emblems(vault / "b") == {"session-agent-storage"}
    assert not give(bus, vault, branches("a", "b")).changed


def test_a_state_folder_of_somebody_else_is_told(bus: Bus, vault: Path) -> None:
    state = vault.parent / "state"
    state.mkdir()
    state.chmod(0o755)
    change = give(bus, vault, branches("a"))
    assert change.changed
    assert "Permission denied" in change.problem
    assert bus.emblems(vault / "a") == {"session-agent-storage"}
    assert not (state / LOCK_NAME).exists()
    # Without a memory what is there is taken over, so nothing is lost and nothing added.
    assert not give(bus, vault, branches("a")).changed


def not_utf8(path: Path) -> None:
    path.write_bytes(b'{"files": "\xff"}')
    os.chown(path, USER, USER)


def nonsense(path: Path) -> None:
    files = {f"{path.parents[1]}/.local/share/gvfs-metadata": {"written": {"/x": 3, "y": [1]}}}
    path.write_text(json.dumps({"files": files}))
    os.chown(path, USER, USER)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def roots_own(path: Path) -> None:
    path.write_text('{"files": {}}')


def link(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


@pytest.mark.parametrize("make", [not_utf8, nonsense, fifo, roots_own, link])
def test_a_memory_that_is_no_use_keeps_no_emblem_away(
    bus: Bus, vault: Path, make: Callable[[Path], None]
) -> None:
    state = vault.parent / "state"
    state.mkdir()
    os.chown(state, USER, USER)
    make(state / FILE_NAME)
    before = (state / FILE_NAME).lstat()
    change = give(bus, vault, branches("a", "b"))
    assert change.changed
    if make is not nonsense:
        assert str(state / FILE_NAME) in change.problem
    else:
        assert "/x" not in bus.run("gio", "info", vault / "a")
    assert bus.emblems(vault / "a") == {"session-agent-storage"}
    if make in (fifo, roots_own, link):
        assert (state / FILE_NAME).lstat().st_ino == before.st_ino
    assert not give(bus, vault, branches("a", "b")).changed


def test_a_kill_at_any_step(bus: Bus, vault: Path) -> None:
    theirs = {"emblem-important"}
    bus.run("gio", "set", "-t", "stringv", vault / "a", "metadata::emblems", *theirs)

    def step() -> None:
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
        memory = Memory(str(vault.parent / "state"))
        emblems.apply(Desktop(os.getpid(), bus.environment), str(vault), branches("a", "b"), memory)

    number = 1
    while killed_at(number, vault.parent, step):
        assert theirs <= bus.emblems(vault / "a")
        assert give(bus, vault, branches("a", "b")).problem == ""
        assert bus.emblems(vault / "a") == {"session-agent-storage", *theirs}
        assert bus.emblems(vault / "b") == {"session-agent-storage"}
        give(bus, vault, [])
        assert (bus.emblems(vault / "a"), bus.emblems(vault / "b")) == (theirs, set())
        number += 1
    assert number > 6
