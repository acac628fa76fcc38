"""A branch that hangs, goes on and dies, on a real mount of that kind."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from session_agent.fsutil.at import Opened
from session_agent.fsutil.credentials import AGENT
from session_agent.model import MountState
from session_agent.overlay import calls, names
from session_agent.overlay.branches import OpenBranch, RemoteBranch, close_result
from session_agent.overlay.tree import ROOT_ID
from session_agent.overlay.vault import Vault
from tests.support.branch_calls import errno_of, revived, run, until
from tests.support.branches import branch as described
from tests.support.stub_fuse import StubFuse
from tests.unit.overlay.conftest import LIMIT

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.usefixtures("nothing_left"),
]

PROBE = RemoteBranch._PROBE_SECONDS


def test_a_hung_branch_and_its_revival(
    mounted: RemoteBranch, server: StubFuse, probes: list[float]
) -> None:
    async def main() -> None:
        assert await errno_of(mounted, os.statvfs, mounted.fd) == 0
        server.hang()
        start = time.monotonic()
        assert await errno_of(mounted, os.statvfs, mounted.fd) == errno.ETIMEDOUT
        assert LIMIT + PROBE <= time.monotonic() - start < LIMIT + PROBE + 1
        assert str(mounted.state) == "hung"
        # From now on the answer comes at once.
        start = time.monotonic()
        for _ in range(100):
            assert await errno_of(mounted, os.statvfs, mounted.fd) == errno.ETIMEDOUT
        assert time.monotonic() - start < 0.5
        assert len(probes) == 1
        server.go_on()
        await revived(mounted)
        assert str(mounted.state) == "alive"
        assert len(probes) == 1  # the answer came late, but it came

    run(main)


def test_many_calls_into_a_hung_branch(
    mounted: RemoteBranch, server: StubFuse, probes: list[float]
) -> None:
    """More than there are threads: those that had not begun never run."""
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        os.statvfs(mounted.fd)

    async def one(number: int) -> None:
        assert await errno_of(mounted, work, number) == errno.ETIMEDOUT

    async def main() -> None:
        server.hang()
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, number)
        assert len(begun) == 16
        server.go_on()
        await revived(mounted)
        await trio.sleep(0.1)
        assert len(begun) == 16
        assert mounted._running == 0

    run(main)
    assert len(probes) <= 3


def test_a_dead_branch(mounted: RemoteBranch, server: StubFuse, probes: list[float]) -> None:
    async def main() -> None:
        server.die()
        for _ in range(20):
            assert await errno_of(mounted, os.statvfs, mounted.fd) == errno.ENOTCONN
        assert mounted.state is MountState.DEAD

    run(main)
    assert len(probes) <= 1


def test_a_branch_that_dies_while_it_hangs(mounted: RemoteBranch, server: StubFuse) -> None:
    async def main() -> None:
        server.hang()
        async with trio.open_nursery() as nursery:
            codes: list[int] = []

            async def one() -> None:
                codes.append(await errno_of(mounted, os.statvfs, mounted.fd))

            for _ in range(20):
                nursery.start_soon(one)
            await trio.sleep(LIMIT / 2)
            server.die()
        # The one whose request was under way is told so, as by the kernel itself.
        assert set(codes) <= {errno.ENOTCONN, errno.ECONNABORTED}

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
        assert await errno_of(mounted, work) == errno.ETIMEDOUT
        server.go_on()
        await until(lambda: mounted._running == 0)

    run(main)


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


def test_a_probe_closes_no_file(mounted: RemoteBranch, server: StubFuse) -> None:
    """A forked process that ends does, in the eyes of the server; rclone then ends the file's upload."""

    async def main() -> None:
        fd = await _open_file(mounted)
        assert await mounted._probe()
        assert server.flushes == 0
        await mounted.release(AGENT, fd)
        assert server.flushes == 1

    run(main)


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
        await until(lambda: mounted._running == 0)
        assert server.flushes == 3

    run(main)


