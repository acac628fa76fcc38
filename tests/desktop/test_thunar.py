"""Thunar and the GTK dialog as their user sees them: what is on the screen, and what mouse and keys do."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support import storage
from tests.support.desktop import process
from tests.support.screen import Part, Screen, colours, count
from tests.support.session import ROOT, USER, kasm_session
from tests.support.thunar import ARTEFACTS, MISSING, Desk, thunar

DIALOG = ROOT / "tests/support/file_dialog.py"
GREEN, RED, GREY, BROWN, ORANGE = "#15803d", "#dc2626", "#64748b", "#a16207", "#c2410c"

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.needs_rclone,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@dataclass
class DeskWithDrive(Desk):
    """And with a cloud drive in it, which can die."""

    drive: storage.RcloneMount


@pytest.fixture(scope="module")
def desk() -> Iterator[DeskWithDrive]:
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(kasm_session())
        session.mount("projects")
        cloud = session.base / "host/Drive"
        cloud.mkdir()
        drive = stack.enter_context(storage.rclone(cloud, session.vault / "Drive"))
        session.environment["CLOUD_MOUNTS"] = (
            f"{session.vault}/Drive|gdrive,{session.vault}/wiki|s3"
        )
        bookmarks = session.home / ".config/gtk-3.0/bookmarks"
        bookmarks.parent.mkdir(parents=True)
        bookmarks.write_text("file:///usr/share Shared things\n")
        made = stack.enter_context(thunar(session))
        yield DeskWithDrive(made.session, made.bus, made.screen, drive)


def side_pane(screen: Screen) -> dict[str, Part]:
    """The entries of Thunar's side pane from top to bottom: the place of each one's icon by name."""
    cells = [part for part in screen.parts("table cell") if part.x < 180]
    found: dict[str, Part] = {}
    for cell in sorted(cells, key=lambda cell: cell.y):
        icons = [c for c in cells if c.y == cell.y and c.name == "" and 16 <= c.width <= 32]
        if cell.name and icons:
            found[cell.name] = icons[-1]
    return found


def test_the_side_pane_shows_the_vault_its_branches_and_their_emblems(desk: Desk) -> None:
    pane = side_pane(desk.screen)
    own = ("Places", "Computer", "home", "Desktop", "Trash", "Devices", "File System")
    ours = [name for name in pane if name not in own]
    assert ours == ["Shared things", "Vault", "Drive", "Engineering", "Projects", "wiki"]
    picture = desk.screen.picture(ARTEFACTS / "thunar.png")
    seen = {name: colours(picture, icon) for name, icon in pane.items()}
    assert count(seen["Drive"], GREEN) >= 10
    assert count(seen["Engineering"], GREY) >= 10
    assert count(seen["Projects"], GREY) >= 10
    assert count(seen["wiki"], BROWN) >= 10
    assert count(seen["wiki"], ORANGE) >= 5
    for name in ("Vault", "Shared things", "home"):
        assert max(count(seen[name], c) for c in (GREEN, RED, GREY, BROWN, ORANGE)) <= 2


def test_the_gtk_dialog_shows_the_same_places(desk: Desk) -> None:
    command = ["/usr/bin/python3", "-c", DIALOG.read_text(encoding="utf-8")]
    with process(command, environment=desk.bus.environment, uid=USER):
        desk.screen.find("Engineering", "label")
        desk.screen.picture(ARTEFACTS / "gtk-dialog.png")
        labels = sorted(desk.screen.parts("label"), key=lambda part: part.y)
        wanted = ["Shared things", "Vault", "Drive", "Engineering", "Projects", "wiki"]
        assert [part.name for part in labels if part.name in wanted and part.x < 200] == wanted


BRANCHES = ("", "engineering", "projects", "Drive")


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: branch or "top")
def test_gio_trash_and_restore(desk: Desk, branch: str) -> None:
    vault = desk.session.vault
    file = desk.user_writes(vault / branch / f"old {branch}.md", f"text of {branch}")
    desk.bus.run("gio", "trash", file)
    assert not file.exists()
    kept = vault / f".Trash-{USER}/files" / file.name
    assert kept.read_text() == f"text of {branch}"
    entries: list[str] = []

    def listed() -> bool:
        entries[:] = [
            line.partition("\t")[0]
            for line in desk.bus.run("gio", "trash", "--list").splitlines()
            if line.endswith(f"\t{file}")
        ]
        return bool(entries)

    desk.until(listed, "the trash shows it")
    desk.bus.run("gio", "trash", "--restore", entries[0])
    assert file.read_text() == f"text of {branch}"
    assert not kept.exists()
    if branch:
        assert (desk.host(branch) / file.name).read_text() == f"text of {branch}"


def test_a_folder_in_the_trash_comes_back_whole(desk: Desk) -> None:
    folder = desk.session.vault / "projects/plan"
    desk.bus.run("mkdir", "-p", folder / "sub")
    desk.user_writes(folder / "sub/note.md", "deep")
    desk.bus.run("gio", "trash", folder)
    assert not (desk.host("projects") / "plan").exists()
    desk.until(lambda: str(folder) in desk.bus.run("gio", "trash", "--list"), "the trash shows it")
    lines = desk.bus.run("gio", "trash", "--list").splitlines()
    uri = next(line.partition("\t")[0] for line in lines if line.endswith(f"\t{folder}"))
    desk.bus.run("gio", "trash", "--restore", uri)
    assert (desk.host("projects") / "plan/sub/note.md").read_text() == "deep"


@pytest.mark.parametrize("branch", ["Engineering", "Drive"])
def test_thunars_delete_key_is_the_trash(desk: Desk, branch: str) -> None:
    name = branch if branch == "Drive" else branch.lower()
    desk.user_writes(desk.session.vault / name / "waste.md", f"waste {name}")
    desk.open(branch)
    desk.screen.click(desk.item("waste.md"))
    desk.screen.keys("Delete")
    kept = desk.session.vault / f".Trash-{USER}/files/waste.md"
    desk.until(kept.exists, "the file is in the trash")
    assert kept.read_text() == f"waste {name}"
    assert not (desk.host(name) / "waste.md").exists()
    desk.undo()
    back = desk.host(name) / "waste.md"
    desk.until(back.exists, "undo brings it back")
    assert back.read_text() == f"waste {name}"


def test_rename_and_undo(desk: Desk) -> None:
    desk.user_writes(desk.session.vault / "engineering/draft.md", "draft")
    desk.open("Engineering")
    desk.screen.click(desk.item("draft.md"))
    desk.screen.keys("F2")
    desk.screen.find('Rename "draft.md"', "dialog")
    desk.screen.focus_newest()
    desk.screen.hand("type", "final")
    desk.screen.keys("Return")
    host = desk.host("engineering")
    desk.until((host / "final.md").exists, "renamed")
    assert not (host / "draft.md").exists()
    desk.screen.find("final.md", "table cell")
    desk.undo()
    desk.until((host / "draft.md").exists, "undone")
    assert not (host / "final.md").exists()


def test_copy_and_paste_into_another_branch(desk: Desk) -> None:
    desk.user_writes(desk.session.vault / "engineering/copied.md", "both have it")
    desk.open("Engineering")
    desk.screen.click(desk.item("copied.md"))
    desk.screen.keys("ctrl+c")
    desk.open("Projects")
    desk.screen.keys("ctrl+v")
    copy = desk.host("projects") / "copied.md"
    desk.until(lambda: copy.exists() and copy.read_text() == "both have it", "copied")
    assert (desk.host("engineering") / "copied.md").read_text() == "both have it"


@pytest.mark.parametrize("target", ["Projects", "Drive"])
def test_a_drag_to_another_branch_is_a_move_and_can_be_undone(desk: Desk, target: str) -> None:
    name = target if target == "Drive" else target.lower()
    desk.user_writes(desk.session.vault / f"engineering/to {name}.md", f"dragged to {name}")
    desk.open("Engineering")
    desk.screen.drag(desk.item(f"to {name}.md"), desk.place(target))
    here, there = desk.host("engineering") / f"to {name}.md", desk.host(name) / f"to {name}.md"
    desk.until(there.exists, "the file has arrived")
    desk.until(lambda: not here.exists(), "the file has left")
    assert there.read_text() == f"dragged to {name}"
    desk.undo()
    desk.until(here.exists, "undone")
    desk.until(lambda: not there.exists(), "undone there")
    assert here.read_text() == f"dragged to {name}"


def test_a_drive_that_dies_shows_in_an_open_thunar(desk: DeskWithDrive) -> None:
    """The last one here: the drive stays dead."""
    desk.open("Vault")
    desk.screen.keys("ctrl+1")
    desk.screen.hand("mousemove", 600, 500)  # no tooltip
    desk.drive.kill()
    subprocess.run(["ls", desk.session.vault / "Drive"], check=False, capture_output=True)
    down = "session-agent-unavailable"
    desk.until(lambda: down in desk.bus.emblems(desk.session.vault / "Drive"), "the emblem")
    time.sleep(1.0)
    picture = desk.screen.picture(ARTEFACTS / "thunar-dead-drive.png")
    view = Part("", "", 180, 70, 700, 400)
    assert count(colours(picture, view), RED) >= 20
    assert "Drive" in os.listdir(desk.session.vault)
    assert "Drive" in side_pane(desk.screen)
    icon = side_pane(desk.screen)["Drive"]

    def red_in_the_side_pane() -> bool:
        shown = desk.screen.picture(ARTEFACTS / "thunar-dead-drive.png")
        return count(colours(shown, icon), RED) >= 5

    desk.until(red_in_the_side_pane, "the emblem in the side pane")
