"""The control socket: a real server in a process of its own, asked by good and bad clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from session_agent.desktop.rooms import Terms
from session_agent.errors import ControlError, UserFileError
from session_agent.lifecycle import control, daemon, state
from session_agent.lifecycle.session import Place
from session_agent.model import SessionUser
from tests.support.as_user import NOBODY, as_user, home_of

ROOT = Path(__file__).parents[3]

_SERVE = """
import os, sys, trio
from session_agent.errors import ControlError
from session_agent.lifecycle import listening, state
from session_agent.lifecycle.control import StatusDocument
from session_agent.lifecycle.control_server import ControlServer
from session_agent.model import SessionUser
uid, delay = int(sys.argv[2]), float(sys.argv[3])
user = SessionUser("u", uid, uid, (), "/")
folder = state.create(sys.argv[1], user)
assert state.lock(folder, user)
if delay:
    print("listening", flush=True)

async def main():
    async with trio.open_nursery() as nursery:
        async def status(_):
            return document
        async def stop(_):
            nursery.cancel_scope.cancel()
            return document
        async def cancel(move_id):
            if move_id == "crash":
                raise ZeroDivisionError
            raise ControlError(f"There is no {move_id}.", "Look it up.")
        await trio.sleep(delay)
        document = StatusDocument("running", "/caf\\udce9", os.getpid())
        server = ControlServer(
            listening.bind(folder, user), user, {"status": status, "stop": stop, "cancel": cancel}
        )
        nursery.start_soon(server.run)
        if not delay:
            print("listening", flush=True)

trio.run(main)
"""


def place_of(folder: Path, uid: int) -> Place:
    user = SessionUser("u", uid, uid, (), str(folder))
    return Place(user, "/vault", str(folder / "state"), "", Terms("", ""))


class Server:
    def __init__(self, folder: Path, uid: int, delay: float = 0.0) -> None:
        self.place = place_of(folder, uid)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, self.place.state_dir, str(uid), str(delay)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"listening\n"

    def connect(self) -> socket.socket:
        """A client of one's own making."""
        folder = os.open(self.place.state_dir, os.O_PATH)
        client = socket.socket(socket.AF_UNIX)
        client.connect(control.address(folder))
        client.settimeout(10)
        os.close(folder)
        return client

    def say(self, data: bytes) -> dict[str, Any]:
        with self.connect() as client, client.makefile("rb") as lines:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = json.loads(lines.readline())
        assert isinstance(answer, dict)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path, os.getuid())
    yield running
    running.close()


def status(server: Server) -> control.Running:
    running = control.consult(server.place)
    assert running is not None
    return running


def test_status(server: Server) -> None:
    running = status(server)
    assert running.pid == server.process.pid
    assert running.document == control.StatusDocument("running", "/caf\udce9", running.pid)
    assert not running.problem


def test_stop(server: Server) -> None:
    control.consult(server.place, "stop")
    assert server.process.wait(10) == 0
    assert control.consult(server.place) is None


def test_a_verb_may_have_an_argument_and_may_be_refused(server: Server) -> None:
    running = control.consult(server.place, "cancel", "caf\udce9")
    assert running is not None
    assert (running.document, running.starting) == (None, False)
    assert running.problem == "There is no caf\udce9. Look it up."
    assert status(server).document is not None


def test_a_verb_that_fails_unexpectedly_ends_nothing(server: Server) -> None:
    running = control.consult(server.place, "cancel", "crash")
    assert running is not None
    assert "failed at it" in running.problem
    assert status(server).document is not None


def test_an_argument_too_long_for_a_request(server: Server) -> None:
    running = control.consult(server.place, "cancel", "x" * control.REQUEST_LIMIT)
    assert running is not None
    assert "not understood" in running.problem


def test_the_socket_is_for_the_owner_alone(server: Server) -> None:
    mode = (Path(server.place.state_dir) / "control.sock").stat().st_mode
    assert mode & 0o777 == 0o600


