"""Sessions in containers: privilege levels, limits, what outlives them, and how they end."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.container.conftest import Built, mounts
from tests.support import storage
from tests.support.engine import FUSE, IMAGE, Container

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.timeout(300)]

SERVED = "mountpoint -q /vault && stat -f -c %T /vault | grep -q fuse && ls /vault/engineering"
PATIENCE = 60.0  # seconds
BIG = 200 << 20  # bytes: what is moved in the background


def moved(one: Container, name: str) -> None:
    """A move from `engineering` to `marketing`, as the user."""
    one.sh(f"mv /vault/engineering/{name} /vault/marketing/{name}")


def until_gone(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.05)


def big(path: Path) -> str:
    """A file of bytes that are nowhere else; their hash."""
    content = os.urandom(1 << 20) * (BIG >> 20)
    path.write_bytes(content)
    os.chown(path, 1000, 1000)
    return hashlib.sha256(content).hexdigest()


def reserved(*folders: Path) -> list[str]:
    return [
        name for folder in folders for name in os.listdir(folder) if name.startswith(".~session")
    ]


# Privilege levels


def test_without_privileges(built: Built, host: Path) -> None:
    """No vault, but everything else; and the session starts."""
    with built.engine.container(*mounts(host)) as one:
        one.until("test -e ~/.config/gtk-3.0/bookmarks")
        assert "/vault/engineering" in one.sh("cat ~/.config/gtk-3.0/bookmarks")
        code, said = one.tried("session-agent first-launch")
        assert code == 2
        assert "/dev/fuse" in said
        assert one.sh("ls /vault/wiki") == "page.md"
        assert "there is no /dev/fuse" in one.logs()


@pytest.mark.parametrize("hook", ["1000", "0"], ids=["as kasm-user", "as root"])
def test_the_first_launch_hook(built: Built, host: Path, hook: str) -> None:
    """Run by `docker exec` in a container with an entry point of its own, and run once more."""
    with built.engine.container(
        *FUSE, *mounts(host), "--entrypoint", "sleep", command=["600"]
    ) as one:
        one.run("session-agent", "first-launch", user=hook)
        one.until(SERVED)
        assert "unchanged" in one.run("session-agent", "first-launch", user=hook)
        agent = int(one.sh("pgrep -o -f 'session_agent serve'"))
        assert one.sh(f"stat -c %u /proc/{agent}") == hook
        one.sh("echo text > /vault/engineering/note && mv /vault/engineering/note /vault/marketing")
        status = (host / "marketing/note").stat()
        assert (status.st_uid, (host / "marketing/note").read_text()) == (1000, "text\n")
        assert one.sh("stat -c %U ~/.config/gtk-3.0/bookmarks") == "kasm-user"
        one.run("session-agent", "stop", user=hook)
        assert one.tried("mountpoint -q /vault")[0] != 0


@pytest.mark.parametrize("level", ["FUSE", "FUSE with O(1) moves"])
def test_the_inode_moves_along(built: Built, host: Path, level: str) -> None:
    """Both folders lie on one file system of the host: with the capability nothing is copied."""
    (host / "engineering/note").write_text("text")
    before = (host / "engineering/note").stat().st_ino
    more = ("--cap-add", "DAC_READ_SEARCH") if "O(1)" in level else ()
    with built.engine.container(
        *FUSE, *more, *mounts(host), "--entrypoint", "sleep", command=["600"]
    ) as one:
        one.run("session-agent", "first-launch", user="0")
        moved(one, "note")
        kept = (host / "marketing/note").stat().st_ino == before
        assert kept is bool(more)


# Limits


def test_a_read_only_container_with_limits(built: Built, host: Path) -> None:
    options = (
        *("--read-only", "--tmpfs", "/tmp", "--tmpfs", "/home/kasm-user:uid=1000,gid=0"),
        *("--tmpfs", "/vault:uid=1000", "--pids-limit", "64", "--memory", "256m"),
    )
    with built.engine.container(*FUSE, *options, *mounts(host)) as one:
        one.until(SERVED)
        digest = big(host / "engineering/big")
        moved(one, "big")
        until_gone(host / "engineering/big")
        found = hashlib.sha256((host / "marketing/big").read_bytes()).hexdigest()
        assert found == digest
        one.sh("mkdir /vault/engineering/notes")
        one.sh("for i in $(seq 1000); do echo $i > /vault/engineering/notes/$i; done")
        moved(one, "notes")
        until_gone(host / "engineering/notes")
        assert len(os.listdir(host / "marketing/notes")) == 1000
        assert one.state("OOMKilled") == "false"


@pytest.mark.needs_rclone
def test_a_cloud_drive_of_the_host(built: Built, host: Path) -> None:
    """Mounted by rclone on the host and bound into the container, as the volume plugin does."""
    with storage.rclone(host / "behind", host / "drive") as drive:
        (host / "engineering/note").write_text("to the cloud")
        os.chown(host / "engineering/note", 1000, 1000)
        cloud = ("--volume", f"{drive.path}:/gdrive", "--env", "CLOUD_MOUNTS=/gdrive|gdrive")
        with built.engine.container(*FUSE, *cloud, *mounts(host)) as one:
            one.until(SERVED)
            one.sh("mv /vault/engineering/note /vault/gdrive/note")
            assert (host / "behind/note").read_text() == "to the cloud"
            assert not (host / "engineering/note").exists()
            assert "file:///vault/gdrive" in one.sh("cat ~/.config/gtk-3.0/bookmarks")
            drive.kill()
            assert one.tried("timeout 20 ls /vault/gdrive")[0] not in (0, 124)
            assert one.sh("ls /vault/wiki") == "page.md"


# How a session ends, and what the next one finds


@pytest.fixture
def home(built: Built) -> Iterator[str]:
    """A volume that outlives containers."""
    name = built.engine.docker("volume", "create")
    yield name
    built.engine.docker("volume", "rm", name)


def test_stop_lets_moves_end_and_unmounts(built: Built, host: Path, home: str) -> None:
    digest = big(host / "engineering/big")
    options = (*FUSE, *mounts(host), "--volume", f"{home}:/home/kasm-user")
    with built.engine.container(*options, command=["sleep", "600"]) as one:
        one.until(SERVED)
        moved(one, "big")
        built.engine.docker("stop", "--time", "60", one.name)
        assert one.state("ExitCode") == "143"
        found = hashlib.sha256((host / "marketing/big").read_bytes()).hexdigest()
        assert found == digest, "within the grace period"
        assert not (host / "engineering/big").exists()
        assert reserved(host / "engineering", host / "marketing") == []
        built.engine.docker("start", one.name)
        one.until(SERVED)
        said = one.sh("cat ~/.local/state/session-agent/*log*")
        assert "is unmounted" in said, said


def test_a_signal_reaches_the_program(built: Built, host: Path) -> None:
    """While the vault is there: it can save what it has open."""
    script = (
        "trap 'echo saved > /vault/engineering/note; exit 7' TERM; touch ~/up; sleep 600 & wait"
    )
    with built.engine.container(*FUSE, *mounts(host), command=["bash", "-c", script]) as one:
        one.until("test -e ~/up")
        built.engine.docker("stop", "--time", "60", one.name)
        assert one.state("ExitCode") == "7"
        assert (host / "engineering/note").read_text() == "saved\n"


def test_stopped_while_it_starts(built: Built, host: Path) -> None:
    """The first process of a container does not hear a signal that it has no trap for."""
    with built.engine.container(*FUSE, *mounts(host)) as one:
        one.until("pgrep -f first-launch")
        built.engine.docker("stop", "--time", "60", one.name)
        assert one.state("ExitCode") == "143"


def test_the_command_s_exit_code(built: Built, host: Path) -> None:
    with built.engine.container(*FUSE, *mounts(host), command=["bash", "-c", "exit 5"]) as one:
        assert built.engine.docker("wait", one.name) == "5"


def test_signals_are_not_ignored(built: Built, host: Path) -> None:
    """A shell lets what it runs in the background ignore some: then Ctrl-C would do nothing."""
    with built.engine.container(*mounts(host), command=["sleep", "600"]) as one:
        one.until("pgrep -x sleep")
        ignored = int(one.sh("sed -n 's/SigIgn:\\t//p' /proc/$(pgrep -x sleep)/status"), 16)
        assert ignored & 0b110 == 0, f"{ignored:b}"


def test_killed_in_the_middle_of_a_move(built: Built, host: Path, home: str) -> None:
    """A session with a home in a volume: the next container goes on with it."""
    digest = big(host / "engineering/big")
    options = (*FUSE, *mounts(host), "--volume", f"{home}:/home/kasm-user")
    with built.engine.container(*options) as one:
        one.until(SERVED)
        # The agent with the same breath, since `docker kill` takes longer than the move.
        one.sh(
            "mv /vault/engineering/big /vault/marketing/big; pkill -KILL -f 'session_agent serve'"
        )
        built.engine.docker("kill", one.name)
        source = host / "engineering/big"
        assert hashlib.sha256(source.read_bytes()).hexdigest() == digest
        assert not (host / "marketing/big").exists()
    with built.engine.container(*options) as one:
        one.until(SERVED)
        assert one.sh("ls /vault/engineering; ls /vault/marketing") == "big"
        until_gone(source)
        found = hashlib.sha256((host / "marketing/big").read_bytes()).hexdigest()
        assert found == digest
        assert reserved(host / "engineering", host / "marketing") == []


def test_killed_and_started_again(built: Built, host: Path) -> None:
    (host / "engineering/note").write_text("text")
    os.chown(host / "engineering/note", 1000, 1000)
    with built.engine.container(*FUSE, *mounts(host)) as one:
        one.until(SERVED)
        built.engine.docker("kill", one.name)
        built.engine.docker("start", one.name)
        one.until(SERVED)
        moved(one, "note")
        assert (host / "marketing/note").read_text() == "text"


def test_twenty_at_once(built: Built, host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sharing their folders; what the agents of each take in memory is printed."""
    names: list[str] = []
    try:
        for _ in range(20):
            options = ("--detach", "--network", "none", "--memory", "256m", *FUSE, *mounts(host))
            names.append(built.engine.docker("run", *options, IMAGE, "sleep", "600"))
            Container(built.engine, names[-1]).until(SERVED)
        containers = [Container(built.engine, name) for name in names]
        for number, one in enumerate(containers):
            one.sh(f"echo {number} > /vault/engineering/note{number}")
        for number, one in enumerate(containers):
            moved(one, f"note{number}")
        assert len(os.listdir(host / "marketing")) == 20
        agents = [
            process
            for process in psutil.process_iter(["cmdline"])
            if {"session_agent", "serve"} <= set(process.info["cmdline"] or ())
        ]
        total = sum(process.memory_full_info().pss for process in agents)
        with capsys.disabled():
            sys.stdout.write(f"{total / 20 / (1 << 20):.1f} MiB PSS for the agents of a session ")
        assert len(agents) >= 20
    finally:
        built.engine.docker("rm", "--force", *names)
