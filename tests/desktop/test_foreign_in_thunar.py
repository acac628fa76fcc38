"""What others change behind the vault, as its user sees it in a Thunar that is open. Nobody reloads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.support.session import kasm_session
from tests.support.thunar import ARTEFACTS, MISSING, Desk, thunar

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_fuse,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]

SIDE_PANE = 180  # pixels


@pytest.fixture(scope="module")
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    """Thunar shows the branch `engineering`, which has a note in it. The parameter: `foreign_events`."""
    with kasm_session() as session:
        session.settings["overlay"] = {"foreign_events": getattr(request, "param", True)}
        with thunar(session) as made:
            made.open("Engineering")
            made.until(lambda: shown(made) == {"note.md": "12 bytes"}, "the list")
            yield made


def shown(desk: Desk) -> dict[str, str]:
    """The names in Thunar's list, and the size that it shows of each; what it shows of folders differs."""
    rows: dict[int, list[str]] = {}
    for cell in sorted(desk.screen.parts("table cell"), key=lambda cell: cell.x):
        if cell.x > SIDE_PANE and cell.name:
            rows.setdefault(cell.y, []).append(cell.name)
    return {row[0]: row[1] for row in rows.values() if len(row) > 1}


def become(desk: Desk, **wanted: str) -> None:
    """Thunar comes to show these notes, beside the one that is always there, and no others."""
    notes = {"note.md": "12 bytes", **{f"{name}.md": size for name, size in wanted.items()}}
    desk.until(lambda: shown(desk) == notes, f"{notes} in Thunar")
    desk.screen.picture(ARTEFACTS / f"foreign-{'-'.join(wanted) or 'none'}.png")


def test_a_note_is_made_changed_renamed_and_removed(desk: Desk) -> None:
    host = desk.host("engineering")
    (host / "colleague.md").write_text("12345")
    become(desk, colleague="5 bytes")
    with open(host / "colleague.md", "a") as file:
        file.write("67890")
    become(desk, colleague="10 bytes")
    os.rename(host / "colleague.md", host / "other.md")
    become(desk, other="10 bytes")
    os.unlink(host / "other.md")
    become(desk)


def test_a_safe_save(desk: Desk) -> None:
    """Written beside the old one and renamed over it, as editors do."""
    host = desk.host("engineering")
    (host / "saved.md").write_text("old")
    become(desk, saved="3 bytes")
    (host / ".saved.md.swp").write_text("the new one")
    os.rename(host / ".saved.md.swp", host / "saved.md")
    become(desk, saved="11 bytes")
    os.unlink(host / "saved.md")
    become(desk)


def test_a_folder_is_made_renamed_filled_and_removed(desk: Desk) -> None:
    host = desk.host("engineering")
    (host / "Minutes").mkdir()
    desk.until(lambda: "Minutes" in shown(desk), "the folder")
    os.rename(host / "Minutes", host / "Protocols")
    desk.until(lambda: sorted(shown(desk)) == ["Protocols", "note.md"], "the folder's new name")
    desk.screen.click(desk.item("Protocols"))
    desk.screen.keys("Return")
    desk.until(lambda: shown(desk) == {}, "what is in the folder")
    (host / "Protocols/monday.md").write_text("12345")
    desk.until(lambda: shown(desk) == {"monday.md": "5 bytes"}, "the note in the folder")
    desk.screen.keys("alt+Up")
    desk.until(lambda: sorted(shown(desk)) == ["Protocols", "note.md"], "the folder above")
    shutil.rmtree(host / "Protocols")
    become(desk)


def test_an_archive_is_unpacked(desk: Desk) -> None:
    """Hundreds of notes at once: Thunar counts them all, and comes to show none when they go."""
    host = desk.host("engineering")
    desk.screen.hand("mousemove", 600, 480, "click", 1)  # else it tells of what is selected
    for number in range(400):
        (host / f"{number}.txt").write_text("12345")
    desk.until(lambda: desk.screen.parts("status bar")[0].name.startswith("401 files"), "all")
    desk.screen.picture(ARTEFACTS / "foreign-many.png")
    for number in range(400):
        (host / f"{number}.txt").unlink()
    become(desk)


@pytest.mark.parametrize("desk", [False], indirect=True, ids=["no events"])
def test_without_foreign_events_it_is_not_seen(desk: Desk) -> None:
    """So what is seen above is seen because of them."""
    host, served = desk.host("engineering"), desk.session.vault / "engineering"
    (host / "colleague.md").write_text("12345")
    desk.user_writes(served / "own.md", "123")
    become(desk, own="3 bytes")
    os.rename(host / "own.md", host / "other.md")
    desk.user_writes(served / "more.md", "1234")
    become(desk, own="3 bytes", more="4 bytes")
    desk.screen.keys("ctrl+r")
    become(desk, other="3 bytes", more="4 bytes", colleague="5 bytes")
