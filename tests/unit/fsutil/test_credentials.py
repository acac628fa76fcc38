"""Whose rights a thread has: tried on files, as root for several users."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from session_agent.fsutil import credentials
from session_agent.fsutil.credentials import AGENT, Caller, CallerCache, acting_as, assume
from session_agent.fsutil.syscalls import set_fs_identity
from session_agent.model import SessionUser
from tests.support.as_user import as_user
from tests.support.storage import tmpfs

pytestmark = pytest.mark.needs_root

T = TypeVar("T")
USER = Caller(1234, 1235, (1236, 1237))
OTHER = Caller(4321, 4322)


@pytest.fixture(autouse=True)
def agent_again() -> Iterator[None]:
    """pytest itself runs in this thread."""
    yield
    assume(AGENT)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder that everybody can get to and write into."""
    with tmpfs(tmp_path / "disk") as disk:
        fd = os.open(disk, os.O_PATH)
        yield Path(f"/proc/self/fd/{fd}")  # no way through the folders above, which are root's
        os.close(fd)


def _in_thread(function: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def _identity() -> tuple[int, int, list[int]]:
    """This thread's, as the kernel sees it."""
    text = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return (
        int(lines["Uid"].split()[3]),
        int(lines["Gid"].split()[3]),
        sorted(map(int, lines["Groups"].split())),
    )


def _owner(path: Path) -> tuple[int, int]:
    path.touch()
    return os.stat(path).st_uid, os.stat(path).st_gid


def test_what_is_made_belongs_to_the_caller(shared: Path) -> None:
    assume(USER)
    assert _owner(shared / "user") == (1234, 1235)
    assume(OTHER)
    assert _owner(shared / "other") == (4321, 4322)
    assume(AGENT)
    assert _owner(shared / "agent") == (0, 0)


def test_the_callers_rights_count(shared: Path) -> None:
    for name, mode, gid in (("own", 0o600, 0), ("group", 0o060, 1237), ("any", 0o006, 0)):
        (shared / name).write_bytes(b"x")
        os.chown(shared / name, 1234 if name == "own" else 0, gid)
        os.chmod(shared / name, mode)
    with acting_as(USER):
        for name in ("own", "group", "any"):
            assert (shared / name).read_bytes() == b"x"
    with acting_as(OTHER):
        for name in ("own", "group"):
            with pytest.raises(PermissionError):
                (shared / name).read_bytes()
            with pytest.raises(PermissionError):
                (shared / name).chmod(0o777)
            with pytest.raises(PermissionError):
                os.truncate(shared / name, 0)
        assert (shared / "any").read_bytes() == b"x"
    assert (shared / "group").read_bytes() == b"x"  # root's rights are back


def test_roots_own_groups_are_not_the_callers(shared: Path) -> None:
    (shared / "file").write_bytes(b"x")
    os.chown(shared / "file", 0, 1236)
    os.chmod(shared / "file", 0o060)

    def step() -> None:
        assume(Caller(1234, 1235, (1236,)))
        assert (shared / "file").read_bytes() == b"x"
        assume(Caller(1234, 1235, ()))
        with pytest.raises(PermissionError):
            (shared / "file").read_bytes()

    _in_thread(step)


def test_each_thread_has_its_own(shared: Path) -> None:
    """While others come and go as somebody else."""
    wrong: list[tuple[Caller, object]] = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        start.wait()
        for number in range(200):
            caller = rng.choice(callers)
            assume(caller)
            if _owner(shared / f"{seed} {number}") != (caller.uid, caller.gid):
                wrong.append((caller, _identity()))

    callers = (USER, OTHER, AGENT)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert _identity()[:2] == (0, 0)


def test_a_thread_made_while_acting_as_somebody(shared: Path) -> None:
    """It inherits the identity, and must not take it for its own."""

    def step() -> tuple[object, object, object]:
        inherited = _identity()
        assume(AGENT)
        agent = _identity()
        assume(USER)
        return inherited, agent, _identity()

    assume(USER)
    inherited, agent, user = _in_thread(step)
    assert inherited == user == (1234, 1235, [1236, 1237])
    assert agent == (AGENT.uid, AGENT.gid, sorted(AGENT.groups))


def test_the_agents_rights_are_back_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), acting_as(USER):
        raise ZeroDivisionError
    assert _identity() == (AGENT.uid, AGENT.gid, sorted(AGENT.groups))


