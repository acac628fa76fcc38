"""Every step here is a real child process, and the hung mount is a real one."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from session_agent.errors import AgentError, TimeLimitError, UserFileError
from session_agent.fsutil import bounded
from session_agent.model import MountState, SessionUser
from tests.support import storage

LIMIT = 10.0  # seconds: more than any step here needs
NOBODY = SessionUser("nobody", 65534, 65534, (65534, 12345), "/nonexistent")


@dataclass(frozen=True, slots=True)
class Change:
    """A result as the desktop's writers have it."""

    path: str
    changed: bool
    state: MountState = MountState.ALIVE
    seen: tuple[int, ...] = ()


def _fds() -> set[str]:
    return {f"{name} {os.readlink(f'/proc/self/fd/{name}')}" for name in _fd_names()}


def _fd_names() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]


def _children() -> set[int]:
    pids = set()
    for task in os.listdir("/proc/self/task"):
        pids |= set(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return pids


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _send(data: bytes) -> NoReturn:
    """As a step: answer with `data` itself. The only pipe a child has is that of its answer."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                os.write(int(name), data)
        except OSError:  # the fd that listed the folder
            continue
    os._exit(0)


def test_returns_what_the_function_returns() -> None:
    name = os.fsdecode("/Büro\t\n".encode() + b"\xff\xfe")
    change = Change(name, True, MountState.HUNG, (1, 2))
    assert bounded.run(lambda: change, Change, time_limit=LIMIT) == change
    assert bounded.run(lambda: [change] * 2, list[Change], time_limit=LIMIT) == [change] * 2
    assert bounded.run(lambda: {3: name}, dict[int, str], time_limit=LIMIT) == {3: name}
    assert bounded.run(lambda: b"\0\xff", bytes, time_limit=LIMIT) == b"\0\xff"
    assert bounded.run(lambda: None, type(None), time_limit=LIMIT) is None


def test_large_results_arrive_whole() -> None:
    assert bounded.run(lambda: "x" * 3_000_000, str, time_limit=LIMIT) == "x" * 3_000_000


def test_runs_in_another_process() -> None:
    assert bounded.run(os.getpid, int, time_limit=LIMIT) != os.getpid()


def test_raises_the_os_error() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        bounded.run(lambda: os.listdir("/nowhere/at all"), list[str], time_limit=LIMIT)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/nowhere/at all")


def test_raises_the_agent_error() -> None:
    def refuse() -> NoReturn:
        raise UserFileError("It is a FIFO.", "Remove it.")

    with pytest.raises(UserFileError) as caught:
        bounded.run(refuse, str, time_limit=LIMIT)
    assert (caught.value.message, caught.value.hint) == ("It is a FIFO.", "Remove it.")


def test_an_unexpected_error_says_where_it_was() -> None:
    def blunder() -> int:
        return 1 // int("0")

    with pytest.raises(bounded.StepFailedError, match="ZeroDivisionError") as caught:
        bounded.run(blunder, int, time_limit=LIMIT)
    assert "in blunder" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt()])
def test_leaving_the_program_is_an_error_like_others(ending: BaseException) -> None:
    def leave() -> NoReturn:
        raise ending

    with pytest.raises(bounded.StepFailedError, match=type(ending).__name__):
        bounded.run(leave, int, time_limit=LIMIT)


def test_a_step_that_sleeps_is_ended_in_time() -> None:
    start = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"0\.3 s"):
        bounded.run(lambda: time.sleep(60), type(None), time_limit=0.3)
    assert 0.3 <= time.monotonic() - start < 1.5
    assert _children() <= _other_children


def test_all_steps_share_one_time_limit() -> None:
    steps = {
        name: bounded.start(functools.partial(_sleep, seconds), float)
        for name, seconds in (("slow", 60.0), ("slower", 61.0), ("quick", 0.0))
    }
    start = time.monotonic()
    outcomes = bounded.collect(steps, 0.5)
    assert time.monotonic() - start < 1.5
    assert list(outcomes) == ["slow", "slower", "quick"]
    assert isinstance(outcomes["slow"], TimeLimitError)
    assert isinstance(outcomes["slower"], TimeLimitError)
    assert outcomes["quick"] == 0.0


def test_a_step_that_dies() -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    start = time.monotonic()
    with pytest.raises(bounded.StepFailedError, match="without an answer"):
        bounded.run(die, type(None), time_limit=LIMIT)
    assert time.monotonic() - start < LIMIT / 2


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"no json\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"kind":"result","value":"not a number"}\n',
        b'{"kind":"result","value":' + b"9" * 10_000 + b"}\n",
        b'{"kind":"result","value":1,"more":2}\n',
        b'{"kind":"nonsense"}\n',
        b'{"kind":"result","value":1}\n{"kind":"result","value":2}\n',
        b'{"kind":"result","value":1}',
    ],
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(bounded.StepFailedError):
        bounded.run(lambda: _send(data), int, time_limit=LIMIT)


def test_a_tampered_error_is_only_text() -> None:
    for name in ("SystemExit", "os.system", "Exception", ""):
        with pytest.raises(AgentError) as caught:
            bounded.run(
                functools.partial(_send, b'{"kind":"agent","name":"%s"}\n' % name.encode()),
                int,
                time_limit=LIMIT,
            )
        assert type(caught.value) is AgentError
    with pytest.raises(OSError, match="odd") as odd:
        bounded.run(
            lambda: _send(b'{"kind":"os","number":%d,"text":"odd"}\n' % 10**30),
            int,
            time_limit=LIMIT,
        )
    assert odd.value.filename is None


def test_an_oversize_answer_is_refused() -> None:
    with pytest.raises(bounded.StepFailedError, match="more than"):
        bounded.run(lambda: "x" * bounded.ANSWER_LIMIT, str, time_limit=LIMIT)


def test_an_answer_that_never_ends_costs_the_time_limit_only() -> None:
    def trickle() -> NoReturn:
        pipe = next(
            int(name)
            for name in _fd_names()
            if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:")
        )
        while True:
            os.write(pipe, b"x")

    start = time.monotonic()
    with pytest.raises(AgentError):
        bounded.run(trickle, str, time_limit=0.5)
    assert time.monotonic() - start < 2


@pytest.mark.needs_root
def test_runs_as_the_user_completely(tmp_path: Path) -> None:
    secret = tmp_path / "root's"
    secret.write_text("secret")
    secret.chmod(0o600)

    def identity() -> list[list[int]]:
        mask = os.umask(0)
        os.umask(mask)
        return [list(os.getresuid()), list(os.getresgid()), sorted(os.getgroups()), [mask]]

    mask = os.umask(0o007)
    before = identity()
    assert bounded.run(identity, list[list[int]], time_limit=LIMIT, user=NOBODY) == [
        [65534] * 3,
        [65534] * 3,
        [12345, 65534],
        [0o022],
    ]
    assert identity() == before
    os.umask(mask)
    assert bounded.run(secret.read_text, str, time_limit=LIMIT) == "secret"
    with pytest.raises(PermissionError):
        bounded.run(secret.read_text, str, time_limit=LIMIT, user=NOBODY)
    with pytest.raises(PermissionError):
        bounded.run(lambda: os.setuid(0), type(None), time_limit=LIMIT, user=NOBODY)


def test_nothing_of_the_caller_is_held_open(tmp_path: Path) -> None:
    """A child may stay for as long as a mount hangs, so what it holds is held that long."""
    read_end, write_end = os.pipe()
    folder = os.open(tmp_path, os.O_PATH)
    locked = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(locked, fcntl.LOCK_EX)
    plain = os.open(tmp_path / "plain", os.O_CREAT | os.O_RDWR)
    device = os.open("/dev/zero", os.O_RDONLY)
    try:
        fds = bounded.run(lambda: sorted(_fds()), list[str], time_limit=LIMIT)
        kept = bounded.run(lambda: os.fstat(folder).st_ino, int, time_limit=LIMIT, keep=[folder])
    finally:
        for fd in (read_end, write_end, folder, locked, plain, device):
            os.close(fd)
    assert {"0 /dev/null", "1 /dev/null", "2 /dev/null"} <= set(fds)
    targets = [line.partition(" ")[2] for line in fds]
    assert sum(target.startswith("pipe:") for target in targets) == 1
    assert not {str(tmp_path), str(tmp_path / "lock"), "/dev/zero"} & set(targets)
    assert str(tmp_path / "plain") in targets
    assert kept == tmp_path.stat().st_ino


def test_handlers_of_the_caller_do_not_run_in_the_child() -> None:
    ran: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: ran.append(number))
    try:

        def terminate() -> list[int]:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            return ran

        with pytest.raises(bounded.StepFailedError, match="without an answer"):
            bounded.run(terminate, list[int], time_limit=LIMIT)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_step_can_have_steps() -> None:
    def outer() -> int:
        return bounded.run(lambda: 7, int, time_limit=LIMIT)

    assert bounded.run(outer, int, time_limit=LIMIT) == 7


def test_many_threads_at_once() -> None:
    """Each thread's quick step is done long before another thread's slow one."""
    durations: list[float] = []
    failures: list[Exception] = []

    def work(seconds: float) -> None:
        for _ in range(10):
            start = time.monotonic()
            try:
                bounded.run(lambda: time.sleep(seconds), type(None), time_limit=0.4)
            except TimeLimitError:
                pass
            except Exception as error:  # noqa: BLE001 - reported by the test
                failures.append(error)
            durations.append(time.monotonic() - start)

    threads = [threading.Thread(target=work, args=(s,)) for s in (0, 0, 0, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert sum(duration < 0.35 for duration in durations) >= 28


def test_neither_fds_nor_zombies_pile_up() -> None:
    fds = _fds()
    for _ in range(20):
        with pytest.raises(TimeLimitError):
            bounded.run(lambda: time.sleep(60), type(None), time_limit=0)
        bounded.run(lambda: 1, int, time_limit=LIMIT)
    assert _fds() == fds
    assert len(_children() - _other_children) <= 1


@pytest.fixture(autouse=True)
def _children_of_others() -> None:
    """The run's watchdog is a child too."""
    _other_children.clear()
    _other_children.update(_children())


_other_children: set[int] = set()


@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.needs_rclone
def test_a_hung_mount(tmp_path: Path) -> None:
    with storage.rclone(tmp_path / "behind", tmp_path / "cloud") as cloud:
        (cloud.behind / "note").write_text("x")
        assert bounded.run(lambda: os.listdir(cloud.path), list[str], time_limit=LIMIT) == ["note"]
        before = _children()
        cloud.stop()
        start = time.monotonic()
        steps = {
            "hung": bounded.start(lambda: os.listdir(cloud.path), list[str]),
            "fine": bounded.start(lambda: os.listdir(tmp_path), list[str]),
        }
        outcomes = bounded.collect(steps, 0.5)
        assert time.monotonic() - start < 1.5
        assert isinstance(outcomes["hung"], TimeLimitError)
        assert isinstance(outcomes["fine"], list)
        cloud.resume()
        deadline = time.monotonic() + LIMIT
        while _children() - before and time.monotonic() < deadline:
            time.sleep(0.05)
            bounded.run(lambda: 1, int, time_limit=LIMIT)
        assert _children() <= before


@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.needs_rclone
def test_a_file_open_in_a_hung_mount_does_not_hinder_other_steps(tmp_path: Path) -> None:
    with storage.rclone(tmp_path / "behind", tmp_path / "cloud") as cloud:
        (cloud.behind / "note").write_text("x")
        fd = os.open(cloud.path / "note", os.O_RDONLY)
        cloud.stop()
        try:
            assert bounded.run(lambda: 1, int, time_limit=1.0) == 1
        finally:
            cloud.resume()
            os.close(fd)


def test_an_abandoned_child_does_not_outlive_its_reader() -> None:
    """Output piped through a program ends with the program, whatever its children still do."""
    script = (
        "import os, time; from session_agent.fsutil import bounded\n"
        "bounded.start(lambda: time.sleep(4), int); os._exit(0)"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE)
    assert time.monotonic() - start < 3
