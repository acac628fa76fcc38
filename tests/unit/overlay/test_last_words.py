"""What programs have heard last of a name is compared with what is there, once it has been left alone."""

from __future__ import annotations

import math
import os
from errno import EIO

import pytest
import trio

from session_agent.overlay import telling
from session_agent.overlay.last_words import LastWords
from session_agent.overlay.nodes import FolderNode
from tests.unit.overlay.test_looking import Loop, Place, clock, run
from tests.unit.overlay.test_telling import folder

__all__ = ["clock", "run"]  # fixtures

QUIET = 0.2  # seconds


async def told(place: Place, seconds: float = QUIET) -> list[str]:
    """What is to be told after that time."""
    await trio.sleep(seconds)
    await place.telling._check_last_words()
    return place.told()


async def opened(place: Place, name: str) -> FolderNode:
    node = await folder(place, name)
    node.lookups += 1
    return node


def test_what_is_not_so_is_told(run: Loop) -> None:
    async def test(place: Place) -> None:
        here = await opened(place, "here")
        (place.behind / "here/there").touch()
        words = place.telling.last_words
        for name, before in ((b"there", True), (b"gone", False), (b"unknown", None)):
            words.changed((here, name), before)
        assert await told(place) == []
        words.changed((here, b"there"), False)
        words.changed((here, b"gone"), True)
        assert await told(place, 0.01) == []
        assert await told(place) == ["made there", "removed gone"]

    run(test, remote=False)


def test_what_is_heard_meanwhile_counts(run: Loop) -> None:
    async def test(place: Place) -> None:
        here = await opened(place, "here")
        words = place.telling.last_words
        words.changed((here, b"a"), True)
        words.heard((here, b"a"), False)
        words.changed((here, b"a"), True)  # by then it was known
        # Heard before the first change of others was read.
        words.heard((here, b"b"), True)
        words.changed((here, b"b"), False)
        # Of an earlier time.
        words.heard((here, b"c"), True)
        words.all_read()
        words.changed((here, b"c"), False)
        assert await told(place) == ["removed b"]

    run(test, remote=False)


def test_it_is_told_again_but_not_for_ever(run: Loop) -> None:
    """There are folders in which the agent may not announce anything."""

    async def test(place: Place) -> None:
        here = await opened(place, "here")
        words = place.telling.last_words
        words.changed((here, b"a"), True)
        assert [await told(place) for _ in range(5)] == [["removed a"]] * 3 + [[]] * 2
        assert words.first_due() == math.inf
        words.changed((here, b"a"), True)
        assert await told(place) == ["removed a"]
        words.heard((here, b"a"), False)
        assert await told(place) == []
        assert words.first_due() == math.inf

    run(test, remote=False)


def test_what_the_vault_is_at_work_on_waits(run: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(place: Place) -> None:
        here = await opened(place, "here")
        with monkeypatch.context() as patch:
            patch.setattr(place.telling, "is_ours", lambda *_: True)
            place.telling.last_words.changed((here, b"a"), True)
            assert [await told(place) for _ in range(5)] == [[]] * 5
        assert await told(place) == ["removed a"]

    run(test, remote=False)


def test_what_the_disk_does_not_say_is_not_told_to_be_gone(
    run: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(EIO, os.strerror(EIO))

    async def test(place: Place) -> None:
        here = await opened(place, "here")
        place.telling.last_words.changed((here, b"a"), True)
        monkeypatch.setattr(telling, "stat_at", broken)
        assert await told(place) == []

    run(test, remote=False)


def test_where_nobody_listens_nothing_is_told(run: Loop) -> None:
    async def test(place: Place) -> None:
        here = await opened(place, "here")
        place.telling.last_words.changed((here, b"a"), True)
        here.lookups = 0
        assert await told(place) == []

    run(test, remote=False)


def test_what_was_kept_longest_is_given_up_first(
    run: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LastWords, "LIMIT", 2)

    async def test(place: Place) -> None:
        here = await opened(place, "here")
        for name in (b"a", b"b", b"a", b"c"):
            place.telling.last_words.changed((here, name), True)
        assert await told(place) == ["removed a", "removed c"]

    run(test, remote=False)


def test_what_is_to_be_told_anyway_waits(run: Loop) -> None:
    async def test(place: Place) -> None:
        here = await opened(place, "here")
        (place.behind / "here/b").touch()
        pending, words = place.telling.pending, place.telling.last_words

        async def checked() -> list[str]:
            await trio.sleep(QUIET)
            await place.telling._check_last_words()
            return [change.name.decode() for change in pending.take(1000)]

        words.changed((here, b"a"), True)
        words.changed((here, b"b"), False)
        for _ in range(5):  # not counted
            pending.renamed((here, b"a"), here, b"b")
            assert await checked() == ["b"]
        for number in range(telling._FEW + 1):
            pending.made(here, b"%d" % number)
        assert len(await checked()) == telling._FEW + 1
        assert await told(place) == ["made b", "removed a"]

    run(test, remote=False)