def test_acting_as_the_sessions_user(shared: Path) -> None:
    user = SessionUser("somebody", 1234, 1235, (1236,), "/nonexistent")
    with acting_as(user):
        assert _identity() == (1234, 1235, [1236])
        assert _owner(shared / "file") == (1234, 1235)


def test_a_switch_that_fails_half_way_is_not_believed() -> None:
    """setgroups refuses an invalid group after nothing, setfsuid an invalid user after the groups."""

    def step() -> None:
        assume(USER)
        with pytest.raises(OSError, match=r"refused|Invalid"):
            assume(Caller(2**32 - 1, 9, (10,)))
        assume(USER)
        assert _identity() == (1234, 1235, [1236, 1237])

    _in_thread(step)


def test_a_run_of_calls_by_one_caller_switches_once() -> None:
    """Seen by an identity put there behind its back, which stays."""

    def step() -> None:
        assume(USER)
        set_fs_identity(77, 77, ())
        assume(USER)
        assume(Caller(*USER))  # an equal one
        assert _identity() == (77, 77, [])
        assume(OTHER)
        assert _identity() == (4321, 4322, [])

    _in_thread(step)


@contextmanager
def _process(groups: list[int], uid: int = 1234, gid: int = 1235) -> Iterator[int]:
    """A process with these groups, which waits."""
    with subprocess.Popen(
        ["/bin/sh", "-c", "echo; read line"],
        user=uid,
        group=gid,
        extra_groups=groups,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def test_the_groups_of_a_process() -> None:
    with _process([1236, 1237]) as pid:
        assert CallerCache().caller(pid, 1234, 1235) == USER
        assert CallerCache().caller(pid, 99, 98) == Caller(99, 98, (1236, 1237))
    assert CallerCache().caller(pid, 1234, 1235) == Caller(1234, 1235)  # it has ended
    assert CallerCache().caller(0, 1234, 1235) == Caller(1234, 1235)  # of another PID namespace
    assert CallerCache().caller(os.getpid(), 0, 0)[:2] == (0, 0)


def test_a_process_with_very_many_groups() -> None:
    """More than fit a page: a number that is cut off would be another group's."""
    groups = list(range(100_000_000, 100_003_000))
    with _process(groups) as pid:
        assert CallerCache().caller(pid, 1234, 1235).groups == tuple(groups)


def test_groups_are_read_as_the_agent() -> None:
    """A thread that acts as somebody may not be let into that process's /proc."""
    with _process([1236]) as pid:
        assume(OTHER)
        assert CallerCache().caller(pid, 1234, 1235).groups == (1236,)


def test_a_caller_is_kept_for_a_while() -> None:
    cache = CallerCache()
    with _process([1236]) as pid:
        first = cache.caller(pid, 1234, 1235)
    assert cache.caller(pid, 1234, 1235) is first
    assert cache.caller(pid, 1234, 99) is not first
    start = time.monotonic()
    while cache.caller(pid, 1234, 1235) is first:
        assert time.monotonic() - start < 5
        time.sleep(0.05)
    assert 0.8 < time.monotonic() - start < 2
    assert cache.caller(pid, 1234, 1235) == Caller(1234, 1235)


def test_a_caller_that_is_read_again_is_the_same_object() -> None:
    """So that `assume` sees at a glance that nothing has changed."""
    cache = CallerCache()
    cache._KEEP_SECONDS = 0.0  # of this one only
    with _process([1236]) as pid:
        assert cache.caller(pid, 1234, 1235) is cache.caller(pid, 1234, 1235)


def test_callers_do_not_pile_up() -> None:
    cache = CallerCache()
    for pid in range(10**6, 10**6 + 5000):  # above any pid_max here, or of no process
        cache.caller(pid, 1234, 1235)
    assert len(cache._known) <= cache._LIMIT


def test_started_as_a_user_nothing_is_switched() -> None:
    def step() -> None:
        agent = importlib.reload(credentials)  # it looks at the process when it is imported
        assert agent.AGENT == (1234, 1234, ())
        with agent.acting_as(agent.Caller(0, 0)):
            assert _identity() == (1234, 1234, [])
        assert agent.CallerCache().caller(os.getpid(), 7, 7) is agent.AGENT

    as_user(step, 1234)
    assert credentials.AGENT.uid == 0
