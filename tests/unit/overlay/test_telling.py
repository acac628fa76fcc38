"""What is gathered of a branch, where there is too much. See tests/mount/test_foreign_events.py, too."""

from __future__ import annotations

import os

import pytest

from session_agent.fsutil.credentials import AGENT
from session_agent.overlay import names
from session_agent.overlay.changes import Forgotten, Pending
from session_agent.overlay.nodes import FolderNode
from tests.unit.overlay.test_looking import Loop, Place, clock, run

__all__ = ["clock", "run"]  # fixtures


async def folder(place: Place, name: str) -> FolderNode:
    (place.behind / name).mkdir(exist_ok=True)
    node, _ = await names.lookup(place.vault, place.root.id, os.fsencode(name), AGENT)
    assert isinstance(node, FolderNode)
    return node


def test_a_folder_of_which_an_event_was_dropped(run: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is compared nothing more is gathered of it, even if there is room again.

    Else programs would be told that a new file was changed, and never that it is there.
    """
    monkeypatch.setattr(Pending, "LIMIT", 1)

    async def test(place: Place) -> None:
        first, second = await folder(place, "first"), await folder(place, "second")
        telling = place.telling
        assert not telling.is_full(first, 0)
        telling.pending.made(first, b"name")
        assert telling.is_full(second, 0)
        assert telling.is_full(second, 0)
        telling.pending.take(1)
        assert telling.is_full(second, 0)
        assert not telling.is_full(first, 0)
        assert (telling.counts.dropped, telling.counts.rescanned) == (3, 1)
        (place.behind / "second/name").touch()
        await telling._compare(telling._take_lost())
        assert place.told() == ["made name"]
        assert not telling.is_full(second, 0)

    run(test)


def test_what_was_forgotten_is_bounded(run: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole folders are given up, the first ones first."""
    monkeypatch.setattr(Forgotten, "LIMIT", 3)

    async def test(place: Place) -> None:
        folders = [await folder(place, f"{number}") for number in range(3)]
        forgotten = Forgotten()
        nodes = []
        for number, where in enumerate(folders):
            for name in ("a", "b"):
                (place.behind / f"{number}/{name}").touch()
                node, _ = await names.lookup(place.vault, where.id, name.encode(), AGENT)
                nodes.append(node)
        for node in nodes[:3]:
            forgotten.add(node)
            forgotten.add(node)  # counts once
        assert [sorted(forgotten.of(one)) for one in folders] == [[b"a", b"b"], [b"a"], []]
        assert forgotten.of(folders[0])[b"a"].key == nodes[0].key
        forgotten.discard(folders[0], b"a")
        forgotten.discard(folders[0], b"a")
        forgotten.add(nodes[3])
        assert [sorted(forgotten.of(one)) for one in folders] == [[b"b"], [b"a", b"b"], []]
        forgotten.add(nodes[4])
        assert [sorted(forgotten.of(one)) for one in folders] == [[], [b"a", b"b"], [b"a"]]
        forgotten.leave(folders[1])
        forgotten.add(nodes[0])
        forgotten.add(nodes[5])
        assert [sorted(forgotten.of(one)) for one in folders] == [[b"a"], [], [b"a", b"b"]]

    run(test)
