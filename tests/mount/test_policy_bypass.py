"""What the session user may try against the policy of an agent that is root. None of it gets in."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.lifecycle import control, state
from tests.mount.test_policy import USER, Governed
from tests.support.session import ROOT, KasmSession, kasm_session
from tests.support.vault import as_person, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


@pytest.fixture(scope="module")
def session() -> Iterator[KasmSession]:
    """`engineering` is the user's, `wiki` hidden, with a file that is open to everybody but for that."""
    with kasm_session() as made:
        (made.vault / "engineering/mine").write_text("mine")
        os.chown(made.vault / "engineering/mine", USER, USER)
        Governed(made)
        done = made.run("first-launch")
        assert done.returncode == 0, done.stdout
        yield made


def shell(session: KasmSession, script: str) -> str:
    """What a shell of the user's prints, errors included."""
    done = subprocess.run(
        ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "sh", "-c", script],
        cwd=session.vault,
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "VAULT": str(session.vault)},
    )
    return done.stdout + done.stderr


def agent(session: KasmSession) -> int:
    return int(json.loads(session.run("status", "--json").stdout)["pid"])


def hidden(session: KasmSession) -> bool:
    names = as_person(lambda: os.listdir(session.vault), USER)
    return "wiki" not in names and "engineering" in names


def test_paths(session: KasmSession) -> None:
    for path in ("wiki", "wiki/", "./wiki", "engineering/../wiki", "Wiki", "engineering/../wiki/."):
        found = outcome(lambda path=path: as_person(lambda: os.stat(session.vault / path), USER))  # type: ignore[misc]
        assert found == "ENOENT", path


def test_links(session: KasmSession) -> None:
    out = shell(
        session, 'cd engineering; ln -s ../wiki l; ls l/; ls "$VAULT/engineering/l/."; rm l'
    )
    assert out.count("No such file") == 2


def test_the_agents_process(session: KasmSession) -> None:
    pid = agent(session)
    for place in ("root/", "cwd/", "fd", "fd/5/", "map_files"):
        assert "ermission denied" in shell(session, f"ls /proc/{pid}/{place}"), place
    for place in ("mem", "environ"):
        assert "ermission denied" in shell(session, f"cat /proc/{pid}/{place}"), place
    assert "ermitted" in shell(session, f"kill -9 {pid}")
    assert hidden(session)


def test_namespaces_of_the_users_own(session: KasmSession) -> None:
    script = """
        unshare --user --map-root-user --mount sh -c '
            umount "$VAULT"; umount -l "$VAULT"; ls "$VAULT/wiki"
            place=/tmp/bypass-$$; mkdir $place
            mount --bind "$(dirname "$VAULT")" $place && ls $place/vault/wiki
            mount --bind "$VAULT" $place && ls $place/wiki
            mount --move "$VAULT" $place; ls "$VAULT/wiki"; rmdir $place'
    """
    out = shell(session, script)
    if "unshare failed" in out:
        pytest.skip(f"no user namespaces here: {out.strip()}")
    assert "cannot access" in out
    assert hidden(session)


def test_unmounting(session: KasmSession) -> None:
    out = shell(session, 'fusermount3 -u "$VAULT"; fusermount3 -uz "$VAULT"; umount "$VAULT"')
    assert out
    assert hidden(session)


def test_the_control_socket(session: KasmSession) -> None:
    path = session.home / ".local/state/session-agent" / state.SOCKET

    def ask() -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b'{"version": %d, "verb": "stop"}\n' % control.VERSION)
            return client.recv(10_000).decode()

    assert "only root may use stop" in as_person(ask, USER)
    assert hidden(session)
    assert "ermission denied" in shell(
        session, f"echo 'user: x' > {session.base}/etc/identity.yaml"
    )


def test_a_forged_settings_file(session: KasmSession, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    done = shell(session, f"echo 'policy: {{file: null}}' > {tmp_path}/c.yaml; ls {tmp_path}")
    assert "c.yaml" in done
    session.environment["SESSION_AGENT_CONFIG"] = str(tmp_path / "c.yaml")
    try:
        assert "is refused" in session.run("first-launch").stderr
    finally:
        del session.environment["SESSION_AGENT_CONFIG"]
    assert hidden(session)


def test_clocks(session: KasmSession) -> None:
    out = shell(session, "date -s 2001-01-01")
    assert "not permitted" in out


def test_exchange_and_hard_links(session: KasmSession) -> None:
    vault = session.vault
    libc = ctypes.CDLL(None, use_errno=True)

    def exchange() -> int:
        libc.renameat2(-100, bytes(vault / "engineering/mine"), -100, bytes(vault / "wiki"), 2)
        return ctypes.get_errno()

    assert as_person(exchange, USER) in (2, 30)
    linked = outcome(
        lambda: as_person(lambda: os.link(vault / "engineering/mine", vault / "wiki/x"), USER)
    )
    assert linked == "ENOENT"


@pytest.mark.parametrize("state_dir", ["", "state"], ids=["in the same place", "elsewhere"])
def test_an_agent_that_the_user_has_started_first(state_dir: str) -> None:
    """It would keep the policy, but the user could end it: root's takes its place."""
    with kasm_session() as made:
        Governed(made)
        if state_dir:
            made.environment["SESSION_AGENT_STATE_DIR"] = str(made.home / state_dir)
        os.chown(made.vault, USER, USER)
        done = made.run("first-launch", as_user=True)
        assert len(made.overlay_mounts()) == 1, done.stdout
        made.environment.clear()
        done = made.run("first-launch")
        assert done.returncode == 0, done.stdout
        assert os.stat(f"/proc/{agent(made)}").st_uid == 0
        assert "the agent runs as the user" not in done.stdout
        assert len(made.overlay_mounts()) == 1
        assert hidden(made)


_PRETENDER = """
import os, socket, sys, time
from session_agent.lifecycle import control, state
from session_agent.model import SessionUser
folder = state.create(sys.argv[1], SessionUser("u", 1000, 1000, (), sys.argv[2]))
if sys.argv[3] == "hold":
    state.lock(folder, SessionUser("u", 1000, 1000, (), sys.argv[2]))
    print("ready", flush=True)
    time.sleep(600)
os.setresuid(1000, 1000, 1000)
server = socket.socket(socket.AF_UNIX)
server.bind(control.address(folder))
server.listen()
print("ready", flush=True)
while True:
    client = server.accept()[0]
    client.recv(4096)
    document = control.StatusDocument("running", sys.argv[4])
    client.sendall(control.encode(control.Answer(document=document)))
    client.close()
"""


def test_a_socket_that_passes_for_root_s(session: KasmSession) -> None:
    """Though root holds the lock, as a set-uid program started with it would: said, and not believed."""
    with kasm_session() as made, contextlib.ExitStack() as stack:
        Governed(made)
        for what in ("hold", "answer"):
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _PRETENDER),
                    *(str(made.state_dir), str(made.home), what, str(made.vault)),
                ],
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        done = made.run("first-launch")
        assert done.returncode == 2, done.stdout
        assert "somebody else's" in done.stdout
        assert "policy is not kept" in done.stdout


def test_root_may_end_it(session: KasmSession) -> None:
    """The last one here: the session is over."""
    done = session.run("stop")
    assert done.returncode == 0, done.stderr
    assert "is unmounted" in done.stdout
    assert not os.path.ismount(session.vault)
