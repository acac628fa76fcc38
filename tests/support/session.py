"""A Kasm session to run the agent in: a home, a vault's folder with mounts in it, settings.

Made of real mounts, in the run's own mount namespace. What else is mounted on this machine is left out
by the settings, since a container would not have it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from session_agent.desktop import icons
from session_agent.mounts import mountinfo
from tests.support import storage
from tests.support.run_marker import MARKER

ROOT = Path(__file__).parents[2]
USER = 1000
LIMIT = 10.0  # seconds that first-launch may take
_PATIENCE = 30.0  # seconds


class KasmSession:
    """`base` holds everything; `engineering` (rw) and `wiki` (ro) are mounted in the vault.

    `secret` is a folder that only root may enter, with a file in it.
    """

    def __init__(self, base: Path, stack: contextlib.ExitStack) -> None:
        self.base = base
        self.home = base / "home"
        self.vault = base / "vault"
        self.config = base / "config.yaml"
        self.secret = base / "secret"
        self.icons = base / "icons"
        self.environment: dict[str, str] = {}
        self.settings: dict[str, Any] = {
            "vault": str(self.vault),
            "mounts": {"exclude": [e.path for e in mountinfo.read() if e.path != "/"]},
        }
        self._stack = stack
        self.home.mkdir()
        os.chown(self.home, USER, USER)
        self.vault.mkdir()
        self.secret.mkdir(mode=0o700)
        (self.secret / "shadow").write_text("root's own\n")
        self._own_icons()
        self.mount("engineering")
        self.mount("wiki", read_only=True)

    def _own_icons(self) -> None:
        """An icon theme of the session's own, for what is installed in it; none where there is none."""
        if not os.path.isdir(icons.SYSTEM):
            return
        self.icons.mkdir()
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(f"{icons.SYSTEM}/index.theme", self.icons)
        self._stack.enter_context(storage.bind(self.icons, Path(icons.SYSTEM)))

    def mount(self, name: str, *, read_only: bool = False) -> Path:
        """A folder of the session user's, with a note in it, mounted in the vault."""
        source = self.base / "host" / name
        source.mkdir(parents=True)
        (source / "note.md").write_text(f"{name}\n")
        for path in (source, source / "note.md"):
            os.chown(path, USER, USER)
        self._stack.enter_context(storage.bind(source, self.vault / name, read_only=read_only))
        return source

    @property
    def state_dir(self) -> Path:
        return self.home / ".local/state/session-agent"

    @property
    def root_branch(self) -> Path:
        return self.home / ".local/share/session-agent/root"

    def write_config(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    def run(
        self,
        *arguments: str,
        as_user: bool = False,
        cwd: Path = ROOT,
        prefix: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """`session-agent` with these arguments, as root for the session user, or as that user.

        `prefix`: a command that runs it, as root.
        """
        process = self.start(*arguments, as_user=as_user, cwd=cwd, prefix=prefix)
        stdout, stderr = process.communicate(timeout=_PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def start(
        self,
        *arguments: str,
        as_user: bool = False,
        cwd: Path = ROOT,
        prefix: Sequence[str] = (),
        module: str = "session_agent",
    ) -> subprocess.Popen[str]:
        self.write_config()
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "SESSION_AGENT_CONFIG": str(self.config),
            MARKER: os.environ[MARKER],
            **self.environment,
        }
        command = [sys.executable, "-m", module, *arguments]
        if as_user:
            python, library = _python_for_user()
            drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
            command = [*drop, python, *command[1:]]
            environment["PYTHONPATH"] = f"{ROOT}:{library}"
        return subprocess.Popen(
            [*prefix, *command],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def first_launch(self, code: int, *, as_user: bool = False) -> dict[str, Any]:
        """Run it, in time, expecting this exit code; the report."""
        begun = time.monotonic()
        done = self.run("first-launch", "--json", as_user=as_user)
        assert done.returncode == code, done.stdout + done.stderr
        assert time.monotonic() - begun < LIMIT
        report = json.loads(done.stdout)
        assert isinstance(report, dict)
        return report

    def status(self, *, as_user: bool = False) -> dict[str, Any]:
        document = json.loads(self.run("status", "--json", as_user=as_user).stdout)
        assert isinstance(document, dict)
        return document

    def worker(self, agent: int) -> int:
        """The process that serves the vault, of the supervising process `agent`."""
        found = [
            child.pid
            for child in psutil.Process(agent).children()
            if "/dev/fuse" in map(os.readlink, Path(f"/proc/{child.pid}/fd").iterdir())
        ]
        assert len(found) == 1, found
        return found[0]

    def kill_agent(self, agent: int | None = None) -> None:
        """All of it, at once, and without a successor: as the end of a container does."""
        agent = agent or int(self.status()["pid"])
        worker = self.worker(agent)
        for pid in (agent, worker):
            os.kill(pid, signal.SIGKILL)
        for pid in (agent, worker):
            with contextlib.suppress(psutil.NoSuchProcess):
                while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.005)

    def overlay_mounts(self) -> list[str]:
        """The paths at which an overlay is mounted, alive or not, in this session."""
        return [
            entry.path
            for entry in mountinfo.read()
            if entry.fstype == "fuse.session-agent" and entry.path.startswith(str(self.base))
        ]

    def clean_up(self) -> None:
        self.environment.clear()
        self.settings = {"vault": str(self.vault)}
        self.run("stop", "--force")
        for path in self.overlay_mounts():
            subprocess.run(["umount", "--lazy", path], check=False)


@contextlib.contextmanager
def fuse_device(session: KasmSession, mode: int) -> Iterator[None]:
    """/dev/fuse with these permissions, whatever they are on this machine."""
    node = session.base / "fuse"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(10, 229))  # Documentation/admin-guide/devices
    node.chmod(mode)
    with contextlib.ExitStack() as stack:
        subprocess.run(["mount", "--bind", node, "/dev/fuse"], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", "/dev/fuse"], check=True)
        yield


def step(report: dict[str, Any], name: str) -> dict[str, Any]:
    """The report's step of that name."""
    found = [step for step in report["steps"] if step["name"] == name]
    assert len(found) == 1, report
    assert isinstance(found[0], dict)
    return found[0]


@contextlib.contextmanager
def kasm_session() -> Iterator[KasmSession]:
    # Not pytest's folder: the session user has to get in.
    base = Path(tempfile.mkdtemp(prefix="session-agent-test-"))
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(storage.tmpfs(base))
            base.chmod(0o755)
            session = KasmSession(base, stack)
            stack.callback(session.clean_up)
            yield session
    finally:
        base.rmdir()  # empty, or a mount is left and nothing of it must be deleted


# setpriv keeps root's capabilities up to the exec: what it could run, the user may still not.
_PROBE = "import os, sys; assert os.access(sys.executable, os.X_OK)"


def _python_for_user() -> tuple[str, str]:
    """An interpreter that the session user can run, and where this one's packages are."""
    library = sysconfig.get_path("purelib")
    system = shutil.which("python3", path="/usr/bin") or sys.executable
    for python in (sys.executable, system):
        probe = [python, "-c", f"{_PROBE}; import msgspec, pyfuse3, session_agent.cli.main"]
        done = subprocess.run(
            ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *probe],
            env={"PYTHONPATH": f"{ROOT}:{library}", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            check=False,
            capture_output=True,
        )
        if done.returncode == 0:
            return python, library
    pytest.skip("needs an interpreter that an ordinary user can run, with the packages of this one")
