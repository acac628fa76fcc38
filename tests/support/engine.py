"""A Docker engine of the tests' own, an image to build on that is like one of Kasm's, and containers."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.listening import Listener, until

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/container"
BASE = "like-kasm:base"
IMAGE = "like-kasm:with-agent"
_HEARING = Path(__file__).with_name("hearing.py")
_PATIENCE = 60.0  # seconds
_PACKAGES = "python3,python3-venv,fuse3,dbus,dbus-x11,procps,util-linux,attr,acl"
FUSE = ("--device", "/dev/fuse", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined")


def why_not() -> str | None:
    """Why no engine can run here, None if one can."""
    if os.geteuid() != 0:
        return "needs root, to start a Docker engine"
    missing = [name for name in ("dockerd", "docker", "debootstrap") if not shutil.which(name)]
    if missing:
        return f"needs {', '.join(missing)}, which is not installed"
    return None


class Engine:
    """dockerd with its own data root and socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = f"unix://{folder}/docker.sock"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start it; afterwards it and all its containers are gone. OSError where it cannot start."""
        log = self._folder / "log"
        with open(log, "wb") as output:
            daemon = subprocess.Popen(
                [
                    "dockerd",
                    *("--data-root", str(self._folder / "data")),
                    *("--exec-root", str(self._folder / "run")),
                    *("--pidfile", str(self._folder / "pid")),
                    *("--host", self._socket, "--bridge", "none", "--iptables=false"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            deadline = time.monotonic() + _PATIENCE
            while self._call("version").returncode:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise OSError(f"dockerd does not start: {' '.join(last)}")
                time.sleep(0.1)
            yield
        finally:
            for name in self._call("ps", "--all", "--quiet").stdout.split():
                self._call("rm", "--force", "--volumes", name)
            daemon.terminate()
            try:
                daemon.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _call(self, *arguments: str, time_limit: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=time_limit,
        )

    def command(self, *arguments: str) -> list[str]:
        """What calls docker."""
        return ["docker", "--host", self._socket, *arguments]

    def docker(self, *arguments: str, time_limit: float = 300) -> str:
        """Call docker, which must succeed; its output."""
        done = self._call(*arguments, time_limit=time_limit)
        assert done.returncode == 0, f"docker {arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def tried(self, *arguments: str) -> tuple[int, str]:
        """Call docker; its exit code, and all it says."""
        done = self._call(*arguments)
        return done.returncode, done.stdout + done.stderr

    def megabytes(self, image: str) -> float:
        """The size of an image."""
        return int(self.docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6

    def make_base(self) -> None:
        """A small Debian of this machine's release, dressed as one of Kasm's core images.

        OSError where it cannot be made, as without Debian's packages.
        """
        archive = _debian()
        self.docker("import", str(archive), f"{BASE}-plain")
        with tempfile.TemporaryDirectory() as context:
            shutil.copytree(ROOT / "tests/data/kasm/image", context, dirs_exist_ok=True)
            self.docker("build", "--network", "none", "--tag", BASE, context)

    def build(self) -> str:
        """The image that image/Dockerfile makes of it; what the build has printed."""
        return self.docker(
            *("build", "--network", "none", "--file", str(ROOT / "image/Dockerfile")),
            *("--build-arg", f"BASE={BASE}", "--tag", IMAGE, str(ROOT)),
        )

    @contextlib.contextmanager
    def container(
        self, *options: str, command: Sequence[str] = ("sleep", "600"), image: str = IMAGE
    ) -> Iterator[Container]:
        """A running container, removed afterwards."""
        name = self.docker("run", "--detach", "--network", "none", *options, image, *command)
        try:
            yield Container(self, name)
        finally:
            self.docker("rm", "--force", name)


@dataclass(frozen=True)
class Container:
    """One that was started."""

    engine: Engine
    name: str

    def run(self, *command: str, user: str = "1000", time_limit: float = 60) -> str:
        """Run a command in it, which must succeed; its output."""
        return self.engine.docker(
            "exec", "--user", user, self.name, *command, time_limit=time_limit
        )

    def sh(self, script: str, user: str = "1000") -> str:
        """Run a shell's script in it, which must succeed."""
        return self.run("bash", "-euc", script, user=user)

    def tried(self, script: str, user: str = "1000") -> tuple[int, str]:
        """Run a shell's script in it; its exit code, and all it says."""
        return self.engine.tried("exec", "--user", user, self.name, "bash", "-c", script)

    @contextlib.contextmanager
    def listening(self, folder: str) -> Iterator[Listener]:
        """A program of the user that hears what happens in a folder, and has said `ready`."""
        source = _HEARING.read_text(encoding="utf-8")
        program = ("timeout", "120", "/opt/session-agent/bin/python", "-c", source, folder)
        listener = Listener.of(*self.engine.command("exec", "--user", "1000", self.name, *program))
        try:
            until(lambda: listener.events()[:1], ["ready"], patience=_PATIENCE)
            yield listener
        finally:
            listener.close()

    def until(self, script: str, user: str = "1000") -> None:
        """Wait until the script succeeds."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            code, said = self.tried(script, user)
            if code == 0:
                return
            assert time.monotonic() < deadline, f"{script}: {said}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """What its first process has printed."""
        return self.engine.tried("logs", self.name)[1]

    def state(self, key: str) -> str:
        """Such as Running or ExitCode."""
        return self.engine.docker("inspect", "--format", f"{{{{.State.{key}}}}}", self.name)


def _debian() -> Path:
    """A tar archive of the smallest Debian that has what the image needs, made once for a checkout."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    archive = CACHE / f"{release}.tar"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            top = Path(scratch, "top")
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", release, str(top)],
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                said = f"{done.stdout}{done.stderr}".strip().splitlines()[-1:]
                raise OSError(f"debootstrap cannot make a base image: {' '.join(said)}")
            shutil.rmtree(top / "var/cache/apt")
            made = Path(scratch, "tar")
            with tarfile.open(made, "w") as tar:
                tar.add(top, ".")
            made.rename(archive)
    return archive
