"""The image that image/Dockerfile makes, run as the README says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.container.conftest import Built, mounts
from tests.support.engine import BASE, FUSE, IMAGE, ROOT

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.timeout(300)]


def test_what_is_in_it(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    engine = built.engine
    assert re.search(r"added: \d+ MB", built.said), built.said[-500:]
    added = engine.megabytes(IMAGE) - engine.megabytes(BASE)
    with capsys.disabled():
        sys.stdout.write(f"{added:.0f} MB added to the base ")
    assert added < 90
    with engine.container("--entrypoint", "sleep", command=["600"]) as one:
        assert one.run("session-agent", "--version").startswith("session-agent")
        assert one.sh("command -v session-agent") == "/usr/local/bin/session-agent"
        assert "user_allow_other" in one.sh("cat /etc/fuse.conf").splitlines()
        for tool in ("gcc", "/opt/session-agent/bin/pip"):
            assert one.tried(f"command -v {tool}")[0] != 0, tool
        assert one.tried("/opt/session-agent/bin/python -c 'import pip'")[0] != 0
        assert one.sh("ls /opt") == "session-agent"
        assert one.sh("stat -c %u:%g /vault") == "1000:0"
        assert one.sh("find /opt/session-agent -not -user 0 | wc -l") == "0"


def test_a_vault_and_a_shell(built: Built, host: Path) -> None:
    """As the README runs it: moves across mounts, and what the host has afterwards."""
    (host / "engineering/note.md").write_text("moved")
    script = (
        "set -e; stat -f -c %T /vault; mv /vault/engineering/note.md /vault/marketing/;"
        "cat /vault/wiki/page.md; touch /vault/wiki/x || echo read-only"
    )
    said = built.engine.docker(
        *("run", "--rm", "--network", "none", *FUSE, *mounts(host)),
        *("--env", "CLOUD_MOUNTS=/vault/wiki|nextcloud"),
        *(IMAGE, "bash", "-c", script),
    )
    assert said.splitlines()[-1] == "the pageread-only", said
    assert said.splitlines()[-2].startswith("fuse"), said
    assert (host / "marketing/note.md").read_text() == "moved"
    assert not (host / "engineering/note.md").exists()


def test_the_image_s_own_start(built: Built, host: Path) -> None:
    """Without a command Kasm's scripts run in their order, beside the vault."""
    with built.engine.container(*FUSE, *mounts(host), command=[]) as one:
        one.until("test -e ~/started")
        one.until("mountpoint -q /vault && ls /vault/engineering")
        assert "xfce4-session" in one.sh("ps -eo args")
        assert "session-agent-entrypoint" in one.sh("ps -o args= -p 1")


def test_the_readme_s_command(built: Built, host: Path) -> None:
    """As it stands there, but for the terminal, the folders and the image's name."""
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```sh\n(docker run .*?)```", text, re.DOTALL)
    command = shlex.split(block.replace("\\\n", " "))
    assert command[:3] == ["docker", "run", "-it"]
    assert command[-2:] == ["my-desktop", "bash"]
    options = [word.replace("/srv/notes", str(host)) for word in command[3:-2]]
    (host / "engineering/note.md").write_text("a note")
    script = "stat -f -c %T /vault; ls /vault; cat /vault/engineering/note.md /vault/wiki/page.md"
    said = built.engine.docker("run", "--network", "none", *options, IMAGE, "bash", "-c", script)
    assert said.startswith("fuse"), said
    assert {"engineering", "wiki"} <= set(said.splitlines()), said
    assert said.endswith("a notethe page")
