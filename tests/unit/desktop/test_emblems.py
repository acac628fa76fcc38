"""Which emblems are set, seen what is there and what was set before. Set for real in tests/desktop."""

from __future__ import annotations

from dataclasses import replace

import pytest

from session_agent.desktop.emblems import (
    READ_ONLY,
    STORAGE,
    UNAVAILABLE,
    Emblems,
    _parse,
    _without,
    of_branch,
    render,
    wanted,
)
from session_agent.desktop.merge import Remembered
from session_agent.model import Mode, MountState
from tests.support.branches import branch

A, B = "/vault/a", "/vault/b"
WANTED: dict[str, Emblems] = {A: ("s3-emblem", READ_ONLY), B: (STORAGE,)}
SCRIPTS = {A: "s3-emblem"}
NOTHING: dict[str, Emblems] = {A: (), B: ()}
NONE = Remembered()
SET = Remembered({A: ["s3-emblem", READ_ONLY], B: [STORAGE]})


@pytest.mark.parametrize("kind", ["s3", "nextcloud", "onedrive", "gdrive", "dropbox", "kasm"])
def test_kasms_own_names_are_used(kind: str) -> None:
    assert of_branch(branch("x", cloud_type=kind)) == (f"{kind}-emblem",)


def test_what_else_there_is() -> None:
    assert of_branch(branch("x")) == (STORAGE,)
    assert of_branch(branch("x", cloud_type="floppy")) == (STORAGE,)
    assert of_branch(branch("x", Mode.RO, "s3")) == ("s3-emblem", READ_ONLY)
    for state in (MountState.DEAD, MountState.HUNG):
        assert of_branch(replace(branch("x"), state=state)) == (STORAGE, UNAVAILABLE)


def test_where_they_go() -> None:
    found = wanted("/vault", [branch("x/y"), branch("/mnt/gdrive", cloud_type="gdrive")])
    assert found == {"/vault/x/y": (STORAGE,), "/mnt/gdrive": ("gdrive-emblem",)}


def test_everything_is_set_at_first_and_nothing_again() -> None:
    first = render(NOTHING, WANTED, SCRIPTS, NONE)
    assert first.put == WANTED
    assert first.remembered == SET
    assert render(WANTED, WANTED, SCRIPTS, first.remembered).put == {}


def test_the_users_own_emblems_stay() -> None:
    theirs: dict[str, Emblems] = {A: ("emblem-important",), B: ("emblem-new", "another")}
    first = render(theirs, WANTED, SCRIPTS, NONE)
    assert first.put == {
        A: ("s3-emblem", READ_ONLY, "emblem-important"),
        B: (STORAGE, "emblem-new", "another"),
    }
    gone = render(dict(first.put), {}, {}, first.remembered)
    assert gone.put == theirs


def test_an_emblem_that_the_user_took_away_stays_away() -> None:
    now: dict[str, Emblems] = {A: ("s3-emblem", READ_ONLY), B: ()}
    second = render(now, WANTED, SCRIPTS, SET)
    assert second.put == {}
    assert second.remembered.left == {B}
    dead: dict[str, Emblems] = WANTED | {B: (STORAGE, UNAVAILABLE)}
    assert render(now, dead, SCRIPTS, second.remembered).put == {}


def test_emblems_sh_before_us_loses_nothing() -> None:
    first = render({A: ("s3-emblem",), B: ()}, WANTED, SCRIPTS, NONE)
    assert first.put == WANTED


def test_emblems_sh_after_us_takes_nothing_away() -> None:
    after = render({A: ("s3-emblem",), B: (STORAGE,)}, WANTED, SCRIPTS, SET)
    assert after.put == {A: ("s3-emblem", READ_ONLY)}
    assert after.remembered == SET


def test_a_type_that_only_emblems_sh_knows() -> None:
    after = render({B: ("floppy-emblem",)}, {B: (STORAGE,)}, {B: "floppy-emblem"}, NONE)
    assert after.put == {B: (STORAGE,)}


def test_an_emblem_of_an_agent_that_is_forgotten_is_taken_over() -> None:
    now: dict[str, Emblems] = {A: ("s3-emblem", UNAVAILABLE), B: (STORAGE, "mine")}
    first = render(now, WANTED, SCRIPTS, NONE)
    assert first.put == {A: ("s3-emblem", READ_ONLY)}
    assert first.remembered == SET


def test_a_branch_that_dies_and_returns() -> None:
    dead: dict[str, Emblems] = WANTED | {B: (STORAGE, UNAVAILABLE)}
    second = render(WANTED, dead, SCRIPTS, SET)
    assert second.put == {B: (STORAGE, UNAVAILABLE)}
    third = render(dead, WANTED, SCRIPTS, second.remembered)
    assert third.put == {B: (STORAGE,)}
    assert third.remembered == SET


def test_a_branch_that_is_gone_loses_what_was_set() -> None:
    gone = render(WANTED, {A: WANTED[A]}, SCRIPTS, SET)
    assert gone.put == {B: ()}
    assert gone.remembered == Remembered({A: ["s3-emblem", READ_ONLY]})


def test_a_new_home_gets_everything_again() -> None:
    assert render(NOTHING, WANTED, SCRIPTS, SET).put == WANTED


def test_what_could_not_be_asked_is_as_it_was() -> None:
    after = render({A: WANTED[A]}, WANTED, SCRIPTS, SET)
    assert after.put == {}
    assert after.remembered == SET


def test_a_killed_run_still_knows_its_emblems() -> None:
    pending = Remembered(SET.written, {**SET.written, B: [STORAGE, UNAVAILABLE]})
    for found in (WANTED, WANTED | {B: (STORAGE, UNAVAILABLE)}):
        after = render(found, WANTED, SCRIPTS, pending)
        assert after.remembered == SET
        assert dict(found) | dict(after.put) == WANTED


def test_what_failed_may_have_been_done_or_not() -> None:
    dead: dict[str, Emblems] = WANTED | {B: (STORAGE, UNAVAILABLE)}
    after = _without(render(WANTED, dead, SCRIPTS, SET).remembered, SET, [B])
    for found in (WANTED, dead):
        assert dict(found) | dict(render(found, dead, SCRIPTS, after).put) == dead


def test_what_gio_prints_is_understood() -> None:
    output = (
        "uri: file:///x\nattributes:\n  metadata::emblems: [s3-emblem, session-agent-read-only]\n"
    )
    assert _parse(output) == ("s3-emblem", READ_ONLY)
    assert _parse("attributes:\n") == ()
    assert _parse("attributes:\n  metadata::emblems: []\n") == ()
    assert _parse("\udcff\n") == ()