def test_nobody_there(tmp_path: Path) -> None:
    assert control.consult(place_of(tmp_path, os.getuid())) is None


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    server = Server(deep, os.getuid())
    try:
        assert status(server).document is not None
    finally:
        server.close()


def test_what_an_earlier_agent_left_is_replaced(tmp_path: Path) -> None:
    Server(tmp_path, os.getuid()).close()
    assert (tmp_path / "state/control.sock").exists()
    again = Server(tmp_path, os.getuid())
    try:
        assert status(again).document is not None
    finally:
        again.close()


def test_one_that_hangs_is_told_from_one_that_starts(server: Server) -> None:
    os.kill(server.process.pid, signal.SIGSTOP)
    begun = time.monotonic()
    running = status(server)
    assert time.monotonic() - begun < 2 * control.ANSWER_SECONDS
    assert (running.pid, running.document) == (server.process.pid, None)
    assert "no answer" in running.problem
    assert not running.starting
    (Path(server.place.state_dir) / "control.sock").unlink()
    assert status(server).starting


def test_one_that_starts_is_waited_for(tmp_path: Path) -> None:
    server = Server(tmp_path, os.getuid(), delay=0.5)
    try:
        assert status(server).starting
        short = daemon.await_other(server.place, 0.1)
        assert short is not None
        assert short.starting
        ready = daemon.await_other(server.place, 10)
        assert ready is not None
        assert ready.document is not None
    finally:
        server.close()


@pytest.mark.parametrize(
    ("request_line", "told"),
    [
        (b"\n", "not understood"),
        (b"", "not understood"),
        (b"{}\n", "not understood"),
        (b"[" * 4000 + b"\n", "not understood"),
        (b'{"version":1,"verb":"format"}\n', "not understood"),
        (b'{"version":1,"verb":"stop","more":1}\n', "not understood"),
        (b'{"version":true,"verb":"stop"}\n', "not understood"),
        (b'{"version":2,"verb":"stop"}\n', "speaks version 1, not 2"),
        (b'{"version":7,"verb":"unheard-of","more":[1]}\n', "speaks version 1, not 7"),
        (b'{"version":-1,"verb":"stop"}\n', "speaks version 1, not -1"),
        (b'{"version":1,"verb":"stop"' + b" " * 4100 + b"}\n", "not understood"),
        (b"\xff\x00\n", "not understood"),
        (b'{"version":1,"verb":"cancel","argument":"\\ud800"}\n', "not understood"),
    ],
)
def test_a_bad_request_harms_nobody(server: Server, request_line: bytes, told: str) -> None:
    assert told in server.say(request_line)["error"]
    assert status(server).document is not None


def test_a_request_without_end_is_cut_short(server: Server) -> None:
    with server.connect() as client, client.makefile("rb") as lines:
        client.settimeout(2)  # sooner than the server drops a silent client
        client.sendall(b" " * (control.REQUEST_LIMIT + 1))
        assert "not understood" in json.loads(lines.readline())["error"]


def test_a_request_may_come_in_pieces(server: Server) -> None:
    with server.connect() as client, client.makefile("rb") as lines:
        for piece in (b'{"version":1,', b'"verb":"sta', b'tus"}\n'):
            client.sendall(piece)
            time.sleep(0.02)
        assert json.loads(lines.readline())["document"]["state"] == "running"


def test_clients_that_hang_up(server: Server) -> None:
    for _ in range(20):
        client = server.connect()
        # Reset instead of a proper end.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b'{"version":1,"verb":"status"}\n')
        client.close()
    assert status(server).document is not None


def _go_on_for_ever(client: socket.socket) -> None:
    while True:
        client.sendall(b" " * 65536)


def _trickle(client: socket.socket) -> None:
    while True:
        client.sendall(b" ")
        time.sleep(control.ANSWER_SECONDS / 5)


