"""A real agent whose control socket is misused in every way that comes to mind, while it serves the vault."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from session_agent.lifecycle import control
from tests.support.session import KasmSession, kasm_session

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
_ALMOST = st.fixed_dictionaries(
    {
        "version": st.just(1) | _JSON,
        "verb": st.sampled_from(["status", "cancel", "acknowledge"]) | _JSON,
    },
    optional={"argument": st.text(max_size=50) | _JSON, "more": _JSON},
).filter(lambda message: message["verb"] != "stop")
_REQUESTS = (
    st.binary(max_size=2 * control.REQUEST_LIMIT)
    | _JSON.map(lambda value: json.dumps(value).encode() + b"\n")
    | _ALMOST.map(lambda value: json.dumps(value).encode() + b"\n")
)


@pytest.fixture(scope="module")
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        made.first_launch(0)
        yield made


def connect(session: KasmSession) -> socket.socket:
    folder = os.open(session.state_dir, os.O_PATH)
    client = socket.socket(socket.AF_UNIX)
    try:
        client.settimeout(10)
        deadline = time.monotonic() + 10
        while True:
            try:
                client.connect(control.address(folder))
                break
            except BlockingIOError:  # the queue is full for the moment
                assert time.monotonic() < deadline
                time.sleep(0.001)
    except BaseException:
        client.close()
        raise
    finally:
        os.close(folder)
    return client


def all_is_well(session: KasmSession) -> None:
    """The vault is served, and the agent answers."""
    note = session.vault / "engineering/after.md"
    note.write_text("still here\n")
    assert note.read_text() == "still here\n"
    note.unlink()
    assert session.status()["state"] == "running"


def answer(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := client.recv(65536):
            received += chunk
    return received


@given(request=_REQUESTS)
@example(request=b"\x00" * control.REQUEST_LIMIT)
@example(request=b'{"version":1e999,"verb":"status"}\n')
@example(request=b'{"version":' + b"9" * 4000 + b',"verb":"status"}\n')
@example(request=b'{"version":1,"verb":"cancel","argument":"\\ud800/../../x\\u0000"}\n')
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_sent_is_answered(session: KasmSession, request: bytes) -> None:
    with connect(session) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
        told = answer(client)
    # More than the server wants to hear is cut short, and the rest may cost the client its answer.
    if len(request) <= control.REQUEST_LIMIT:
        document = json.loads(told)
        assert document["document"] or document["error"]


def test_after_all_that_the_vault_is_served(session: KasmSession) -> None:
    """Follows the test above, of the same agent."""
    all_is_well(session)
    assert "Traceback" not in (session.state_dir / "agent.log").read_text()


def test_slow_clients_in_great_numbers(session: KasmSession) -> None:
    """They send a byte and wait: root is served beside them, and the vault too."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(session)) for _ in range(200)]
        for client in slow:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"{")
        all_is_well(session)
    all_is_well(session)


def test_half_closed_and_never_read(session: KasmSession) -> None:
    """Clients that ask, close their half and leave the answer lying."""
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            client = stack.enter_context(connect(session))
            with contextlib.suppress(ConnectionError):
                client.sendall(b'{"version":1,"verb":"status"}\n' * 20)
                client.shutdown(socket.SHUT_WR)
        all_is_well(session)


def test_many_that_come_and_go(session: KasmSession) -> None:
    before = _descriptors(session)
    for _ in range(1500):
        connect(session).close()
    all_is_well(session)
    assert _descriptors(session) <= before + 32  # those that are being closed


def _descriptors(session: KasmSession) -> int:
    return len(os.listdir(f"/proc/{session.status()['pid']}/fd"))


def test_it_is_a_socket_of_the_user_for_the_user_alone(session: KasmSession) -> None:
    path = Path(session.state_dir, "control.sock")
    found = path.lstat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == session.home.stat().st_uid
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
