"""Calls into branches: inline, in threads, many at once, and given up."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from session_agent.fsutil.at import Opened
from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.model import MountState
from session_agent.overlay import calls
from session_agent.overlay.branches import OpenBranch, RemoteBranch
from tests.support.branch_calls import errno_of, run, until
from tests.support.branches import branch as described
from tests.unit.overlay.conftest import LIMIT

pytestmark = pytest.mark.usefixtures("nothing_left")


def _fails() -> None:
    raise FileExistsError(errno.EEXIST, "there is one", "name")


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_what_a_call_gives_back(tmp_path: Path, kind: str) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    branch = (
        OpenBranch(1, described("one"), fd)
        if kind == "local"
        else RemoteBranch(1, described("one"), fd, LIMIT)
    )

    async def main() -> None:
        for call in (branch.call, branch.call_slowly):
            assert await call(AGENT, divmod, 17, 5) == (3, 2)
            with pytest.raises(FileExistsError, match="name"):
                await call(AGENT, _fails)
            with pytest.raises(ZeroDivisionError):
                await call(AGENT, divmod, 1, 0)

    run(main)
    branch.close()
    branch.close()
    assert branch.fd == -1


def test_a_local_call_is_made_here_and_slow_ones_elsewhere(tmp_path: Path) -> None:
    branch = OpenBranch(1, described("one"), -1)

    async def main() -> None:
        here = threading.get_ident()
        with trio.testing.assert_no_checkpoints():
            assert await branch.call(AGENT, threading.get_ident) == here
        assert await branch.call_slowly(AGENT, threading.get_ident) != here

    run(main)


@pytest.mark.needs_root
def test_every_call_has_its_callers_rights(remote: RemoteBranch, tmp_path: Path) -> None:
    """Whatever thread makes it, and whoever that thread has worked for before."""
    os.chmod(tmp_path, 0o777)

    async def make(number: int, caller: Caller) -> None:
        name = b"%d %d" % (number, caller.uid)
        status = await remote.call(caller, calls.make_folder, remote.fd, name, 0o777)
        assert (status.st_uid, status.st_gid) == caller[:2]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(40):
                for caller in (AGENT, Caller(1234, 1235), Caller(4321, 4322, (1,))):
                    nursery.start_soon(make, number, caller)

    run(main)
    assert len(os.listdir(tmp_path)) == 120


@pytest.mark.needs_root
def test_a_slow_local_call_has_its_callers_rights(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    branch = OpenBranch(1, described("one"), os.open(tmp_path, os.O_PATH))

    async def main() -> None:
        for number, caller in enumerate((Caller(1234, 1235), AGENT, Caller(4321, 4322))):
            name = b"%d" % number
            status = await branch.call_slowly(caller, calls.make_folder, branch.fd, name, 0o777)
            assert (status.st_uid, status.st_gid) == caller[:2]

    run(main)
    branch.close()


# Many, and slow ones


def test_more_calls_than_threads(remote: RemoteBranch) -> None:
    """All of them end, no more than sixteen at a time."""
    now, most = 0, 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return number

    results: list[int] = []

    async def one(number: int) -> None:
        results.append(await remote.call(AGENT, work, number))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)

    run(main)
    assert sorted(results) == list(range(100))
    assert most == 16


def test_a_slow_call_into_a_live_branch_is_waited_for(
    remote: RemoteBranch, probes: list[float]
) -> None:
    read, write = os.pipe()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            answers: list[bytes] = []

            async def ask() -> None:
                answers.append(await remote.call(AGENT, os.read, read, 10))

            nursery.start_soon(ask)
            await trio.sleep(4 * LIMIT)
            assert remote.state is MountState.ALIVE
            os.write(write, b"late")
        assert answers == [b"late"]

    run(main)
    assert probes
    os.close(read)
    os.close(write)


def test_many_slow_calls_are_one_suspicion(remote: RemoteBranch, probes: list[float]) -> None:
    """Each probe of a hung mount is a thread that is stuck: one at a time will do."""
    go = threading.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(remote.call, AGENT, go.wait, 20)
                await trio.sleep(0.005)  # so that they become suspicious one after the other
            await trio.sleep(2 * LIMIT)
            go.set()

    run(main)
    assert 1 <= len(probes) <= 2


def test_calls_into_another_branch_do_not_wait(remote: RemoteBranch, tmp_path: Path) -> None:
    other = RemoteBranch(2, described("two"), os.open(tmp_path, os.O_PATH), LIMIT)
    go = threading.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(remote.call, AGENT, go.wait, 20)
            await trio.testing.wait_all_tasks_blocked()
            start = time.monotonic()
            assert await other.call(AGENT, os.fstat, other.fd)
            assert time.monotonic() - start < LIMIT
            go.set()

    run(main)
    other.close()


def test_a_branch_that_was_never_opened(tmp_path: Path) -> None:
    branch = RemoteBranch(1, described("one"), -1, LIMIT)

    async def main() -> None:
        assert await errno_of(branch, os.getpid) in (errno.ETIMEDOUT, errno.ENOTCONN)

    run(main)


# Descriptors that a thread may be using


def test_a_descriptor_is_closed_when_no_call_is_under_way(remote: RemoteBranch) -> None:
    go = threading.Event()
    fd = os.open("/", os.O_PATH)
    other = os.open("/", os.O_PATH)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remote.call, AGENT, go.wait, 20)
            await trio.testing.wait_all_tasks_blocked()
            await remote.call(AGENT, os.getpid)
            remote.close_later(fd)
            await remote.call(AGENT, os.getpid)
            os.fstat(fd)  # not yet: the first one still runs
            go.set()
        await until(lambda: remote._running == 0)
        await trio.sleep(0.05)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        remote.close_later(other)
        await trio.sleep(0.05)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(other)

    run(main)


def test_a_call_whose_caller_is_cancelled(remote: RemoteBranch, tmp_path: Path) -> None:
    """Its descriptor is closed when it comes, and it is not made if it had not begun."""
    (tmp_path / "file").touch()
    go = threading.Event()
    begun: list[int] = []

    def work() -> Opened:
        begun.append(1)
        go.wait(20)
        return calls.open_file(remote.fd, b"file", os.O_RDONLY)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(remote.call, AGENT, work)
            await trio.testing.wait_all_tasks_blocked()
            await until(lambda: len(begun) == 16)
            nursery.cancel_scope.cancel()
        go.set()
        await until(lambda: remote._running == 0)
        assert len(begun) == 16

    run(main)
