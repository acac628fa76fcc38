"""What is left to be told of events that come one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from session_agent.overlay.changes import Changed, Pending
from session_agent.overlay.nodes import FolderNode

HERE = FolderNode(2, 2, None, b"here", None)  # type: ignore[arg-type]  # the branch is not asked for


class Story:
    """Events, each in a word."""

    def __init__(self) -> None:
        self.pending = Pending()

    def __call__(self, *events: str) -> list[str]:
        for event in events:
            kind, _, name = event.partition(" ")
            self._do(kind, name.encode())
        self.pending.all_gone()
        return [_words(change) for change in self.pending.take(100)]

    def _do(self, kind: str, name: bytes) -> None:
        pending = self.pending
        events: dict[str, Callable[[], None]] = {
            "made": lambda: pending.made(HERE, name),
            "written": lambda: pending.modified(HERE, name, contents=True),
            "closed": lambda: pending.closed(HERE, name),
            "removed": lambda: pending.removed(HERE, name, False),
            "ours": lambda: pending.told(HERE, name),
            "from": lambda: pending.left(len(name), HERE, name, False),
            "unmatched": lambda: pending.arrived(99, HERE, name),
        }
        if kind.startswith("to:"):  # what was renamed, by the length of its name as the cookie
            pending.arrived(int(kind[3:]), HERE, name)
        elif kind.startswith("ours:"):
            pending.gone(int(kind[5:]))
        else:
            events[kind]()


def _words(change: Changed) -> str:
    words = [kind for kind in ("removed", "made", "contents", "closed") if getattr(change, kind)]
    if change.source is not None:
        words.append("from " + change.source[1].decode())
        words += ["which was made"] * change.source_made
    return f"{change.name.decode()}: " + ", ".join(words)


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (["made a", "written a", "closed a"], ["a: made, contents, closed"]),
        (["made a", "removed a"], []),
        (["removed a", "made a"], ["a: removed, made"]),
        (["from a", "to:1 bb"], ["bb: from a"]),
        (["made a", "from a", "to:1 bb"], ["bb: from a, which was made"]),
        (["from a", "to:1 bb", "from bb", "to:2 ccc"], ["ccc: from a", "bb: removed"]),
        (["from a", "to:1 bb", "removed bb"], ["a: removed", "bb: removed"]),
        (["unmatched a"], ["a: removed, made"]),
        (["from a"], ["a: removed"]),
        # What has come to a name that something was renamed from is there, wherever that has gone.
        (["from a", "made a"], ["a: removed, made"]),
        (["from a", "made a", "to:1 bb"], ["a: removed, made", "bb: removed, made"]),
        (["from a", "unmatched a"], ["a: removed, made"]),
        (["from a", "to:1 bb", "made a", "removed bb"], ["a: removed, made", "bb: removed"]),
        (["from a", "to:1 bb", "made a", "ours bb"], ["a: removed, made"]),
        (["from a", "ours:1"], ["a: removed"]),
    ],
    ids=", ".join,
)
def test_what_is_told(events: list[str], told: list[str]) -> None:
    assert Story()(*events) == told


def test_told_otherwise() -> None:
    """Of what is made, modified, removed and renamed."""
    place = (HERE, b"a")

    def otherwise(change: Changed) -> list[str]:
        return [_words(one) for one in change.otherwise()]

    assert otherwise(Changed(*place, made=True, removed=True, contents=True)) == [
        "a: made, contents"
    ]
    assert otherwise(Changed(*place, contents=True)) == ["a: contents"]
    assert otherwise(Changed(*place, removed=True)) == ["a: removed"]
    renamed = Changed(HERE, b"b", source=place, source_made=True, closed=True)
    assert otherwise(renamed) == ["a: removed", "b: removed, made, closed"]
