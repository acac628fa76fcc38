"""What a session's user may try against a policy, in a container where the agent is root: nothing gets in."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.conftest import Built, mounts
from tests.support.engine import FUSE, Container

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.timeout(300)]

ROOT_LINK = "root" + "/"
SECRET = "the page that nobody here may see"

POLICY = """
folders:
  - {name: engineering, path: /srv/engineering, access: [{groups: [staff], mode: rw}]}
  - {name: marketing, path: /srv/marketing, access: [{groups: [staff], mode: ro}]}
  - {name: wiki, path: /srv/wiki, access: [{groups: [editors], mode: rw}]}
"""

CONFIG = """
policy:
  file: /etc/session-agent/vault-permissions.yaml
  identity_file: /etc/session-agent/identity.yaml
"""


def governed(host: Path) -> tuple[str, ...]:
    """Options: `engineering` is the user's, `marketing` to be read only, `wiki` hidden."""
    host.chmod(0o755)
    for name in ("engineering", "marketing", "wiki", "settings"):
        (host / name).mkdir()
    for name in ("engineering", "marketing", "wiki"):
        os.chown(host / name, 1000, 1000)
        (host / name / "page.md").write_text(SECRET if name == "wiki" else "a page")
        os.chown(host / name / "page.md", 1000, 1000)
    (host / "settings/config.yaml").write_text(CONFIG)
    (host / "settings/vault-permissions.yaml").write_text(POLICY)
    (host / "settings/identity.yaml").write_text("user: ann\ngroups: [staff]\n")
    return (
        *FUSE,
        *mounts(host),
        *("--volume", f"{host}/settings:/etc/session-agent", "--entrypoint", "sleep"),
    )


