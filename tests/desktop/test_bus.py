"""Finding the desktop's session bus, and speaking to it, on real buses."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.desktop import bus as buses
from session_agent.desktop.bus import Desktop, Ended
from session_agent.desktop.notify import NotifyError, notify
from session_agent.fsutil import bounded
from session_agent.model import SessionUser
from tests.support.as_user import home_of
from tests.support.desktop import Bus, notification_service, process, session_bus

USER = 1000
AS_USER = SessionUser("user", USER, USER, (), "/")

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="needs dbus-daemon"),
]


@pytest.fixture
def home() -> Iterator[Path]:
    with home_of(USER) as folder:
        yield folder


@pytest.fixture
def bus(home: Path) -> Iterator[Bus]:
    with session_bus(home, USER) as started:
        yield started


def find(uid: int = USER) -> Desktop | None:
    """As that user, who sees no more than its own processes' environments."""
    user = SessionUser("user", uid, uid, (), "/")
    found = bounded.run(lambda: [buses.find(uid)], list[Desktop | None], time_limit=10, user=user)
    return found[0]


def test_the_session_manager_is_found_among_others(bus: Bus) -> None:
    with bus.stand_in("firefox"), bus.stand_in("xfce4-session") as manager:
        found = find()
    assert found is not None
    assert found.pid == manager.pid
    assert found.address == bus.address
    assert found.data_home == bus.environment["HOME"] + "/.local/share"


def test_any_process_of_the_desktop_will_do(bus: Bus) -> None:
    with bus.stand_in("plank") as program:
        found = find()
    assert found is not None
    assert found.pid == program.pid


def test_another_users_desktop_is_not_found(bus: Bus) -> None:
    with bus.stand_in():
        assert find(USER + 1) is None


def test_a_process_without_a_display_is_no_desktop(bus: Bus) -> None:
    environment = {k: v for k, v in bus.environment.items() if k != "DISPLAY"}
    with process(["sleep", "60"], environment=environment, uid=USER):
        assert find() is None


@pytest.mark.parametrize(
    "address",
    [
        "unix:path=/dev/null",
        "unix:path=/nowhere",
        "tcp:host=localhost,port=1",
        "SESSION",
        "nonsense",
    ],
)
def test_an_address_nobody_listens_at_is_no_bus(home: Path, address: str) -> None:
    environment = {"PATH": "/usr/bin", "DISPLAY": ":1", "DBUS_SESSION_BUS_ADDRESS": address}
    with process(["sleep", "60"], environment=environment, uid=USER):
        assert find() is None
    assert not buses.is_reachable(address)


def test_programs_get_the_desktops_environment_and_no_more_time_than_there_is(bus: Bus) -> None:
    desktop = Desktop(os.getpid(), bus.environment)
    begun = time.monotonic()
    ended = buses.run(
        desktop,
        [["printenv", "DISPLAY"], ["sleep", "60"], ["no-such-program"], ["false"]],
        time_limit=0.5,
    )
    assert time.monotonic() - begun < 5
    assert ended == [Ended(0, ":1\n"), Ended(None, ""), None, Ended(1, "")]


def test_a_notification_is_shown_and_replaced(bus: Bus, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    desktop = Desktop(os.getpid(), bus.environment)

    def tell() -> list[int]:
        first = notify(desktop, "One", "a <b> & c")
        return [first, notify(desktop, "Two", "ü", replaces=first)]

    with home_of(USER) as folder, notification_service(bus, folder / "log") as shown:
        numbers = bounded.run(tell, list[int], time_limit=10, user=AS_USER)
        assert numbers == [1, 1]
        assert shown() == ["1 0 One|a &lt;b&gt; &amp; c", "1 1 Two|ü"]


def test_without_a_service_there_is_an_error_and_no_wait(bus: Bus) -> None:
    desktop = Desktop(os.getpid(), bus.environment)
    with pytest.raises(NotifyError, match=r"No notification could be shown: .*ServiceUnknown"):
        bounded.run(lambda: notify(desktop, "One"), int, time_limit=10, user=AS_USER)


def test_a_bus_that_is_gone(home: Path) -> None:
    with session_bus(home, USER) as started:
        desktop = Desktop(os.getpid(), started.environment)
    with pytest.raises(NotifyError, match="cannot be asked"):
        notify(desktop, "One")
