"""An agent that says what a test tells it to: a real lock and a real control socket, and no vault."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from session_agent.lifecycle import listening, state
from session_agent.lifecycle.control import StatusDocument, Verb
from session_agent.lifecycle.session import Place

_ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def stub_agent(
    place: Place, answers: Sequence[StatusDocument | str] | None
) -> Iterator[Callable[[], list[list[str]]]]:
    """Gives these answers one after the other, the last one again and again; a text is a refusal.

    With None it does not listen. Yields what it was asked for: verbs and their arguments.
    """
    log = Path(place.state_dir, "asked")
    told = [msgspec.to_builtins(answer) for answer in answers or ()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.stub_agent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps([place.state_dir, place.user.uid, told, str(log)]) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        yield lambda: [json.loads(line) for line in log.read_text().splitlines()]
    finally:
        process.kill()
        process.communicate()


def _main() -> None:
    import trio  # noqa: PLC0415

    from session_agent.errors import ControlError  # noqa: PLC0415
    from session_agent.lifecycle.control_server import ControlServer, Handler  # noqa: PLC0415
    from session_agent.model import SessionUser  # noqa: PLC0415

    state_dir, uid, answers, log = json.loads(sys.stdin.readline())
    user = SessionUser("u", uid, uid, (), "/")
    folder = state.create(state_dir, user)
    assert state.lock(folder, user)

    def note(*asked: str) -> None:
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(asked) + "\n")

    def handler(verb: str) -> Handler:
        async def answer(argument: str) -> StatusDocument:
            note(verb, argument)
            told = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(told, str):
                raise ControlError(told)
            return msgspec.convert(told, StatusDocument)

        return answer

    async def serve() -> None:
        server = ControlServer(
            listening.bind(folder, user), user, {verb: handler(verb) for verb in get_args(Verb)}
        )
        os.write(1, b"ready\n")
        await server.run()

    if answers:
        trio.run(serve)
    os.write(1, b"ready\n")
    sys.stdin.read()


if __name__ == "__main__":
    _main()
