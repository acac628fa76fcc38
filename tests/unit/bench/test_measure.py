from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.contenders import Contender
from bench.failure import Failure
from bench.figures import Cell
from bench.ground import Ground, Sizes
from bench.measure import Measurement
from bench.rows import Outcome, Place, Row, Seen

FOREVER = float("inf")


@pytest.fixture
def places(tmp_path: Path) -> list[Place]:
    ground = Ground(tmp_path, Sizes.scaled(0))
    driver = Path("/bin/false")
    return [Place(Contender(name, tmp_path), ground, driver) for name in ("a", "b", "c")]


def measured(row: Row, places: list[Place], rounds: int = 3) -> dict[str, Cell]:
    measurement = Measurement([row], places, lambda _: None)
    measurement.run(rounds, warm_up=True, deadline=FOREVER)
    return measurement.results[row.name]


def works(place: Place) -> Outcome:
    return Outcome(1.5, Seen(3))


def test_a_sample_for_each_round_but_the_warm_up(places: list[Place]) -> None:
    cells = measured(Row("row", "", works, lambda _: Seen(3)), places)
    assert {who: cell.seconds for who, cell in cells.items()} == {
        who: [1.5, 1.5, 1.5] for who in "abc"
    }


def test_a_wrong_result_is_a_failure(places: list[Place]) -> None:
    def truth(place: Place) -> Seen:
        return Seen(3) if place.contender.name == "a" else Seen(3, 1)

    cells = measured(Row("row", "", works, truth), places)
    assert not cells["a"].failure
    assert "wrong result" in cells["b"].failure
    assert cells["b"].seconds == []


def test_who_failed_is_not_asked_again(places: list[Place]) -> None:
    asked: list[str] = []

    def work(place: Place) -> Outcome:
        asked.append(place.contender.name)
        if place.contender.name == "b":
            raise Failure("it broke")
        return works(place)

    cells = measured(Row("row", "", work, lambda _: Seen(3)), places)
    assert cells["b"].failure == "it broke"
    assert asked.count("b") == 1
    assert asked.count("a") == 4


def test_another_one_is_first_in_each_round(places: list[Place]) -> None:
    asked: list[str] = []

    def work(place: Place) -> Outcome:
        asked.append(place.contender.name)
        return works(place)

    measured(Row("row", "", work, lambda _: Seen(3)), places)
    warm_up, *rounds = [asked[index : index + 3] for index in range(0, 12, 3)]
    assert sorted(warm_up) == ["a", "b", "c"]
    assert {first for first, *_ in rounds} == {"a", "b", "c"}


def test_what_is_timed_later_is_prepared_once_and_then_left_alone(places: list[Place]) -> None:
    did: list[str] = []
    when: dict[str, float] = {}

    def prepare(place: Place) -> None:
        did.append(f"prepare {place.contender.name}")
        when[place.contender.name] = time.monotonic()

    def work(place: Place) -> Outcome:
        did.append(f"work {place.contender.name}")
        assert time.monotonic() - when[place.contender.name] >= 0.2
        return works(place)

    row = Row("row", "", work, lambda _: Seen(3), prepare=prepare, later=0.2)
    measured(row, places, rounds=1)
    for round_ in (did[:6], did[6:]):  # nobody waits for the others' pauses
        assert [step.split()[0] for step in round_] == ["prepare"] * 3 + ["work"] * 3
        assert sorted(round_[:3]) == [f"prepare {who}" for who in "abc"]


def test_no_round_is_begun_that_would_end_too_late(places: list[Place]) -> None:
    row = Row("row", "", works, lambda _: Seen(3))
    measurement = Measurement([row], places, lambda _: None)
    assert measurement.run(100, warm_up=False, deadline=time.monotonic()) == 1


def test_what_is_not_installed_is_said(places: list[Place]) -> None:
    row = Row("row", "", works, lambda _: Seen(3), needs="no-such-program")
    cells = measured(row, places)
    assert cells["a"].failure == "no-such-program is not installed"


def test_a_command_that_fails_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="No such file"):
        Contender("native", tmp_path).run(["cat", str(tmp_path / "absent")], 10)


def test_a_command_that_hangs_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"sleep did not end within 0 s"):
        Contender("native", tmp_path).run(["sleep", "60"], 0.1)
