"""The emblems' icons: what they are, and where they are put."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from session_agent.desktop import icons
from session_agent.desktop.changes import Change
from session_agent.desktop.icons import NAMES, apply, images, missing
from session_agent.fsutil import bounded
from tests.support.as_user import as_user, home_of

PICTURES = images()
EMBLEMS = "scalable/emblems"


def theme(folder: Path, *names: str, size: str = EMBLEMS) -> Path:
    (folder / size).mkdir(parents=True)
    for name in names:
        (folder / size / name).touch()
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_icons_are_small_plain_drawings(name: str) -> None:
    root = ElementTree.fromstring(PICTURES[name])
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "rect", "path", "circle", "ellipse"}  # no text: it would need a font
    assert root.attrib["viewBox"] == "0 0 16 16"
    assert len(PICTURES[name]) < 1000


def test_the_user_gets_those_that_the_system_lacks(tmp_path: Path) -> None:
    system = theme(tmp_path / "system", "s3-emblem.svg", "s3-emblem.icon")
    theme(system, "kasm-emblem.png", size="48x48/emblems")
    (system / "48x48/apps").mkdir()
    (system / "48x48/apps/dropbox-emblem.png").touch()  # not where emblems are looked for
    mine = tmp_path / "mine"
    change = apply(str(mine), PICTURES, [str(system), str(tmp_path / "absent")])
    assert (change.changed, change.problem) == (True, "")
    made = {path.name for path in (mine / EMBLEMS).iterdir()}
    wanted = NAMES.keys() - {"s3-emblem", "kasm-emblem"}
    assert made == {f"{name}.{kind}" for name in wanted for kind in ("svg", "icon")}
    assert (mine / EMBLEMS / "gdrive-emblem.svg").read_bytes() == PICTURES["gdrive-emblem"]
    text = (mine / EMBLEMS / "gdrive-emblem.icon").read_text()
    assert text == "[Icon Data]\nDisplayName=Google Drive\n"
    again = apply(str(mine), PICTURES, [str(system)])
    assert (again.changed, again.problem) == (False, "")


def test_an_icon_that_is_there_is_nobodys_to_replace(tmp_path: Path) -> None:
    mine = theme(tmp_path, "s3-emblem.svg")
    (mine / EMBLEMS / "s3-emblem.svg").write_text("theirs")
    assert apply(str(mine), PICTURES, []).changed
    assert (mine / EMBLEMS / "s3-emblem.svg").read_text() == "theirs"
    assert not (mine / EMBLEMS / "s3-emblem.icon").exists()


def test_without_an_icon_theme_there_is_nothing_to_do(tmp_path: Path) -> None:
    change = apply(str(tmp_path / "none"), PICTURES, [str(tmp_path / "neither")])
    assert (change.changed, change.problem) == (False, "")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "scalable").write_text("a file")
    (tmp_path / "16x16").mkdir()
    (tmp_path / "16x16/emblems").symlink_to("emblems")
    assert missing([str(tmp_path)]) == list(NAMES)
    change = apply(str(tmp_path), PICTURES, [])
    assert not change.changed
    assert str(tmp_path / "scalable") in change.problem


def test_a_running_program_is_told_to_look_again(tmp_path: Path) -> None:
    mine = theme(tmp_path)
    os.utime(mine, (0, 0))
    apply(str(mine), PICTURES, [])
    assert mine.stat().st_mtime > 0
    os.utime(mine, (0, 0))
    apply(str(mine), PICTURES, [])
    assert mine.stat().st_mtime == 0


@pytest.mark.needs_root
def test_root_installs_nowhere_that_others_can_lead_astray() -> None:
    with home_of() as home, home_of(0) as roots:
        roots.chmod(0o755)
        theirs = theme(home / "hicolor")
        change = apply(str(theirs), PICTURES, [])
        assert "is not root's alone" in change.problem
        assert list((theirs / EMBLEMS).iterdir()) == []
        (roots / "hicolor").symlink_to(theirs)
        change = apply(str(roots / "hicolor"), PICTURES, [])
        assert "is not root's alone" in change.problem
        assert list((theirs / EMBLEMS).iterdir()) == []


def test_two_agents_at_once(tmp_path: Path) -> None:
    mine = theme(tmp_path)
    steps = {n: bounded.start(lambda: apply(str(mine), PICTURES, []), Change) for n in range(4)}
    for outcome in bounded.collect(steps, 20).values():
        assert isinstance(outcome, Change)
        assert outcome.problem == ""
    assert len(list((mine / EMBLEMS).iterdir())) == 2 * len(NAMES)
    for name in NAMES:
        assert (mine / EMBLEMS / f"{name}.svg").read_bytes() == PICTURES[name]
        assert (mine / EMBLEMS / f"{name}.icon").read_bytes() == icons.description(name)


@pytest.mark.needs_root
def test_a_home_that_cannot_be_written() -> None:
    with home_of(0) as home:
        home.chmod(0o755)
        theme(home / "hicolor")

        def step() -> None:
            change = apply(str(home / "hicolor"), PICTURES, [])
            assert "Permission denied" in change.problem
            assert not change.changed

        as_user(step)


@pytest.mark.needs_root
def test_no_space_leaves_nothing_half(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", tmp_path], check=True)
    try:
        mine = theme(tmp_path / "hicolor")
        change = apply(str(mine), PICTURES, [])
        assert "No space left" in change.problem
        for path in (mine / EMBLEMS).iterdir():
            name, kind = path.name.split(".")
            assert path.read_bytes() == (
                PICTURES[name] if kind == "svg" else icons.description(name)
            )
    finally:
        subprocess.run(["umount", tmp_path], check=True)
