"""The journal is the session user's file: whatever it says, recovery ends, and stays in its place."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from session_agent.fsutil.credentials import AGENT
from session_agent.moves.names import grave_name, stage_name
from session_agent.moves.record import End, Identity, Record, State, encode
from session_agent.moves.recover import Found, open_below, recover, redo
from session_agent.moves.strategy import Options
from tests.support.moving import Disks, Recorded

ID = "0123456789ab"
NAMES = [b"note", b"tree", b"inner", b"link", b"missing", stage_name(ID), grave_name(ID)]
NAMES += [stage_name(ID, 1), grave_name(ID, 1), b"..", b".", b"a/b", b"\xff", b"x" * 300]

numbers = st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from([0, 1, 2])
names = st.sampled_from(NAMES).map(encode) | st.text(max_size=5)
ends = st.builds(
    End,
    branch=st.sampled_from(["source", "target", "gone", "..", ""]),
    folder=st.lists(names, max_size=2).map("/".join),
    name=names,
)
identities = st.builds(
    Identity,
    inode=numbers,
    kind=st.sampled_from([0o100000, 0o040000, 0o120000, 0, -1]),
    size=numbers,
    mtime_ns=numbers,
)
records = st.builds(
    Record,
    id=st.just(ID) | st.text(max_size=13),
    created=st.floats(),
    source=ends,
    target=ends,
    source_was=identities,
    target_was=st.none() | identities,
    flags=st.sampled_from([0, 1, 2, 3]) | numbers,
    background=st.booleans(),
    state=st.sampled_from(State),
    strategy=st.text(max_size=5),
    stages=st.lists(numbers, max_size=3).map(tuple),
    boot=st.text(max_size=5),
    losses=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    leftover=st.booleans(),
    error=numbers,
    ended=st.floats(),
)


def _made(base: Path) -> Recorded:
    for name in ("source", "target", "outside"):
        (base / name / "tree/inner").mkdir(parents=True)
        (base / name / "note").write_text(name)
        (base / name / "tree/inner/note").write_text(name)
    (base / "source/link").symlink_to("../outside")
    (base / "target/link").symlink_to(base / "outside")
    return Recorded(Disks(base / "source", base / "target"), base / "state")


@given(st.lists(records, max_size=3))
def test_recovery_ends_and_stays_inside(forged: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        recorded = _made(base)

        def open_folder(end: End) -> int:
            if end.branch not in ("source", "target"):
                raise FileNotFoundError(2, "no such branch")
            top = os.open(base / end.branch, os.O_PATH | os.O_DIRECTORY)
            try:
                return open_below(top, end.steps)
            finally:
                os.close(top)

        recorded.state.mkdir()
        lines = [b"session-agent moves journal 1\n"]
        for record in forged:
            text = msgspec.json.encode(record)
            lines.append(b"%08x %b\n" % (zlib.crc32(text), text))
        (recorded.state / "moves.journal").write_bytes(b"".join(lines))
        with recorded.journal() as journal:
            for found in recover(journal, journal.records(), open_folder, AGENT):
                if found.found is Found.AGAIN:
                    with contextlib.suppress(OSError):
                        redo(journal, found.record, open_folder, AGENT, Options())
        assert (base / "outside/note").read_text() == "outside"
        assert (base / "outside/tree/inner/note").read_text() == "outside"
        assert sorted(os.listdir(base)) == ["outside", "source", "state", "target"]
