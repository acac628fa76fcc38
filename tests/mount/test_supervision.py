"""The process that serves the vault is killed; another takes its place, and nobody sees an empty vault."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import storage
from tests.support.session import USER, KasmSession, fuse_device, kasm_session
from tests.support.vault import as_person, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

KILLS = 20
PATIENCE = 20.0  # seconds

# Opens the note by its path, lists the vault's root and a folder in it, and stats the vault, as fast as it
# can. Whatever is answered must be the truth, or that nobody is connected.
_READER = """
import errno, os, sys
vault, seen = sys.argv[1], {}
def count(what):
    seen[what] = seen.get(what, 0) + 1
def note():
    with open(vault + "/engineering/note.md") as file:
        return file.read() == "engineering\\n"
def steps():
    yield "note", note
    yield "root", lambda: {"engineering", "wiki"} <= set(os.listdir(vault))
    yield "folder", lambda: "note.md" in os.listdir(vault + "/engineering")
    yield "stat", lambda: os.stat(vault).st_ino == 1
    yield "exists", lambda: bool(os.stat(vault + "/wiki/note.md").st_size)
print("reading", flush=True)
while not os.path.exists(sys.argv[2]):
    for name, step in steps():
        try:
            count("right" if step() else "wrong " + name)
        except OSError as error:
            code = errno.errorcode[error.errno]
            count(code if code in ("ENOTCONN", "ECONNABORTED") else code + " " + name)
