from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from session_agent.desktop import rooms
from session_agent.desktop.memory import Memory
from session_agent.model import Room
from tests.support.branches import branches

NAMES = st.lists(
    st.text(st.sampled_from("ab-/ ü.P"), min_size=1, max_size=6).filter(
        lambda name: all(part not in ("", ".", "..") for part in name.split("/"))
    ),
    unique=True,
    max_size=8,
)


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("engineering", "folder-engineering"),
        ("wiki/nested", "folder-wiki-nested"),
        ("Büro", "folder-Büro"),
        ("a b", "folder-a-b-c8687a08"),
        ("personal", "user-ann@corp.org-personal"),
        ("ann@corp.org", "user-ann@corp.org-personal"),
        ("users/ann@corp.org/notes/x", "user-ann@corp.org-personal-notes-x"),
        ("personal/notes", "user-ann@corp.org-personal-notes"),
        ("impersonal", "folder-impersonal"),
    ],
)
def test_room_names(name: str, room: str) -> None:
    assert rooms.room_name(name, "ann@corp.org") == room


def test_personal_folders_of_two_people_never_share_a_room() -> None:
    assert rooms.room_name("personal", "ann") != rooms.room_name("personal", "bob")
    assert rooms.room_name("personal", "a b") != rooms.room_name("personal", "a-b")
    found = branches("personal", "wiki")
    assert [room.room for room in rooms.rooms("/vault", found, "")] == ["folder-wiki"]


def test_rooms_are_ordered_and_read_only_as_their_mounts() -> None:
    found = rooms.rooms("/vault", branches("wiki:ro", "eng", "\udcff"), "ann")
    assert found == (
        Room("/vault/eng", "folder-eng", False),
        Room("/vault/wiki", "folder-wiki", True),
    )


def test_one_of_two_that_would_share_a_room_is_told_apart() -> None:
    found = rooms.rooms("/vault", branches("a/b", "a-b"), "ann")
    assert [room.room for room in found] == ["folder-a-b", "folder-a-b-c14cddc0"]


@given(NAMES)
def test_every_branch_has_a_room_of_its_own_whatever_the_order(names: list[str]) -> None:
    found = rooms.rooms("/vault", branches(*names), "P")
    assert len({room.room for room in found}) == len(names)
    assert rooms.rooms("/vault", branches(*reversed(names)), "P") == found
    assert all(not set(room.room) & set("/ ") for room in found)


def test_the_file_has_the_documented_form(tmp_path: Path) -> None:
    file = tmp_path / "config" / "rooms.yaml"
    found = rooms.rooms("/vault", branches("engineering", "yes: no:ro"), "ann")
    memory = Memory(str(tmp_path / "state"))
    assert [rooms.apply(str(file), found, memory).changed for _ in range(2)] == [True, False]
    assert file.read_text().splitlines()[1:] == [
        "sync:",
        "  folders:",
        "  - {path: /vault/engineering, room: folder-engineering, readOnly: false}",
        "  - {path: '/vault/yes: no', room: folder-yes--no-f7ce9abb, readOnly: true}",
    ]


def test_other_keys_are_kept_and_an_equal_file_keeps_its_comments() -> None:
    found = rooms.rooms("/vault", branches("a"), "ann")
    theirs = b"# mine\nuser: ann\nsync: {url: 'ws://x:1234', folders: []}\nlast: 1\n"
    data = rooms.render(theirs, found)
    assert yaml.safe_load(data) == {
        "user": "ann",
        "sync": {
            "url": "ws://x:1234",
            "folders": [{"path": "/vault/a", "room": "folder-a", "readOnly": False}],
        },
        "last": 1,
    }
    commented = b"# mine\n" + data
    assert rooms.render(commented, found) == commented


@given(NAMES)
def test_what_is_written_reads_back(names: list[str]) -> None:
    found = rooms.rooms("/vault", branches(*names), "ann")
    data = rooms.render(b"", found)
    assert yaml.safe_load(data)["sync"]["folders"] == [
        {"path": room.path, "room": room.room, "readOnly": room.read_only} for room in found
    ]
    assert rooms.render(data, found) == data


@pytest.mark.parametrize("broken", [b"{", b"- 1", b"sync: [1]", b"\xff", b"[" * 10_000, b"a: !x 1"])
def test_a_broken_file_is_kept_reported_and_left_alone(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "rooms.yaml"
    file.write_bytes(broken)
    change = rooms.apply(str(file), (), Memory(str(tmp_path / "state")))
    assert "rooms.yaml.broken-" in change.problem
    assert file.read_bytes() == broken
    assert [copy.read_bytes() for copy in tmp_path.glob("*.broken-*")] == [broken]