@pytest.fixture(scope="module")
def session(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    options = governed(tmp_path_factory.mktemp("host"))
    with built.engine.container(*options, command=["600"]) as one:
        one.run("session-agent", "first-launch", user="0")
        one.until("ls /vault/engineering")
        yield one


@pytest.fixture(autouse=True)
def nothing_has_changed(session: Container) -> Iterator[None]:
    """Whatever the user has tried: the vault is as the policy has it."""
    yield
    assert session.sh("ls /vault | grep -v '^_'") == "engineering\nmarketing"
    assert session.sh("cat /vault/engineering/page.md") == "a page"
    assert session.tried("echo x > /vault/marketing/page.md")[0] != 0
    assert session.sh("cat /vault/marketing/page.md") == "a page"


def refused(session: Container, *scripts: str) -> None:
    """None of them succeeds, or says what it must not."""
    for script in scripts:
        code, said = session.tried(script)
        assert code != 0, f"{script}: {said}"
        assert SECRET not in said, script


def test_paths(session: Container) -> None:
    refused(
        session,
        "cat /vault/wiki/page.md",
        "cat /vault/engineering/../wiki/page.md",
        "cat /vault/./wiki/./page.md",
        "ls /vault/wiki/",
        "cd /vault/engineering && cat ../wiki/page.md",
        "cd /vault/wiki",
        "echo x > /vault/wiki",
        "mkdir /vault/wiki/new",
    )


def test_symbolic_links(session: Container) -> None:
    session.sh(
        "ln -s ../wiki/page.md /vault/engineering/link; ln -s /vault/wiki /vault/engineering/way"
    )
    refused(
        session,
        "cat /vault/engineering/link",
        "cat /vault/engineering/way/page.md",
        "echo x > /vault/engineering/link",
        "mv /vault/engineering/page.md /vault/engineering/way/",
    )
    session.sh("ln -s ../marketing/page.md /vault/engineering/read")
    refused(session, "echo x > /vault/engineering/read", "truncate -s 0 /vault/engineering/read")
    session.sh("rm /vault/engineering/link /vault/engineering/way /vault/engineering/read")


def test_links_and_renames_out_of_what_is_read_only(session: Container) -> None:
    refused(
        session,
        "ln /vault/marketing/page.md /vault/engineering/page2.md",
        "mv /vault/marketing/page.md /vault/engineering/",
        "mv /vault/engineering/page.md /vault/marketing/",
        "mv -f /vault/marketing /vault/engineering/stolen",
        "rm -f /vault/marketing/page.md && test ! -e /vault/marketing/page.md",
        "chmod 777 /vault/marketing/page.md",
        "touch /vault/marketing/page.md",
        "setfattr -n user.x -v 1 /vault/marketing/page.md",
        "truncate -s 0 /vault/marketing/page.md",
    )


def test_the_agent_s_processes(session: Container) -> None:
    agents = session.sh("pgrep -f 'session_agent serve'").split()
    assert agents
    roots = [pid for pid in agents if session.sh(f"stat -c %u /proc/{pid}") == "0"]
    assert roots
    for pid in agents:
        if pid in roots:
            refused(
                session,
                f"ls /proc/{pid}/{ROOT_LINK}",
                f"ls /proc/{pid}/cwd/",
                f"ls /proc/{pid}/fd/",
                f"cat /proc/{pid}/environ",
                f"head -c 1 /proc/{pid}/mem",
                f"kill -STOP {pid}",
            )
        # Those that are the user's own hold nothing that leads anywhere.
        said = session.tried(
            f"for f in /proc/{pid}/fd/*; do ls $f/wiki $f/page.md; done;"
            f"cat /proc/{pid}/{ROOT_LINK}vault/wiki/page.md"
        )[1]
        assert SECRET not in said
        assert "page.md\n" not in said.replace("/page.md", "")


def test_namespaces(session: Container) -> None:
    script = """
        mkdir -p /tmp/place
        unshare --user --map-root-user --mount sh -c '
            umount /vault; umount -l /vault; cat /vault/wiki/page.md
            mount --bind / /tmp/place && cat /tmp/place/vault/wiki/page.md
            mount --rbind / /tmp/place && umount -l /tmp/place/vault; cat /tmp/place/vault/wiki/page.md
            mount --move /vault /tmp/place; cat /vault/wiki/page.md'
        exit 1
    """
    refused(session, script)


def test_unmounting(session: Container) -> None:
    refused(
        session,
        "fusermount3 -u /vault",
        "fusermount3 -u -z /vault",
        "umount /vault",
        "umount -l /vault",
    )


def test_a_mount_over_it(session: Container) -> None:
    """A vault of the user's own, beside the agent's: it shows what the user may reach, no more."""
    code, said = session.tried(
        "mkdir -p /tmp/mine && cd /tmp && SESSION_AGENT_VAULT=/tmp/mine SESSION_AGENT_STATE_DIR=/tmp/state"
        " session-agent first-launch; ls -R /tmp/mine; cat /tmp/mine/*/page.md;"
        " SESSION_AGENT_VAULT=/tmp/mine SESSION_AGENT_STATE_DIR=/tmp/state session-agent stop"
    )
    assert SECRET not in said, code


def test_the_control_socket(session: Container) -> None:
    refused(
        session,
        "session-agent stop",
        "session-agent stop --force",
        "session-agent moves cancel 0123456789ab",
    )


def test_settings_and_identity(session: Container) -> None:
    refused(
        session,
        "echo 'groups: [editors]' > /etc/session-agent/identity.yaml",
        "mv /etc/session-agent/identity.yaml /tmp/",
        "echo > /etc/session-agent/vault-permissions.yaml",
        "date -s 2001-01-01",
    )
    # A hook that is started with the user's variables does not believe them.
    session.sh("echo 'policy: {file: null}' > /tmp/forged.yaml")
    code, said = session.engine.tried(
        *("exec", "--user", "0", "--env", "SESSION_AGENT_CONFIG=/tmp/forged.yaml"),
        *("--env", 'SESSION_AGENT_IDENTITY={"user": "ann", "groups": ["editors"]}'),
        *(session.name, "session-agent", "first-launch"),
    )
    assert code == 1, said
    assert "is refused" in said
    code, said = session.engine.tried(
        *("exec", "--user", "0"),
        *("--env", 'SESSION_AGENT_IDENTITY={"user": "ann", "groups": ["editors"]}'),
        *(session.name, "session-agent", "first-launch"),
    )
    assert "wiki" not in session.sh("ls /vault")


FORGE = """
import json, zlib, os
record = {"id": "0123456789ab", "created": 1.0,
  "source": {"branch": "wiki", "folder": "", "name": "page.md"},
  "target": {"branch": "engineering", "folder": "", "name": "stolen.md"},
  "source_was": {"inode": 1, "kind": 32768, "size": SIZE, "mtime_ns": 1},
  "state": "accepted", "background": True}
text = json.dumps(record).encode()
path = os.path.expanduser("~/.local/state/session-agent/moves.journal")
data = b"session-agent moves journal 1\\n" + b"%08x %b\\n" % (zlib.crc32(text), text)
open(path, "wb").write(data)
"""


def test_a_forged_journal(session: Container) -> None:
    """The state directory is the user's: a record of a move out of the hidden folder, and a new start."""
    forge = FORGE.replace("SIZE", str(len(SECRET)))
    agents = session.sh("pgrep -f 'session_agent serve'", user="0").split()
    session.sh(f"kill -KILL {' '.join(agents)}", user="0")
    session.sh(f"/opt/session-agent/bin/python -c {shlex.quote(forge)}")
    session.run("session-agent", "first-launch", user="0")
    session.until("ls /vault/engineering")
    assert session.tried("cat /vault/engineering/stolen.md")[0] != 0
    assert session.sh("cat /vault/engineering/page.md") == "a page"


def test_races_of_links_with_every_operation(session: Container) -> None:
    """A name that is a folder one moment and a link to the hidden folder the next."""
    swap = """
        mkdir -p /vault/engineering/a; ln -sfn /vault/wiki /vault/engineering/b
        for i in $(seq 300); do
            mv -T /vault/engineering/a /vault/engineering/c; mv -T /vault/engineering/b /vault/engineering/a
            mv -T /vault/engineering/a /vault/engineering/b; mv -T /vault/engineering/c /vault/engineering/a
        done
    """
    attack = """
        for i in $(seq 300); do
            cat /vault/engineering/a/page.md; ls /vault/engineering/a/; echo x > /vault/engineering/a/new
            cp /vault/engineering/a/page.md /vault/engineering/got
            ln /vault/engineering/a/page.md /vault/engineering/got2
            mv /vault/engineering/a/page.md /vault/engineering/got3
        done 2>/dev/null
    """
    said = session.tried(f"({swap}) & ({attack}); wait")[1]
    assert SECRET not in said
    assert session.tried("cat /vault/engineering/got*")[1].count(SECRET) == 0
    session.sh("rm -rf /vault/engineering/[abc] /vault/engineering/got*")


def test_an_agent_of_the_user_s_own_comes_first(built: Built, tmp_path: Path) -> None:
    """As the image's entry point starts one, before the hook: root's takes its place."""
    with built.engine.container(*governed(tmp_path), command=["600"]) as one:
        one.tried("session-agent first-launch")
        one.run("session-agent", "first-launch", user="0")
        assert one.sh("stat -c %u /proc/$(pgrep -o -f 'session_agent serve')") == "0"
        assert one.tried("session-agent stop --force")[0] == 1
        assert one.tried("cat /vault/wiki/page.md")[0] != 0
        one.sh("echo text > /vault/engineering/new")


def test_the_raw_folder_before_the_agent_starts(session: Container) -> None:
    """What the agent cannot prevent is told: doctor says whether the policy binds."""
    said = session.engine.tried("exec", "--user", "0", session.name, "session-agent", "doctor")[1]
    assert "policy" in said