def test_a_file_is_closed_even_if_no_thread_had_the_time(
    mounted: RemoteBranch, server: StubFuse
) -> None:
    """All of them are stuck, so it was given up before it had begun."""

    async def release(fd: int) -> None:
        with pytest.raises(TimeoutError):
            await mounted.release(AGENT, fd)

    async def main() -> None:
        fd = await _open_file(mounted)
        server.hang()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(errno_of, mounted, os.statvfs, mounted.fd)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(release, fd)
        server.go_on()
        await until(lambda: mounted._running == 0)
        assert server.flushes == 1

    run(main)


def test_a_file_is_closed_though_the_branch_is_dead(
    mounted: RemoteBranch, server: StubFuse
) -> None:
    async def main() -> None:
        files = [await _open_file(mounted) for _ in range(2)]
        server.die()
        with pytest.raises(OSError, match=r"not connected|abort"):
            await mounted.release(AGENT, files[0])
        await mounted.release(AGENT, files[1])
        await until(lambda: mounted._running == 0)

    run(main)


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
            await until(opened.is_set)
            nursery.cancel_scope.cancel()
        server.die()
        go.set()
        await until(lambda: mounted._running == 0)
        assert await errno_of(mounted, os.statvfs, mounted.fd) == errno.ENOTCONN

    run(main)


def test_a_call_that_was_given_up_still_counts(mounted: RemoteBranch, server: StubFuse) -> None:
    fd = os.open("/", os.O_PATH)

    async def main() -> None:
        server.hang()
        assert await errno_of(mounted, os.statvfs, mounted.fd) == errno.ETIMEDOUT
        mounted.close_later(fd)
        os.fstat(fd)  # the thread may be about to use it
        server.go_on()
        await until(lambda: mounted._running == 0)
        await trio.sleep(0.05)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    run(main)


def test_a_branch_is_looked_after_though_nobody_uses_it(
    mounted: RemoteBranch, server: StubFuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteBranch, "_CALM_SECONDS", 0.2)
    monkeypatch.setattr(RemoteBranch, "_RETRY_SECONDS", 0.2)

    async def main() -> None:
        assert mounted.is_due()
        await mounted.look()
        assert not mounted.is_due()
        assert mounted.state is MountState.ALIVE
        server.hang()
        await until(mounted.is_due)
        await mounted.look()
        assert str(mounted.state) == "hung"
        server.go_on()
        await until(mounted.is_due)
        await mounted.look()
        assert str(mounted.state) == "alive"

    run(main)


def test_the_root_of_a_branch_that_does_not_answer_is_the_folder_it_was(
    mounted: RemoteBranch, server: StubFuse, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    top = OpenBranch(0, described(""), os.open(tmp_path / "root", os.O_PATH))
    vault = Vault(top, [mounted], 16)

    async def main() -> None:
        node, before = await names.lookup(vault, ROOT_ID, b"one", AGENT)
        server.hang()
        again, hung = await names.lookup(vault, ROOT_ID, b"one", AGENT)
        assert (again, hung) == (node, before)
        assert str(mounted.state) == "hung"
        with pytest.raises(OSError, match="timed out"):
            await names.lookup(vault, node.id, b"file", AGENT)
        server.go_on()
        await revived(mounted)

    run(main)
    top.close()


def test_the_root_of_a_branch_that_has_never_answered_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    top = OpenBranch(0, described(""), os.open(tmp_path / "root", os.O_PATH))
    info = replace(described("one"), state=MountState.DEAD)
    vault = Vault(top, [RemoteBranch(1, info, -1, LIMIT)], 16)

    async def main() -> None:
        node, status = await names.lookup(vault, ROOT_ID, b"one", AGENT)
        assert stat.S_ISDIR(status.st_mode)
        assert status.st_ino == 0  # the kernel is not to keep it
        with pytest.raises(OSError, match="not connected"):
            await names.lookup(vault, node.id, b"file", AGENT)

    run(main)
    top.close()
