"""Calls into branches: inline, in threads, and into one that hangs or dies."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from session_agent.fsutil.at import Opened
from session_agent.fsutil.credentials import AGENT, Caller
from session_agent.model import MountState
from session_agent.mounts.probe import probe
from session_agent.overlay import branches, calls
from session_agent.overlay.branches import OpenBranch, RemoteBranch, close_result
from session_agent.overlay.polling import elsewhere
from tests.support.branches import branch as described
from tests.support.stub_fuse import StubFuse, stub_fuse

LIMIT = 0.3  # seconds until a call is suspected
PROBE = RemoteBranch._PROBE_SECONDS


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[RemoteBranch]:
    """A branch that is called as a remote one, though it is a plain folder, and always alive."""
    branch = RemoteBranch(1, described("one"), os.open(tmp_path, os.O_PATH), LIMIT)
    yield branch
    branch.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StubFuse]:
    with stub_fuse(tmp_path / "mount") as one:
        yield one


@pytest.fixture
def mounted(server: StubFuse) -> Iterator[RemoteBranch]:
    """A branch on a mount that can hang."""
    fd = os.open(server.path, os.O_PATH | os.O_DIRECTORY)
    branch = RemoteBranch(1, described("one"), fd, LIMIT)
    yield branch
    branch.close()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor, and nothing that keeps the event loop from its sleep."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 5
    while sorted(os.listdir("/proc/self/fd")) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert elsewhere.count == 0


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the branch was probed. The probe itself is real."""
    times: list[float] = []

    def counted(places: list[int], time_limit: float) -> dict[int, MountState]:
        times.append(time.monotonic())
        return probe(places, time_limit)

    monkeypatch.setattr(branches, "probe", counted)
    return times


def run(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """In an event loop, for 20 s at most."""

    async def bounded() -> None:
        with trio.fail_after(20):
            await function()

    trio.run(bounded)


async def _errno(branch: OpenBranch, function: Callable[..., Any], *arguments: object) -> int:
    try:
        await branch.call(AGENT, function, *arguments)
    except OSError as error:
        return error.errno or -1
    return 0


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what happens in a thread, or in the branch itself
        await trio.sleep(0.01)


async def _revived(branch: RemoteBranch) -> None:
    """Call until it works again."""
    while await _errno(branch, os.statvfs, branch.fd):  # noqa: ASYNC110 - as programs do
        await trio.sleep(0.05)


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
    """Each probe is a process, and on a hung mount one that may not be ended: one at a time will do."""
    go = threading.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(remote.call, AGENT, go.wait, 20)
            await trio.sleep(3 * LIMIT)
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


# One that hangs


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_hung_branch_and_its_revival(
    mounted: RemoteBranch, server: StubFuse, probes: list[float]
) -> None:
    async def main() -> None:
        assert await _errno(mounted, os.statvfs, mounted.fd) == 0
        server.hang()
        start = time.monotonic()
        assert await _errno(mounted, os.statvfs, mounted.fd) == errno.ETIMEDOUT
        assert LIMIT + PROBE <= time.monotonic() - start < LIMIT + PROBE + 1
        assert str(mounted.state) == "hung"
        # From now on the answer comes at once.
        start = time.monotonic()
        for _ in range(100):
            assert await _errno(mounted, os.statvfs, mounted.fd) == errno.ETIMEDOUT
        assert time.monotonic() - start < 0.5
        assert len(probes) == 1
        server.go_on()
        await _revived(mounted)
        assert str(mounted.state) == "alive"
        assert len(probes) == 2

    run(main)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_many_calls_into_a_hung_branch(
    mounted: RemoteBranch, server: StubFuse, probes: list[float]
) -> None:
    """More than there are threads: those that had not begun never run."""
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        os.statvfs(mounted.fd)

    async def one(number: int) -> None:
        assert await _errno(mounted, work, number) == errno.ETIMEDOUT

    async def main() -> None:
        server.hang()
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, number)
        assert len(begun) == 16
        server.go_on()
        await _revived(mounted)
        await trio.sleep(0.1)
        assert len(begun) == 16
        assert mounted._running == 0

    run(main)
    assert len(probes) <= 3


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_dead_branch(mounted: RemoteBranch, server: StubFuse, probes: list[float]) -> None:
    async def main() -> None:
        server.die()
        for _ in range(20):
            assert await _errno(mounted, os.statvfs, mounted.fd) == errno.ENOTCONN
        assert mounted.state is MountState.DEAD

    run(main)
    assert len(probes) <= 1


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_branch_that_dies_while_it_hangs(mounted: RemoteBranch, server: StubFuse) -> None:
    async def main() -> None:
        server.hang()
        async with trio.open_nursery() as nursery:
            codes: list[int] = []

            async def one() -> None:
                codes.append(await _errno(mounted, os.statvfs, mounted.fd))

            for _ in range(20):
                nursery.start_soon(one)
            await trio.sleep(LIMIT / 2)
            server.die()
        # The one whose request was under way is told so, as by the kernel itself.
        assert set(codes) <= {errno.ENOTCONN, errno.ECONNABORTED}

    run(main)


