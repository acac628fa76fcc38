"""How a starter hears of its daemon, with a small program in the daemon's place."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from session_agent.errors import AgentError, MountError, TimeLimitError
from session_agent.lifecycle import daemon, privileges
from session_agent.settings import Loaded

REPORT = "from session_agent.lifecycle.daemon import report, Report; import os, sys, time\n"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An interpreter that, told to run the agent, runs `program` instead, with the same descriptor."""
    script = tmp_path / "program.py"
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$5"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    return script


def started(program: Path, body: str, limit: float = 10.0) -> AgentError | None:
    program.write_text(REPORT + body)
    try:
        daemon.start(Loaded(), limit)
    except AgentError as error:
        return error
    return None


def test_ready(program: Path, tmp_path: Path) -> None:
    body = f"print('noise', file=sys.stderr); open({str(tmp_path / 'sid')!r}, 'w').write("
    body += "f'{os.getsid(0)} {os.getpid()} {os.readlink(chr(47)+\"proc/self/fd/0\")}')\n"
    assert started(program, body + "report(int(sys.argv[1]), Report(ready=True))") is None
    session, pid, stdin = (tmp_path / "sid").read_text().split()
    assert session == pid  # no terminal's hangup reaches it
    assert stdin == "/dev/null"


def test_a_reason(program: Path) -> None:
    error = started(program, "report(int(sys.argv[1]), Report(False, 'No FUSE.', 'Add it.'))")
    assert isinstance(error, MountError)
    assert (error.message, error.hint) == ("No FUSE.", "Add it.")


def test_an_end_without_a_reason(program: Path) -> None:
    error = started(program, "raise SystemExit('libfuse3.so.3: cannot open')")
    assert error is not None
    assert "libfuse3.so.3: cannot open" in error.message


def test_no_end_of_noise(program: Path) -> None:
    error = started(program, "while True: os.write(2, b'x' * 1000 + b'\\n')")
    assert isinstance(error, MountError)


def test_one_that_is_late_is_killed(program: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    pid_file = tmp_path / "pid"
    error = started(
        program, f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)", 1.0
    )
    assert time.monotonic() - begun < 5
    assert isinstance(error, TimeLimitError)
    assert daemon.wait_for_end(int(pid_file.read_text()), 1.0)


def test_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MountError, match="cannot be started"):
        daemon.start(Loaded(), 1.0)
    assert os.listdir("/proc/self/fd") == before


def test_waiting_for_the_end_of_a_process() -> None:
    with subprocess.Popen(["sleep", "30"]) as process:
        assert not daemon.wait_for_end(process.pid, 0.05)
        process.kill()
        assert daemon.wait_for_end(process.pid, 5)
    assert daemon.wait_for_end(process.pid, 0.05)


class TestPrivileges:
    """What is missing for FUSE."""

    def test_the_capabilities_of_this_process(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to have some and lose one")
        assert privileges._has_capability(21)
        program = "from session_agent.lifecycle import privileges as p; print(p.obstacle())"
        without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
        done = subprocess.run(
            [*without, sys.executable, "-c", program],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "CAP_SYS_ADMIN is missing" in done.stdout
        assert privileges.RUN_CONFIG in done.stdout

    def test_the_remedy_is_told_with_a_refused_mount(self) -> None:
        error = privileges.explain(MountError("Refused.", "Hm."), "/tmp")
        assert error.message == "Refused."
        assert error.hint.startswith("Hm. Add to the workspace's run config: {")

    def test_a_folder_that_fusermount3_refuses(self, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to be somebody else")
        program = (
            "from session_agent.lifecycle import privileges as p;"
            "from session_agent.errors import MountError as M;"
            f"e = p.explain(M('Refused.'), {str(tmp_path)!r}); print(e.message, e.hint)"
        )
        done = subprocess.run(
            ["setpriv", "--reuid=1000", "--clear-groups", sys.executable, "-c", program],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"that the user cannot write: {tmp_path}" in done.stdout
        assert "--tmpfs" in done.stdout
