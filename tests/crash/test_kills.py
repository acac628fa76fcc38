"""A vault that is killed again and again while files and folders move back and forth in it.

Whatever was there, and whatever fsync has acknowledged since, is found exactly once after the recovery, under
its old or its new place; and nothing is left over.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from session_agent.moves.journal import NAME
from session_agent.moves.names import RESERVED_PREFIX
from tests.support.vault import Storage, Vault, serve, storage

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.timeout(3600)]

BRANCHES = ("alpha", "beta", "gamma", "delta")
INLINE = 20_000  # bytes; about half of the moves are done in the background
KILLS = 40
LONG_KILLS = 600
PATIENCE = 20.0  # seconds


@pytest.fixture
def place() -> Iterator[Storage]:
    with storage() as made:
        yield made


def _content(name: str) -> bytes:
    seed = hashlib.sha256(name.encode()).digest()
    return seed * (random.Random(name).randrange(1, 40_000) // len(seed) + 1)


def _make(place: Storage) -> dict[str, dict[str, bytes]]:
    """Ten files and five trees, on one branch or another; what each is made of."""
    items: dict[str, dict[str, bytes]] = {}
    for number in range(15):
        name = f"item{number}"
        top = place.branch(BRANCHES[number % len(BRANCHES)]) / name
        notes = [""] if number % 3 else [f"/{folder}/{note}" for folder in "ab" for note in "xyz"]
        items[name] = {note: _content(name + note) for note in notes}
        for note, content in items[name].items():
            path = Path(f"{top}{note}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return items


def _move_about(vault: Path, chance: random.Random, names: list[str]) -> None:
    """Until the vault is killed. Runs in a child."""
    while True:
        name = chance.choice(names)
        source, target = (vault / branch / name for branch in chance.sample(BRANCHES, 2))
        try:
            os.rename(source, target)
        except FileNotFoundError:
            continue  # it is elsewhere
        except FileExistsError:
            raise AssertionError("one thing in two places") from None


def _write_on(vault: Path, name: str, acknowledged: int) -> None:
    """Append a number at a time to a file that moves meanwhile, and report each that is durable."""
    for branch in BRANCHES:
        with suppress(FileNotFoundError):
            fd = os.open(vault / branch / name, os.O_WRONLY | os.O_APPEND)
            break
    else:
        return
    number = os.fstat(fd).st_size // 8
    while True:
        os.write(fd, b"%07d\n" % number)
        os.fsync(fd)
        os.pwrite(acknowledged, b"%07d" % number, 0)
        number += 1


def _child(function: object, *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            function(*arguments)  # type: ignore[operator]  # one of those above
        except OSError:
            pass  # the vault is gone
        except BaseException as error:  # noqa: BLE001 - told by the status
            sys.stderr.write(f"{error!r}\n")
            status = 1
        os._exit(status)
    return pid


def _one_kill(
    place: Storage, state: Path, chance: random.Random, names: list[str], acknowledged: int
) -> None:
    with suppress(_KilledError), serve(place, inline_bytes=INLINE, state=state) as vault:
        children = [
            _child(_move_about, vault.path, random.Random(chance.random()), names) for _ in range(3)
        ]
        children.append(_child(_write_on, vault.path, "log", acknowledged))
        time.sleep(chance.uniform(0.01, 0.4))
        os.kill(vault.pid, signal.SIGKILL)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        raise _KilledError


class _KilledError(Exception):
    """The vault was killed, as planned."""


def _check(place: Storage, items: dict[str, dict[str, bytes]], acknowledged: bytes) -> None:
    for name, notes in items.items():
        tops = [b for b in BRANCHES if os.path.lexists(place.branch(b) / name)]
        assert len(tops) == 1, f"{name} is in {tops}"
        top = place.branch(tops[0]) / name
        for note, content in notes.items():
            assert Path(f"{top}{note}").read_bytes() == content, f"{name}{note} is not what it was"
        found = sum(len(files) for _, _, files in os.walk(top)) if "" not in notes else 1
        assert found == len(notes)
    (log,) = [place.branch(b) / "log" for b in BRANCHES if (place.branch(b) / "log").exists()]
    lines = log.read_bytes().split()
    numbers = [int(line) for line in lines if len(line) == 7]
    assert numbers[: len(lines) - 1] == list(range(len(lines) - 1)), "a line is missing"
    if acknowledged:
        assert len(numbers) > int(acknowledged), "what fsync had acknowledged is lost"


def _left_over(place: Storage) -> list[str]:
    prefix = os.fsdecode(RESERVED_PREFIX)
    return [
        name
        for branch in BRANCHES
        for _, folders, files in os.walk(place.branch(branch))
        for name in (*folders, *files)
        if name.startswith(prefix) or ".exchanged-" in name
    ]


def _settle(place: Storage, state: Path) -> None:
    """Start the vault once more, and let it finish what it had accepted."""
    with serve(place, inline_bytes=INLINE, state=state) as vault:
        assert isinstance(vault, Vault)
        deadline = time.monotonic() + PATIENCE
        while _left_over(place) or _live(state):
            assert time.monotonic() < deadline, f"left over: {_left_over(place)}"
            time.sleep(0.01)


def _live(state: Path) -> bool:
    """Whether the journal still has something to do: of each move the last line counts."""
    last: dict[str, str] = {}
    for line in (state / os.fsdecode(NAME)).read_text().splitlines()[1:]:
        move_id = line.partition('"id":"')[2].partition('"')[0]
        last[move_id] = line.partition('"state":"')[2].partition('"')[0]
    return any(one in ("accepted", "staging", "committing", "retiring") for one in last.values())


def test_kills(
    place: Storage,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = LONG_KILLS if request.config.getoption("--long") else KILLS
    kills = request.config.getoption("--kills") or usual
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    state = tmp_path / "state"
    state.mkdir()
    items = _make(place)
    (place.branch("alpha") / "log").write_bytes(b"")
    acknowledged = os.open(tmp_path / "acknowledged", os.O_RDWR | os.O_CREAT)
    cut_off = 0
    for kill in range(kills):
        _one_kill(place, state, chance, [*items, "log"], acknowledged)
        cut_off += _live(state)
        _settle(place, state)
        try:
            _check(place, items, os.pread(acknowledged, 7, 0))
        except AssertionError as error:
            raise AssertionError(f"after kill {kill} of seed {seed}: {error}") from error
    os.close(acknowledged)
    with capsys.disabled():
        sys.stdout.write(f"{kills} kills, {cut_off} of them in the middle of a move ")
    assert cut_off > kills / 4, "hardly a move was cut off"
