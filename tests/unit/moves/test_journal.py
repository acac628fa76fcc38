"""The journal: what was written is there after a kill, and what cannot be read is kept and told."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_agent.model import SessionUser
from session_agent.moves.journal import NAME, SET_ASIDE, Journal, read
from session_agent.moves.record import End, Identity, Record, State, decode, encode

ME = SessionUser("me", os.geteuid(), os.getegid(), (), "/")
FILE = os.fsdecode(NAME)


def _record(number: int, state: State = State.STAGING) -> Record:
    name = encode(b"note %d" % number)
    return Record(
        id=f"{number:012x}",
        created=1.0,
        source=End("alpha", "", name),
        target=End("beta", "a/b", name),
        source_was=Identity(number, 0o100000, 5, 6),
        state=state,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _read(folder: int) -> tuple[list[Record], list[str]]:
    journal = Journal(folder, ME)
    journal.close()
    return journal.records(), journal.problems


def test_records_are_there_again(folder: int) -> None:
    journal = Journal(folder, ME)
    journal.write(_record(1))
    journal.write(_record(2))
    journal.write(_record(1, State.COMMITTING))
    journal.write(_record(3, State.FAILED))
    journal.write(_record(2, State.DONE))
    journal.close()
    assert _read(folder) == ([_record(1, State.COMMITTING), _record(3, State.FAILED)], [])
    assert [record.id for record in journal.ended()] == [_record(2).id]


def test_a_failed_move_is_shown_until_it_is_acknowledged(folder: int) -> None:
    journal = Journal(folder, ME)
    journal.write(_record(1, State.FAILED))
    journal.write(_record(2))
    assert not journal.acknowledge(_record(2).id)
    assert not journal.acknowledge("nobody's")
    assert journal.acknowledge(_record(1).id)
    journal.close()
    assert _read(folder) == ([_record(2)], [])


def test_a_line_that_was_cut_off(folder: int, tmp_path: Path) -> None:
    """Every length of the last line: the records before it count, and the file is kept as it was."""
    journal = Journal(folder, ME)
    journal.write(_record(1))
    journal.write(_record(2))
    journal.close()
    whole = (tmp_path / FILE).read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for length in range(last + 1, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:length])
        records, problems = _read(folder)
        assert records == [_record(1)]
        (problem,) = problems
        (kept,) = tmp_path.glob(os.fsdecode(SET_ASIDE) + "*")
        assert kept.name in problem
        assert kept.read_bytes() == whole[:length]
        kept.unlink()


@given(st.data())
def test_damage_is_never_taken_for_a_record(data: st.DataObject) -> None:
    import tempfile  # noqa: PLC0415 - a fixture would be shared by all examples

    with tempfile.TemporaryDirectory() as path:
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY)
        try:
            journal = Journal(folder, ME)
            journal.write_all([_record(1), _record(2)])
            journal.close()
            text = bytearray(Path(path, FILE).read_bytes())
            position = data.draw(st.integers(0, len(text) - 1))
            text[position] ^= data.draw(st.integers(1, 255))
            Path(path, FILE).write_bytes(text)
            looked_at = read(folder)
            assert Path(path, FILE).read_bytes() == text
            records, problems = _read(folder)
            assert (looked_at[0], bool(looked_at[1])) == (records, bool(problems))
            assert all(record in (_record(1), _record(2)) for record in records)
            assert problems or len(records) == 2
            assert _read(folder)[0] == records, "the second reading differs"
        finally:
            os.close(folder)


def test_a_newer_version_is_kept_for_who_understands_it(folder: int, tmp_path: Path) -> None:
    text = b"session-agent moves journal 2\n{}\n"
    (tmp_path / FILE).write_bytes(text)
    records, problems = _read(folder)
    assert records == []
    (kept,) = tmp_path.glob(os.fsdecode(SET_ASIDE) + "*")
    assert kept.read_bytes() == text
    assert kept.name in problems[0]
    assert _read(folder)[1] == problems, "it is told every time"


def test_it_is_written_anew_when_little_of_it_counts(folder: int, tmp_path: Path) -> None:
    journal = Journal(folder, ME)
    journal.write(_record(0))
    for number in range(1, 2000):
        journal.write(_record(number), durable=False)
        journal.write(_record(number, State.DONE), durable=False)
    journal.close()
    assert os.stat(tmp_path / FILE).st_size < 300_000
    assert _read(folder) == ([_record(0)], [])
    assert sorted(os.listdir(tmp_path)) == [FILE]


def test_what_a_killed_rewrite_left_is_removed(folder: int, tmp_path: Path) -> None:
    (tmp_path / (FILE + ".new-0a0b0c0d")).write_bytes(b"half")
    assert _read(folder) == ([], [])
    assert os.listdir(tmp_path) == [FILE]


@given(st.binary(min_size=1))
def test_names_of_any_bytes(name: bytes) -> None:
    assert decode(encode(name)) == name
    assert msgspec.json.decode(msgspec.json.encode(encode(name)), type=str) == encode(name)


FORGED = [
    {"id": "../../etc/x"},
    {"id": "0" * 11 + "/"},
    {"id": ""},
    {"source": End("alpha", "", "..")},
    {"source": End("alpha", "a/%2E%2E", "x")},
    {"target": End("alpha", "", "a%2Fb")},
    {"target": End("alpha", "..", "x")},
    {"target": End("alpha", "", "")},
]


@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_a_forged_record_is_a_broken_one(
    folder: int, tmp_path: Path, forged: dict[str, object]
) -> None:
    """Names that lead elsewhere: the agent may be root, and the file is the user's."""
    record = msgspec.structs.replace(_record(1), **forged)
    text = msgspec.json.encode(record)
    line = b"%08x %b\n" % (zlib.crc32(text), text)
    (tmp_path / FILE).write_bytes(b"session-agent moves journal 1\n" + line)
    records, problems = _read(folder)
    assert records == []
    assert len(problems) == 1
