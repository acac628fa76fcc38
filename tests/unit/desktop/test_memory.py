from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_agent.desktop import memory as memory_module
from session_agent.desktop.memory import FILE_NAME, Content, Memory, decode, encode
from session_agent.desktop.merge import Remembered
from session_agent.errors import TimeLimitError

# Paths may hold any byte, as a lone surrogate.
TEXT = st.binary(max_size=8).map(os.fsdecode)
MAPS = st.dictionaries(TEXT, TEXT, max_size=3)


NAMES = st.frozensets(TEXT, max_size=3)


@given(st.dictionaries(TEXT, st.builds(Remembered, MAPS, MAPS, NAMES, MAPS)), NAMES)
def test_what_is_encoded_is_decoded(files: dict[str, Remembered], seen: frozenset[str]) -> None:
    told = {path: entry for path, entry in files.items() if entry != Remembered()}
    assert decode(encode(Content(files, seen))) == Content(told, seen)


def test_a_memory_of_an_older_agent_is_understood() -> None:
    known = {"written": {"a": 1}, "pending": {}, "left": ["b"]}
    content = decode(json.dumps({"files": {"/x": known}}).encode())
    assert content == Content({"/x": Remembered({"a": 1}, left=frozenset("b"))})


def test_notes_last(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with Memory(str(state)).locked() as notes:
        notes.note("/a", Remembered({"k": "v"}))
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / FILE_NAME).stat().st_mode & 0o777 == 0o600
    with Memory(str(state)).locked() as notes:
        assert notes.about("/a") == Remembered({"k": "v"})
        assert notes.about("/b") == Remembered()
        assert notes.problem == ""


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path))
    with memory.locked() as notes:
        notes.note("/a", Remembered())
    assert not (tmp_path / FILE_NAME).exists()
    with memory.locked() as notes:
        notes.note("/a", Remembered({"k": "v"}))
    before = (tmp_path / FILE_NAME).stat().st_ino
    with memory.locked() as notes:
        notes.note("/a", Remembered({"k": "v"}))
    assert (tmp_path / FILE_NAME).stat().st_ino == before


@pytest.mark.parametrize(
    "broken", [b"{", b"[]", b'{"files": {"/a": {"written": 3}}}', b"\xff", b"[" * 100_000]
)
def test_a_broken_memory_is_reported_kept_aside_and_empty(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(broken)
    memory = Memory(str(tmp_path))
    with memory.locked() as notes:
        assert notes.about("/a") == Remembered()
        assert FILE_NAME in notes.problem
        notes.note("/a", Remembered({"k": "v"}))
    assert [p.read_bytes() for p in tmp_path.glob("*.broken-*")] == [broken]
    with memory.locked() as notes:
        assert (notes.about("/a"), notes.problem) == (Remembered({"k": "v"}), "")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [FILE_NAME, memory_module.LOCK_NAME])
def test_a_fifo_in_a_files_place_does_not_stop_it(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with Memory(str(tmp_path)).locked() as notes:
        notes.note("/a", Remembered({"k": "v"}))
        assert (notes.problem == "") == (name == memory_module.LOCK_NAME)


def test_a_state_folder_that_cannot_be_is_a_problem_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with Memory(str(tmp_path / "file" / "state")).locked() as notes:
        notes.note("/a", Remembered({"k": "v"}))
        assert notes.about("/a") == Remembered({"k": "v"})
    assert "Not a directory" in notes.problem


def test_a_second_agent_waits_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "LOCK_SECONDS", 0.2)
    memory = Memory(str(tmp_path))
    with memory.locked():
        started = time.monotonic()
        with pytest.raises(TimeLimitError, match="Another agent"), memory.locked():
            pass
        assert time.monotonic() - started >= 0.2
    with memory.locked():
        pass
