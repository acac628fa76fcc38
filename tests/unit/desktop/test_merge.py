from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from session_agent.desktop.merge import Json, Remembered, intend, merge, same

KEYS = st.sampled_from("abcd")
VALUES: st.SearchStrategy[Json] = st.sampled_from([1, True, "x", "y", None])
MAPS = st.dictionaries(KEYS, VALUES)


def test_json_values_differ_by_type() -> None:
    assert not same(True, 1)
    assert same({"a": 1, "b": [2]}, {"b": [2], "a": 1})


def test_what_was_never_written_and_is_there_is_the_users() -> None:
    merged = merge({"a": "theirs"}, {"a": "ours"}, Remembered(), fresh=True)
    assert (dict(merged.put), merged.remembered) == ({}, Remembered())


def test_what_was_written_moves_along() -> None:
    merged = merge({"a": "old"}, {"a": "new"}, Remembered({"a": "old"}), fresh=False)
    assert (dict(merged.put), dict(merged.remembered.written)) == ({"a": "new"}, {"a": "new"})


def test_what_the_user_changed_or_removed_stays_so_for_good() -> None:
    wanted: dict[str, Json] = {"a": "ours", "b": "ours", "c": "ours"}
    merged = merge({"a": "theirs", "c": "ours"}, wanted, Remembered(wanted), fresh=False)
    assert dict(merged.put) == {}
    assert merged.remembered.left == {"a", "b"}
    again = merge({"c": "ours"}, wanted, merged.remembered, fresh=False)
    assert (dict(again.put), again.remembered) == ({}, merged.remembered)


def test_a_fresh_file_gets_everything() -> None:
    known = Remembered({"a": "ours"}, left=frozenset("b"))
    merged = merge({}, {"a": "ours", "b": "ours"}, known, fresh=True)
    assert set(merged.put) == {"a", "b"}


def test_only_what_was_written_is_removed() -> None:
    known = Remembered({"a": "ours", "b": "ours"}, {"c": "ours"})
    merged = merge({"a": "ours", "b": "theirs", "c": "ours", "d": "x"}, {}, known, fresh=False)
    assert merged.remove == {"a", "c"}


def test_after_a_kill_what_is_absent_was_not_removed_by_the_user() -> None:
    known = Remembered({"a": "ours"}, pending={"a": "ours", "b": "ours"})
    merged = merge({"b": "ours"}, {"a": "ours", "b": "ours"}, known, fresh=False)
    assert (dict(merged.put), set(merged.remembered.written)) == ({"a": "ours"}, {"a", "b"})


@given(current=MAPS, wanted=MAPS, written=MAPS, pending=MAPS, left=st.frozensets(KEYS))
def test_the_users_values_survive_and_a_second_run_does_nothing(
    current: dict[str, Json],
    wanted: dict[str, Json],
    written: dict[str, Json],
    pending: dict[str, Json],
    left: frozenset[str],
) -> None:
    known = Remembered(written, pending, left)
    first = merge(current, wanted, known, fresh=not known.seen_in(current))
    for key in {*first.put, *first.remove} & current.keys():
        assert known.owns(key, current[key])
    after = {key: v for key, v in {**current, **first.put}.items() if key not in first.remove}
    remembered = first.remembered
    second = merge(after, wanted, remembered, fresh=not remembered.seen_in(after))
    # With no trace left of what was written, the file counts as fresh: all is written again, once.
    if remembered.seen_in(after) or not remembered.left:
        assert (dict(second.put), set(second.remove)) == ({}, set())
        assert second.remembered == remembered


def test_runs_that_are_killed_one_after_the_other_keep_what_was_written() -> None:
    known = intend(Remembered(), {}, Remembered({"a": "first"}))
    known = intend(known, {"a": "first"}, Remembered({"a": "second"}))
    for found in ("first", "second"):
        merged = merge({"a": found}, {"a": "third"}, known, fresh=False)
        assert dict(merged.put) == {"a": "third"}


def test_what_a_killed_run_removed_was_not_removed_by_the_user() -> None:
    known = intend(Remembered({"a": "ours"}), {"a": "ours"}, Remembered())
    assert merge({"a": "ours"}, {}, known, fresh=False).remove == {"a"}
    assert dict(merge({}, {"a": "ours"}, known, fresh=False).put) == {"a": "ours"}
    known = intend(known, {}, Remembered({"b": "ours"}))
    assert dict(merge({}, {"a": "ours"}, known, fresh=False).put) == {"a": "ours"}
