"""The parts of first-launch that decide. The whole of it is in tests/mount/test_first_launch.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from session_agent.desktop.changes import Change
from session_agent.errors import AgentError
from session_agent.lifecycle import status, writers
from session_agent.lifecycle.control import StatusDocument
from session_agent.lifecycle.first_launch import Deadline, _differs
from session_agent.lifecycle.report import Report, StepReport, StepState
from session_agent.model import Mode, Mount, MountKind, MountState, Session, SessionUser

USER = SessionUser("me", 0, 0, (), "/home/me")
OK, DEGRADED, FAILED = StepState.OK, StepState.DEGRADED, StepState.FAILED


def mount(name: str, state: MountState = MountState.ALIVE, mode: Mode = Mode.RW) -> Mount:
    return Mount(name, f"/vault/{name}", "s", "ext4", MountKind.LOCAL, mode, state)


def session(*mounts: Mount, root: str = "/root-branch", vault: str = "/vault") -> Session:
    return Session(USER, vault, root, "/state", mounts, ("a warning",))


def document(*mounts: Mount) -> StatusDocument:
    described = session(*mounts)
    states = {mount.name: mount.state for mount in mounts}
    return status.of_running(described, states, (), described.warnings)


class TestStatusDocument:
    """What the agent says of itself."""

    def test_its_shape(self) -> None:
        told = document(mount("a"), mount("b", mode=Mode.RO)).as_json()
        assert list(told) == ["state", "vault", "pid", "branches", "moves", "warnings", "foreign"]
        assert told["state"] == "running"
        assert list(told["branches"]) == [
            {"name": "a", "path": "/vault/a", "mode": "rw", "state": "alive"},
            {"name": "b", "path": "/vault/b", "mode": "ro", "state": "alive"},
        ]
        assert (told["moves"], told["warnings"]) == ((), ("a warning",))

    @pytest.mark.parametrize("state", [MountState.DEAD, MountState.HUNG])
    def test_a_branch_that_does_not_answer_degrades_it(self, state: MountState) -> None:
        assert document(mount("a", state)).state == "degraded"

    def test_a_branch_that_could_not_be_opened_is_dead(self) -> None:
        told = status.of_running(session(mount("a")), {}, (), ())
        assert told.branches[0].state is MountState.DEAD

    def test_names_that_are_no_text(self) -> None:
        told = document(mount("caf\udce9"))
        assert told.branches[0].name == "caf\\xe9"


class TestWhetherTheAgentServesSomethingElse:
    """Only then it is started anew."""

    def test_the_same(self) -> None:
        assert not _differs(session(mount("a")), document(mount("a")))

    @pytest.mark.parametrize(
        "now",
        [
            session(),
            session(mount("a"), mount("b")),
            session(mount("b")),
            session(mount("a", mode=Mode.RO)),
            session(mount("a"), root="/other"),
            session(mount("a"), vault="/other"),
        ],
    )
    def test_another(self, now: Session) -> None:
        assert _differs(now, document(mount("a")))

    def test_one_that_came_back(self) -> None:
        assert _differs(session(mount("a")), document(mount("a", MountState.DEAD)))

    def test_one_that_died_is_no_reason(self) -> None:
        assert not _differs(session(mount("a", MountState.DEAD)), document(mount("a")))


def test_the_worst_step_is_the_reports_state() -> None:
    def state(*states: StepState) -> StepState:
        steps = tuple(StepReport("s", s, False, "") for s in states)
        return Report("/vault", steps, (), 0.0).state

    assert state() is OK
    assert state(OK, DEGRADED, OK) is DEGRADED
    assert state(FAILED, DEGRADED) is FAILED
    assert [s.exit_code for s in StepState] == [0, 2, 1]


def test_a_deadline() -> None:
    deadline = Deadline(5.0)
    assert 4.5 < deadline.remaining() <= 5.0
    assert 1.5 < deadline.remaining(keep=3.0) <= 2.0
    assert deadline.remaining(at_most=1.0) == 1.0
    assert deadline.remaining(keep=100) == 0.1


class TestWriters:
    """Each in a process of its own: what one does is no other's business."""

    def run(self, limit: float = 5.0, **named: Any) -> dict[str, StepReport]:
        reports = writers._run(named, USER, limit)
        return {report.name: report for report in reports}

    def test_outcomes(self, tmp_path: Path) -> None:
        def denied() -> list[Change]:
            raise PermissionError(13, "Permission denied", "/x")

        def refused() -> list[Change]:
            raise AgentError("No.", "Ask.")

        reports = self.run(
            good=lambda: [Change("good", str(tmp_path), True, "3 lines")],
            partly=lambda: [Change("partly", "/p", True, "1 line", "The rest is odd.")],
            denied=denied,
            refused=refused,
        )
        assert reports["good"] == StepReport("good", OK, True, "3 lines", "", str(tmp_path))
        assert (reports["partly"].state, reports["partly"].detail) == (DEGRADED, "The rest is odd.")
        assert "Permission denied" in reports["denied"].detail
        assert (reports["refused"].detail, reports["refused"].hint) == ("No.", "Ask.")

    def test_one_that_hangs_costs_only_itself(self) -> None:
        def hang() -> list[Change]:
            time.sleep(60)
            return []

        begun = time.monotonic()
        reports = self.run(0.5, good=lambda: [Change("good", "/g", False)], hangs=hang)
        assert time.monotonic() - begun < 2
        assert reports["good"].state is OK
        assert reports["hangs"].state is DEGRADED


class TestWhatLeadsWhereWithoutTheOverlay:
    """Then a branch is where it is mounted."""

    def test_it(self) -> None:
        away = Mount("drive", "/mnt/drive", "s", "ext4", MountKind.LOCAL, Mode.RW, MountState.ALIVE)
        described = session(mount("a"), away)
        assert [b.name for b in writers._reachable(described, overlay=True)] == ["a", "drive"]
        assert [b.name for b in writers._reachable(described, overlay=False)] == ["a"]