import json
print(json.dumps(seen))
"""


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        yield made


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"still waiting: {what}"
        time.sleep(0.01)


def answers(session: KasmSession) -> bool:
    try:
        return (session.vault / "engineering/note.md").read_text() == "engineering\n"
    except OSError:
        return False


@contextlib.contextmanager
def serving(
    session: KasmSession, patience: str = "endless", *, as_user: bool = False
) -> Iterator[subprocess.Popen[str]]:
    session.environment["PATIENCE"] = patience
    process = session.start(
        "serve", "--json", as_user=as_user, module="tests.support.patient_agent"
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"ready": True}
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        _, log = process.communicate(timeout=PATIENCE)
        sys.stdout.write(log[-20_000:])


def crash(session: KasmSession, agent: int) -> float:
    """Kill the worker; seconds until its successor answers."""
    worker = session.worker(agent)
    begun = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: replaced(session, agent, worker) and answers(session), "a successor")
    return time.monotonic() - begun


def replaced(session: KasmSession, agent: int, worker: int) -> bool:
    with contextlib.suppress(AssertionError, OSError, psutil.NoSuchProcess):
        return session.worker(agent) != worker
    return False


def crash_under_readers(
    session: KasmSession, agent: int, capsys: pytest.CaptureFixture[str], user: int
) -> None:
    end = session.base / "end"
    reader = subprocess.Popen(
        [
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"),
            *("/usr/bin/python3", "-c", _READER, str(session.vault), str(end)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    try:
        gaps = [crash(session, agent) for _ in range(KILLS)]
    finally:
        end.touch()
    seen = json.loads(reader.communicate(timeout=PATIENCE)[0])
    with capsys.disabled():
        worst = max(gaps)
        sys.stdout.write(f"{KILLS} kills, at most {worst:.2f} s; readers saw {seen} ")
    assert set(seen) <= {"right", "ENOTCONN", "ECONNABORTED"}, seen
    assert seen["right"] > KILLS


def test_killed_again_and_again(session: KasmSession, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(session) as agent:
        crash_under_readers(session, agent.pid, capsys, 0)
        (warning,) = session.status()["warnings"]
        assert "crashed and was replaced" in warning
        assert session.run("stop").returncode == 0
        assert agent.wait(PATIENCE) == 0
    assert session.overlay_mounts() == []


@contextlib.contextmanager
def for_the_user(session: KasmSession, *, allow_other: bool) -> Iterator[None]:
    """What fusermount3 needs, and whether it may mount for others."""
    os.chown(session.vault, USER, USER)
    config = session.base / "fuse.conf"
    config.write_text("user_allow_other\n" if allow_other else "")
    with fuse_device(session, 0o666), storage.bind(config, Path("/etc/fuse.conf")):
        yield


def test_as_the_user(session: KasmSession, capsys: pytest.CaptureFixture[str]) -> None:
    with for_the_user(session, allow_other=True), serving(session, as_user=True) as agent:
        crash_under_readers(session, agent.pid, capsys, USER)
        assert session.run("stop", as_user=True).returncode == 0
        assert agent.wait(PATIENCE) == 0
    assert session.overlay_mounts() == []


def test_as_the_user_alone_nothing_is_uncovered_either(session: KasmSession) -> None:
    """fusermount3, which is root's, may not look into a vault that is the user's alone."""
    with for_the_user(session, allow_other=False), serving(session, "0", as_user=True) as agent:
        os.kill(session.worker(agent.pid), signal.SIGKILL)

        def problem() -> str:
            return str(session.status(as_user=True)["warnings"])

        wait_until(lambda: "not started again" in problem(), "it gives up")
        assert "user_allow_other" in problem()
        assert outcome(lambda: as_person(lambda: os.listdir(session.vault), USER)) == "ENOTCONN"
        session.run("stop", "--force", as_user=True)
        assert agent.wait(PATIENCE) == 0
    assert session.overlay_mounts() == []


def test_crashes_without_end_are_not_borne_for_ever(session: KasmSession) -> None:
    with serving(session, "0 0 0 0") as agent:
        for _ in range(4):
            crash(session, agent.pid)
        os.kill(session.worker(agent.pid), signal.SIGKILL)
        wait_until(lambda: "not started again" in str(session.status()["warnings"]), "it gives up")
        document = session.status()
        assert document["state"] == "degraded"
        assert document["pid"] == agent.pid
        with pytest.raises(OSError, match="not connected"):
            os.listdir(session.vault)
        report = session.first_launch(2)
        assert "stop --force" in str(report)
        with pytest.raises(OSError, match="not connected"):
            os.listdir(session.vault)
        assert session.run("stop", "--force").returncode == 0
        assert agent.wait(PATIENCE) == 0
    assert session.overlay_mounts() == []
    session.first_launch(0)
    assert answers(session)


def test_status_and_stop_while_a_successor_is_waited_for(session: KasmSession) -> None:
    with serving(session, "100") as agent:
        os.kill(session.worker(agent.pid), signal.SIGKILL)
        wait_until(lambda: "restarted" in str(session.status()["warnings"]), "it has noticed")
        document = session.status()
        assert document["state"] == "degraded"
        assert document["warnings"] == [
            "The agent has crashed and is being restarted. Ask again soon."
        ]
        with pytest.raises(OSError, match="not connected"):
            os.listdir(session.vault)
        session.run("stop", "--force")
        assert agent.wait(PATIENCE) == 0
    assert session.overlay_mounts() == []


def test_without_its_supervising_process_the_vault_goes_on(session: KasmSession) -> None:
    session.first_launch(0)
    agent = session.status()["pid"]
    worker = session.worker(agent)
    with open(session.vault / "engineering/note.md", encoding="utf-8") as file:
        os.kill(agent, signal.SIGKILL)
        wait_until(lambda: session.status()["pid"] == worker, "the worker is the agent now")
        assert session.status()["state"] == "running"
        assert file.read() == "engineering\n"
    assert not session.first_launch(0)["changed"]
    assert session.run("stop").returncode == 0
    assert session.overlay_mounts() == []
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"


def test_one_that_hangs_alone_can_be_forced_out(session: KasmSession) -> None:
    session.first_launch(0)
    agent = session.status()["pid"]
    worker = session.worker(agent)
    for pid in (agent, worker):
        os.kill(pid, signal.SIGSTOP)
    try:
        assert session.run("stop", "--force").returncode == 0
    finally:
        for pid in (agent, worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert session.overlay_mounts() == []


def test_a_move_that_a_crash_cuts_off_is_finished_by_the_successor(session: KasmSession) -> None:
    session.settings["moves"] = {"handle_rename": False, "inline_bytes": 0}
    content = os.urandom(1 << 20) * 24
    source, target = session.vault / "big/film", session.vault / "archive/film"
    with (
        storage.tmpfs(session.base / "big", size="64m") as big,
        storage.tmpfs(session.base / "archive", size="64m") as archive,
    ):
        for folder in (big, archive):
            folder.chmod(0o777)
        session.first_launch(0)
        agent = session.status()["pid"]
        source.write_bytes(content)
        os.chown(source, USER, USER)
        os.rename(source, target)
        crash(session, agent)
        assert target.exists()
        assert not source.exists()
        wait_until(lambda: os.listdir(big) == [], "the move's end")
        assert target.read_bytes() == content
        assert (archive / "film").read_bytes() == content
        assert session.run("stop").returncode == 0
