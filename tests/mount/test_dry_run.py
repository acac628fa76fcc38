"""`first-launch --dry-run` on real mounts: it tells everything, and leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.session import USER, KasmSession, kasm_session, step

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        yield made


def dry(session: KasmSession) -> dict[str, Any]:
    done = session.run("first-launch", "--dry-run", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def everything(session: KasmSession) -> dict[str, object]:
    paths = [p for p in session.base.rglob("*") if p != session.config]
    return {str(p): (p.lstat().st_mode, p.lstat().st_mtime_ns) for p in paths}


def test_nothing_is_done_and_all_is_told(session: KasmSession) -> None:
    before = everything(session)
    report = dry(session)
    assert everything(session) == before
    assert session.overlay_mounts() == []
    assert report["dry_run"] is True
    assert step(report, "vault")["detail"] == f"{session.vault} would be served"
    told = step(report, "bookmarks")["difference"]
    assert f"+file://{session.vault}/engineering Engineering\n" in told
    assert '+    "path":' not in told
    assert "+++" in step(report, "sync rooms")["difference"]
    assert "+++" in step(report, "Obsidian app.json")["difference"]


def test_what_it_tells_is_what_first_launch_then_does(session: KasmSession) -> None:
    told = {s["path"]: s["difference"] for s in dry(session)["steps"] if s["difference"]}
    report = session.first_launch(0)
    assert {s["path"] for s in report["steps"] if s["changed"] and s["name"] != "vault"} == set(
        told
    )
    again = dry(session)
    assert [s["name"] for s in again["steps"] if s["changed"] or s["difference"]] == []
    assert "is served already" in step(again, "vault")["detail"]
    bookmarks = session.home / ".config/gtk-3.0/bookmarks"
    added = [line[1:] for line in told[str(bookmarks)].splitlines() if line.startswith("+file")]
    assert bookmarks.read_text().splitlines() == added


def test_for_people_it_is_a_diff(session: KasmSession) -> None:
    session.first_launch(0)
    bookmarks = session.home / ".config/gtk-3.0/bookmarks"
    bookmarks.write_text(bookmarks.read_text() + "file:///tmp Bell \x07\n")
    session.mount("new")
    done = session.run("first-launch", "--dry-run")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert f"+file://{session.vault}/new New" in lines
    assert r"file:///tmp Bell \x07" in lines
    assert f"ok        bookmarks: would change, 4 places ({bookmarks})" in done.stdout
    assert lines[-1].startswith("Ok. Nothing was done.")
    assert not Path(session.vault / "new/.obsidian").exists()


def test_a_template_is_shown_as_differences_and_then_does_what_they_say(
    session: KasmSession,
) -> None:
    template = session.base / "template"
    (template / "snippets").mkdir(parents=True)
    (template / "app.json").write_text('{"vimMode": true, "attachmentFolderPath": "wiki/files"}')
    (template / "daily-notes.json").write_text('{"folder": "absent/days"}')
    (template / "snippets/a.css").write_text("body {}\n")
    session.first_launch(0)
    session.settings["obsidian"] = {"template": str(template)}
    told = {s["name"]: s["difference"] for s in dry(session)["steps"] if s["difference"]}
    assert '+  "vimMode": true' in told["Obsidian app.json"]
    assert '+  "folder": "_inbox"' in told["Obsidian daily-notes.json"]
    assert "+body {}" in told["Obsidian template"]
    assert not (session.root_branch / ".obsidian/snippets").exists()
    report = session.first_launch(0)
    assert {s["name"] for s in report["steps"] if s["changed"]} == set(told)
    settings = session.vault / ".obsidian"
    app = json.loads((settings / "app.json").read_text())
    # wiki is mounted, but new files cannot be made there.
    assert (app["vimMode"], app["attachmentFolderPath"]) == (True, "_inbox/attachments")
    assert (settings / "snippets/a.css").read_text() == "body {}\n"
    assert (settings / "snippets/a.css").stat().st_uid == USER
    assert not session.first_launch(0)["changed"]
    template.chmod(0o777)
    degraded = session.first_launch(2)
    assert "others than root can change" in step(degraded, "Obsidian template")["detail"]
    assert not degraded["changed"]
