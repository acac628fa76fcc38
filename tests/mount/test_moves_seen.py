"""What others see of moves: never a part, never neither name, never two that differ.

Half of the readers look through the vault, half at the branches' folders behind it. While a rename is
answered the kernel keeps the former out of both folders: of moves done at once only the latter see much.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cases import rename
from tests.support.ends import remove
from tests.support.vault import Storage, Vault, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

READERS = 4
SECONDS = 2.0  # of moving, for each way
WAYS = {"at once": 1 << 30, "in the background": 0}
PAIRS = [("alpha", "gamma"), ("delta", "alpha")]


@pytest.fixture(params=WAYS)
def vault(place: Storage, request: pytest.FixtureRequest) -> Iterator[Vault]:
    with serve(place, inline_bytes=WAYS[request.param]) as served, served.watched():
        yield served


def _content(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * 2000


def _seen(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _watch(ends: list[Path], note: str, expected: bytes, until: float) -> int:
    """Look at both names again and again; answers how often. Runs in a child."""
    looks = 0
    while time.monotonic() < until:
        # The first name again at the end: the file may have come there after the first look.
        looked = [_seen(end / note if note else end) for end in (ends[0], ends[1], ends[0])]
        assert any(looked), "neither name was there"
        for content in looked:
            assert content in (None, expected), f"{len(content or b'')} bytes, and not all right"
        looks += 1
        time.sleep(0.001)  # the vault's server needs a processor, too
    return looks


def _child(ends: list[Path], note: str, expected: bytes, until: float) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if _watch(ends, note, expected, until) > 20 else 2
        except BaseException as error:  # noqa: BLE001 - told by the status
            os.write(2, f"{error!r}\n".encode())
        os._exit(status)
    return pid


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("kind", ["file", "tree"])
def test_readers(vault: Vault, pair: tuple[str, str], kind: str) -> None:
    name = f"{kind} {time.monotonic_ns()}"
    ends = [vault.path / branch / name for branch in pair]
    note, expected = "", _content(1)
    if kind == "file":
        ends[0].write_bytes(expected)
    else:
        note = "folder/note3"
        for folder in ("folder", "other"):
            (ends[0] / folder).mkdir(parents=True)
            for number in range(6):
                (ends[0] / folder / f"note{number}").write_bytes(_content(number))
        expected = _content(3)
    until = time.monotonic() + SECONDS
    behind = [vault.backing(branch) / name for branch in pair]
    readers = [
        _child((ends, behind)[n // 2][:: (-1) ** n], note, expected, until + 0.2)
        for n in range(READERS)
    ]
    moves = 0
    while time.monotonic() < until:
        rename(ends[moves % 2], ends[1 - moves % 2])
        moves += 1
        time.sleep(0.002 * (moves % 7))
    assert [os.waitpid(pid, 0)[1] for pid in readers] == [0] * READERS
    assert moves > 4, "hardly anything was moved"
    place = ends[moves % 2]
    assert _seen(place / note if note else place) == expected
    remove(place)
