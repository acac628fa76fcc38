from __future__ import annotations

from session_agent.desktop.debounce import LONGEST_HOLD_SECONDS, Debounce


def test_what_is_there_at_first_is_no_change() -> None:
    known = Debounce()
    known.see({"a": True, "b": False}, 0)
    assert known.next_time() is None
    assert known.take(100) == {}
    assert (known.told("a"), known.told("b")) == (True, False)


def test_a_change_counts_once_it_has_lasted() -> None:
    known = Debounce()
    known.see({"a": True}, 0)
    known.see({"a": False}, 10)
    assert known.next_time() == 13
    assert known.take(12.9) == {}
    assert known.take(13) == {"a": False}
    assert known.take(14) == {}
    assert not known.told("a")


def test_one_that_is_undone_at_once_is_none() -> None:
    known = Debounce()
    known.see({"a": True}, 0)
    known.see({"a": False}, 10)
    known.see({"a": True}, 12)
    assert known.next_time() is None
    assert known.take(99) == {}


def test_seen_again_it_does_not_start_anew() -> None:
    known = Debounce()
    known.see({"a": True}, 0)
    known.see({"a": False}, 10)
    known.see({"a": False}, 12)
    assert known.take(13) == {"a": False}


def test_going_on_and_off_for_an_hour_is_told_seldom() -> None:
    known = Debounce()
    known.see({"a": True}, 0)
    told = 0
    for second in range(3600):
        known.see({"a": second // 10 % 2 == 0}, second)
        told += len(known.take(second))
    assert told <= 3


def test_a_branch_down_for_long_is_told_even_then() -> None:
    known = Debounce()
    known.see({"a": True}, 0)
    now = 0.0
    for up in (False, True) * 20:
        known.see({"a": up}, now)
        now += LONGEST_HOLD_SECONDS
        assert known.take(now) == {"a": up}


def test_after_a_quiet_time_it_is_told_quickly_again() -> None:
    known = Debounce()
    known.see({"a": True}, 0)
    known.see({"a": False}, 0)
    assert known.take(3)
    known.see({"a": True}, 5000)
    assert known.take(5006) == {"a": True}
    known.see({"a": False}, 5007)
    assert known.take(5013) == {"a": False}


def test_what_is_gone_is_forgotten() -> None:
    known = Debounce()
    known.see({"a": True, "b": True}, 0)
    known.see({"b": False}, 1)
    assert known.take(4) == {"b": False}
    known.see({"a": False, "b": False}, 5)
    assert known.take(100) == {}
