from __future__ import annotations

import itertools

from session_agent.mounts.mountinfo import MountEntry, parse
from session_agent.mounts.tree import MountTree


def _mounts(*lines: str) -> list[MountEntry]:
    """Each line is "id parent path [fstype]"."""
    entries = []
    for line in lines:
        mount_id, parent, path, fstype = (*line.split(), "ext4")[:4]
        text = f"{mount_id} {parent} 0:{mount_id} / {path} rw - {fstype} none rw"
        entries += parse(text.encode())
    return entries


def _visible(*lines: str) -> list[int]:
    return [entry.mount_id for entry in MountTree(_mounts(*lines)).visible()]


def _at(path: str, *lines: str) -> int | None:
    entry = MountTree(_mounts(*lines)).at(path)
    return entry.mount_id if entry else None


def test_of_a_stack_the_top_counts() -> None:
    assert _visible("1 0 /", "2 1 /a", "3 2 /a", "4 3 /a") == [1, 4]


def test_the_top_is_told_by_the_parent_and_not_by_the_order() -> None:
    stack = ("1 0 /", "2 1 /a", "3 2 /a", "4 3 /a")
    assert {tuple(sorted(_visible(*order))) for order in itertools.permutations(stack)} == {(1, 4)}


def test_of_two_on_one_parent_the_later_counts() -> None:
    assert _visible("1 0 /", "2 1 /a", "3 1 /a") == [1, 3]


def test_a_later_mount_above_hides_what_is_below() -> None:
    assert _visible("1 0 /", "2 1 /a/b", "3 1 /a") == [1, 3]
    assert _visible("1 0 /", "2 1 /a/b", "3 1 /a", "4 3 /a/b/c") == [1, 3, 4]
    assert _visible("1 0 /", "2 1 /ab", "3 1 /a") == [1, 2, 3]


def test_our_own_overlay_hides_nothing() -> None:
    overlay = ("1 0 /", "2 1 /vault/a", "3 1 /vault fuse.session-agent")
    assert _visible(*overlay) == [1, 2]
    assert _visible(*overlay, "4 3 /vault/b") == [1, 2, 4]
    assert _visible(*overlay, "5 3 /vault fuse.session-agent", "6 5 /vault/b") == [1, 2, 6]


def test_the_overlay_on_a_mount_at_the_vault() -> None:
    lines = ("1 0 /", "2 1 /vault", "3 2 /vault/a", "4 2 /vault fuse.session-agent", "5 4 /vault/b")
    assert _visible(*lines) == [1, 2, 3, 5]


def test_the_mount_that_a_path_lies_in() -> None:
    lines = ("1 0 /", "2 1 /a", "3 2 /a/b/c", "4 1 /vault fuse.session-agent")
    assert _at("/", *lines) == 1
    assert _at("/ab", *lines) == 1
    assert _at("/a", *lines) == 2
    assert _at("/a/b", *lines) == 2
    assert _at("/a/b/c/d", *lines) == 3
    assert _at("/vault/x", *lines) == 1
    assert _at("/x") is None


def test_lists_that_make_no_sense_end() -> None:
    assert _visible("5 1 /", "5 5 /", "6 5 /x", "5 6 /x") == []
    assert _visible("1 2 /a", "2 1 /a") == []
    assert _visible("1 2 /v fuse.session-agent", "2 1 /v fuse.session-agent", "3 1 /v/a") == [3]
