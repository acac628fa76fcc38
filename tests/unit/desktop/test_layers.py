"""What becomes of a user's values, whatever administrator, mounts and kills do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from session_agent.desktop.layers import settle
from session_agent.desktop.merge import Json, Remembered, intend, same

Values = dict[str, Json]

KEYS = st.sampled_from(["/a", "/b", "/b/c"])
# "x/…" leads to the folder x.
VALUES: st.SearchStrategy[Json] = st.sampled_from(["x/1", "x/2", "y/1", "plain", 1])
MAPS = st.dictionaries(KEYS, VALUES).filter(lambda m: not {"/b", "/b/c"} <= m.keys())
AWAY = st.frozensets(st.sampled_from("xy"))
USERS = st.tuples(st.sampled_from(["/a", "/b"]), VALUES)
RUNS = st.tuples(MAPS, AWAY, st.sampled_from(["", "before", "after"]))


def run(
    file: Values, wanted: Values, away: frozenset[str], known: Remembered
) -> tuple[Values, Remembered]:
    def stand_in(key: str, value: Json) -> Json:
        return "_inbox" if isinstance(value, str) and value[0] in away else None

    return settle(file, lambda *_: wanted, stand_in, known, fresh=False)


@given(MAPS, st.lists(USERS | RUNS, max_size=8), MAPS)
def test_no_value_of_the_users_is_lost(
    first: Values, story: list[tuple[str, Json] | tuple[Values, frozenset[str], str]], last: Values
) -> None:
    file, known = dict(first), Remembered()
    users = dict(first)
    for event in story:
        if len(event) == 2:
            key, value = event
            below = [other for other in file if other.startswith(key + "/")]
            if same(file.get(key), value) or known.owns(key, value) or below:
                continue
            file[key] = users[key] = value
            continue
        wanted, away, kill = event
        after, memory = run(file, wanted, away, known)
        if kill:
            memory = intend(known, file, memory)
            after = file if kill == "before" else after
        file, known = after, memory
        for key, value in users.items():
            shown = file.get(key)
            assert same(shown, value) or same(known.parked.get(key), value)
    for _ in range(2):
        file, known = run(file, last, frozenset(), known)
    assert {key: file[key] for key in users} == users
    assert known.parked == {}


@given(MAPS, MAPS, AWAY, MAPS, AWAY)
def test_a_second_run_changes_nothing(
    file: Values, before: Values, away_before: frozenset[str], wanted: Values, away: frozenset[str]
) -> None:
    once, known = run(file, before, away_before, Remembered())
    once, known = run(once, wanted, away, known)
    again, known_again = run(once, wanted, away, known)
    assert again == once
    assert list(again) == list(once)
    assert known_again == known


def test_one_that_was_pending_when_the_run_was_killed_is_no_wish() -> None:
    file: Values = {"/a": "x/1"}
    after, memory = run(file, {}, frozenset("x"), Remembered())
    assert after == {"/a": "_inbox"}
    killed = Remembered(pending=memory.written, parked=memory.parked)
    for found in (file, after):
        assert run(found, {}, frozenset("x"), killed) == (after, memory)
