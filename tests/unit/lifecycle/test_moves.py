"""Moves as a client asks for them: from an agent's control socket, and from the journal without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from session_agent.desktop.rooms import Terms
from session_agent.errors import ControlError, UserFileError
from session_agent.lifecycle import moves, state
from session_agent.lifecycle.control import StatusDocument
from session_agent.lifecycle.session import Place
from session_agent.model import SessionUser
from session_agent.moves.journal import NAME, Journal
from session_agent.moves.record import Record, State
from tests.support.as_user import NOBODY, home_of
from tests.support.moves import record, status
from tests.support.stub_agent import stub_agent


def place_of(folder: Path, uid: int | None = None) -> Place:
    uid = os.getuid() if uid is None else uid
    user = SessionUser("u", uid, uid, (), str(folder))
    return Place(user, "/vault", str(folder / "state"), "", Terms("", ""))


def write(place: Place, *records: Record) -> Path:
    """A journal with these records; its path."""
    folder = state.create(place.state_dir, place.user)
    journal = Journal(folder, place.user)
    journal.write_all(records)
    journal.close()
    os.close(folder)
    return Path(place.state_dir, os.fsdecode(NAME))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_of(tmp_path)


class TestWithoutAgent:
    def test_nothing_was_ever_moved(self, place: Place) -> None:
        assert moves.listing(place) == moves.Listing(False, (), ())
        assert not Path(place.state_dir).exists()

    def test_what_the_journal_holds(self, place: Place) -> None:
        file = write(place, record(1), record(2, State.FAILED, error=28), record(3, State.DONE))
        before = file.stat()
        listed = moves.listing(place)
        assert [(move.id[-1], move.state) for move in listed.moves] == [
            ("1", State.STAGING),
            ("2", State.FAILED),
        ]
        assert listed.warnings == (
            "No agent runs. `session-agent first-launch` goes on with these moves.",
        )
        assert not listed.live
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def test_what_of_it_cannot_be_read_is_told(self, place: Place) -> None:
        file = write(place, record(1, State.FAILED))
        with open(file, "ab") as journal:
            journal.write(b"00000000 {}\n")
        content = file.read_bytes()
        listed = moves.listing(place)
        assert len(listed.moves) == 1
        assert listed.warnings == (
            "The journal of moves cannot be read as a whole: a broken record.",
        )
        assert file.read_bytes() == content
        assert os.listdir(place.state_dir) == [file.name]

    def test_a_journal_that_is_no_file(self, place: Place) -> None:
        Path(place.state_dir, os.fsdecode(NAME)).mkdir(parents=True)
        with pytest.raises(ControlError, match=r"journal of moves .* cannot be used"):
            moves.listing(place)

    def test_nothing_to_cancel(self, place: Place) -> None:
        write(place, record(1))
        with pytest.raises(ControlError, match="No agent runs"):
            moves.cancel(place, record(1).id)

    def test_acknowledged(self, place: Place) -> None:
        write(place, record(1, State.FAILED), record(2, State.FAILED))
        moves.acknowledge(place, record(1).id)
        assert [move.id for move in moves.listing(place).moves] == [record(2).id]

    @pytest.mark.parametrize("move_id", ["", "nonsense", record(1).id])
    def test_only_failures_are_acknowledged(self, place: Place, move_id: str) -> None:
        write(place, record(1))
        with pytest.raises(ControlError, match="There is no failed move"):
            moves.acknowledge(place, move_id)
        assert [move.id for move in moves.listing(place).moves] == [record(1).id]

    def test_no_state_directory_is_made_for_an_acknowledgement(self, place: Place) -> None:
        with pytest.raises(ControlError, match="There is no failed move"):
            moves.acknowledge(place, "1")
        assert not Path(place.state_dir).exists()

    @pytest.mark.needs_root
    def test_by_root_for_the_user(self) -> None:
        with home_of() as home:
            place = place_of(home, NOBODY)
            file = write(place, record(1, State.FAILED), record(2, State.FAILED))
            moves.acknowledge(place, record(1).id)
            assert len(moves.listing(place).moves) == 1
            assert {path.stat().st_uid for path in (file, *file.parent.iterdir())} == {NOBODY}

    @pytest.mark.needs_root
    def test_root_follows_no_link_for_the_user(self, tmp_path: Path) -> None:
        secret = write(place_of(tmp_path), record(1, State.FAILED))
        with home_of() as home:
            place = place_of(home, NOBODY)
            Path(place.state_dir).mkdir(mode=0o700)
            os.chown(place.state_dir, NOBODY, NOBODY)
            Path(place.state_dir, os.fsdecode(NAME)).symlink_to(secret)
            with pytest.raises(ControlError, match="cannot be used"):
                moves.listing(place)
            with pytest.raises(UserFileError, match="cannot be used"):
                moves.acknowledge(place, record(1).id)
        assert len(moves.listing(place_of(tmp_path)).moves) == 1


class TestWithAgent:
    def test_it_is_asked_and_the_journal_is_not(self, place: Place) -> None:
        write(place, record(7, State.FAILED))
        told = (status(1), status(2, State.FAILED))
        with stub_agent(place, [StatusDocument("running", "/vault", moves=told)]):
            assert moves.listing(place) == moves.Listing(True, told, ())

    def test_more_than_it_can_tell(self, place: Place) -> None:
        document = StatusDocument("running", "/vault", moves=(status(1),), moves_left_out=9)
        with stub_agent(place, [document]):
            assert moves.listing(place).warnings == ("There are 9 more moves than are shown here.",)

    def test_one_that_gives_no_answer(self, place: Place) -> None:
        write(place, record(1))
        with stub_agent(place, None):
            listed = moves.listing(place)
        assert (len(listed.moves), listed.live) == (1, False)
        assert "does not listen" in listed.warnings[0]

    def test_cancelling_waits_for_the_end(self, place: Place) -> None:
        documents = [
            StatusDocument("running", "/vault", moves=(status(1, state),))
            for state in (State.STAGING, State.STAGING, State.CANCELLED)
        ]
        with stub_agent(place, documents) as asked:
            assert moves.cancel(place, status(1).id).state is State.CANCELLED
        assert asked() == [["cancel", status(1).id], ["status", ""], ["status", ""]]

    def test_refused(self, place: Place) -> None:
        with stub_agent(place, ["It is too late."]):
            with pytest.raises(ControlError, match="too late"):
                moves.cancel(place, "1")
            with pytest.raises(ControlError, match="too late"):
                moves.acknowledge(place, "1")

    def test_acknowledged_by_the_agent(self, place: Place) -> None:
        write(place, record(1, State.FAILED))
        with stub_agent(place, [StatusDocument("running", "/vault")]) as asked:
            moves.acknowledge(place, record(1).id)
        assert asked() == [["acknowledge", record(1).id]]
        assert (
            len(moves.listing(place).moves) == 1
        )  # it was for the agent to do, and this one does not

    def test_not_behind_the_back_of_one_that_gives_no_answer(self, place: Place) -> None:
        write(place, record(1, State.FAILED))
        with stub_agent(place, None), pytest.raises(ControlError, match="does not listen"):
            moves.acknowledge(place, record(1).id)
        assert len(moves.listing(place).moves) == 1

    def test_not_while_one_is_just_starting(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It takes the lock after it was asked for."""
        write(place, record(1, State.FAILED))
        monkeypatch.setattr("session_agent.lifecycle.control.consult", lambda *_: None)
        with stub_agent(place, None), pytest.raises(ControlError, match="just starting"):
            moves.acknowledge(place, record(1).id)
        assert len(moves.listing(place).moves) == 1