def _wait_for_the_end(client: socket.socket) -> None:
    client.settimeout(10)
    client.recv(1)


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (lambda client: client.sendall(b"nonsense\n"), "not understood"),
        (lambda client: client.sendall(b"[]\n"), "not understood"),
        (lambda client: client.sendall(b'{"document": 1}\n'), "not understood"),
        (lambda client: client.sendall(b'{"document": {"state": "fine", "vault": ""}}\n'), "not"),
        (lambda client: client.sendall(b'{"error": "no", "hint": "Ask."}\n'), "no Ask."),
        (lambda client: client.sendall(b'{"version": 2, "news": []}\n'), "speaks version 2"),
        (lambda client: client.shutdown(socket.SHUT_RDWR), "not understood"),
        (lambda client: client.sendall(b" " * (control.ANSWER_LIMIT + 70000)), "not understood"),
        (_wait_for_the_end, "no answer"),
        (_go_on_for_ever, "not understood"),
        (_trickle, "no answer"),
    ],
)
def test_a_server_that_answers_nonsense(
    tmp_path: Path, behaviour: Callable[[socket.socket], None], told: str
) -> None:
    folder = os.open(tmp_path, os.O_PATH)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(control.address(folder))
    listener.listen()
    child = os.fork()
    if child == 0:
        try:
            client, _ = listener.accept()
            client.recv(100)
            behaviour(client)
        finally:
            os._exit(0)
    listener.close()
    try:
        with pytest.raises(ControlError, match=told):
            control.ask(folder, control.Request(1, "status"), {os.getuid()})
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(folder)


@pytest.mark.needs_root
class TestWhoMayAsk:
    """Root and the session user; nobody else, whatever the file's permissions."""

    @pytest.fixture
    def server(self) -> Iterator[Server]:
        with home_of() as home:
            running = Server(home, NOBODY)
            yield running
            running.close()

    def test_root_and_the_user_may(self, server: Server) -> None:
        assert status(server).document is not None
        as_user(lambda: self._ask(server), NOBODY)

    def _ask(self, server: Server) -> None:
        assert server.say(b'{"version":1,"verb":"status"}\n')["document"]

    def test_somebody_else_may_not(self, server: Server) -> None:
        state_dir = Path(server.place.state_dir)
        for path in (state_dir.parent, state_dir, state_dir / "control.sock"):
            path.chmod(0o777)

        def ask() -> None:
            answer = server.say(b'{"version":1,"verb":"stop"}\n')
            assert "Only root and the session user" in answer["error"]

        as_user(ask, NOBODY - 1)
        assert status(server).document is not None

    def test_silent_clients_keep_the_user_out_but_never_root(self, server: Server) -> None:
        def ask() -> None:
            silent = [server.connect() for _ in range(40)]
            os.write(told, b"x")
            with pytest.raises((ValueError, ConnectionError)):
                self._ask(server)
            os.write(told, b"x")
            for client in silent:
                client.settimeout(60)
                client.recv(1)

        waiting, told = os.pipe()
        child = os.fork()
        if child == 0:
            as_user(ask, NOBODY)
            os._exit(0)
        try:
            assert os.read(waiting, 1) == b"x"
            assert status(server).document is not None
            assert os.read(waiting, 1) == b"x"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(waiting)
            os.close(told)

    def test_a_server_of_somebody_else_is_not_believed(self, server: Server) -> None:
        folder = state.find(server.place.state_dir)
        assert folder is not None

        def ask() -> None:
            with pytest.raises(ControlError, match="somebody else's"):
                control.ask(folder, control.Request(1, "status"), {NOBODY - 1})

        for path in (Path(server.place.state_dir), Path(server.place.state_dir) / "control.sock"):
            path.chmod(0o777)
        as_user(ask, NOBODY - 1)
        os.close(folder)

    def test_a_state_directory_that_is_not_the_users(self, server: Server) -> None:
        os.chown(server.place.state_dir, 0, 0)
        with pytest.raises((ControlError, UserFileError)):
            control.consult(server.place)