def test_a_branch_that_was_never_opened(tmp_path: Path) -> None:
    branch = RemoteBranch(1, described("one"), -1, LIMIT)

    async def main() -> None:
        assert await _errno(branch, os.getpid) in (errno.ETIMEDOUT, errno.ENOTCONN)

    run(main)


# Late results


def _given_up_later(
    mounted: RemoteBranch, server: StubFuse, function: Callable[..., Any], *arguments: object
) -> None:
    """Give `function`'s call up while it hangs, and let it come to its end."""

    def work() -> object:
        os.statvfs(mounted.fd)
        return function(*arguments)

    async def main() -> None:
        server.hang()
        assert await _errno(mounted, work) == errno.ETIMEDOUT
        server.go_on()
        await _until(lambda: mounted._running == 0)

    run(main)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_late_descriptors_are_closed(
    mounted: RemoteBranch, server: StubFuse, tmp_path: Path
) -> None:
    """What is left open is seen by the fixture."""
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    folder = os.open(tmp_path, os.O_PATH)

    def several() -> list[Opened]:
        return [calls.reference(folder, b"a"), calls.reference(folder, b"b")]

    def work() -> list[object]:
        return [
            calls.open_file(folder, b"a", os.O_RDONLY),
            several(),
            calls.rename(folder, b"a", folder, b"b", 0),
            calls.remove(folder, b"b", os.unlink),
        ]

    _given_up_later(mounted, server, work)
    assert os.listdir(tmp_path) == ["mount"]
    os.close(folder)


def test_a_result_without_descriptors(tmp_path: Path) -> None:
    for result in (None, 5, b"data", [], [b"name"], os.stat(tmp_path), [None, os.stat(tmp_path)]):
        close_result(result)


# Open files


async def _open_file(branch: RemoteBranch) -> int:
    return (await branch.call(AGENT, calls.open_file, branch.fd, b"file", os.O_RDWR)).fd


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_file_is_closed_though_the_branch_hangs(mounted: RemoteBranch, server: StubFuse) -> None:
    """At once for the program; for the server, which may only then save it, when it goes on."""

    async def main() -> None:
        files = [await _open_file(mounted) for _ in range(3)]
        await mounted.release(AGENT, files[0])
        assert server.flushes == 1
        server.hang()
        with pytest.raises(TimeoutError):
            await mounted.release(AGENT, files[1])  # the first one finds it out
        start = time.monotonic()
        await mounted.release(AGENT, files[2])
        assert time.monotonic() - start < LIMIT
        server.go_on()
        await _until(lambda: mounted._running == 0)
        assert server.flushes >= 3

    run(main)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_file_is_closed_though_the_branch_is_dead(
    mounted: RemoteBranch, server: StubFuse
) -> None:
    async def main() -> None:
        files = [await _open_file(mounted) for _ in range(2)]
        server.die()
        with pytest.raises(OSError, match=r"not connected|abort"):
            await mounted.release(AGENT, files[0])
        await mounted.release(AGENT, files[1])
        await _until(lambda: mounted._running == 0)

    run(main)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_file_that_comes_late_and_cannot_be_closed_well(
    mounted: RemoteBranch, server: StubFuse
) -> None:
    """Its server is gone by then: an error that nobody is there to get, and that must not end the agent."""
    opened = threading.Event()
    go = threading.Event()

    def work() -> Opened:
        found = calls.open_file(mounted.fd, b"file", os.O_RDWR)
        opened.set()
        go.wait(20)
        return found

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mounted.call, AGENT, work)
            await _until(opened.is_set)
            nursery.cancel_scope.cancel()
        server.die()
        go.set()
        await _until(lambda: mounted._running == 0)
        assert await _errno(mounted, os.statvfs, mounted.fd) == errno.ENOTCONN

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
        await _until(lambda: remote._running == 0)
        await trio.sleep(0.05)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        remote.close_later(other)
        await trio.sleep(0.05)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(other)

    run(main)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_a_call_that_was_given_up_still_counts(mounted: RemoteBranch, server: StubFuse) -> None:
    fd = os.open("/", os.O_PATH)

    async def main() -> None:
        server.hang()
        assert await _errno(mounted, os.statvfs, mounted.fd) == errno.ETIMEDOUT
        mounted.close_later(fd)
        os.fstat(fd)  # the thread may be about to use it
        server.go_on()
        await _until(lambda: mounted._running == 0)
        await trio.sleep(0.05)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

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
            await _until(lambda: len(begun) == 16)
            nursery.cancel_scope.cancel()
        go.set()
        await _until(lambda: remote._running == 0)
        assert len(begun) == 16

    run(main)
