"""A dry run writes nothing, and tells what would be written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from session_agent.desktop.changes import make_folders, write
from session_agent.desktop.dry_run import Difference, dry_run, is_dry, unified
from session_agent.errors import UserFileError
from tests.support.as_user import as_user, home_of
from tests.unit.desktop.test_hostile import FILES, problems, snapshot, write_all


def test_nothing_is_written_and_all_files_are_told(tmp_path: Path) -> None:
    with dry_run() as found:
        changes = write_all(tmp_path)
    assert snapshot(tmp_path) == {}
    assert all(change.changed for change in changes)
    told = {os.path.relpath(difference.path, tmp_path) for difference in found}
    assert told >= FILES.keys() - {"state/desktop-memory.json"}
    bookmarks = next(d.text for d in found if d.path.endswith("gtk-3.0/bookmarks"))
    assert bookmarks.splitlines() == [
        "--- /dev/null",
        f"+++ {tmp_path}/.config/gtk-3.0/bookmarks",
        "@@ -0,0 +1,3 @@",
        "+file:///vault Vault",
        "+file:///vault/engineering Engineering",
        "+file:///vault/wiki",
    ]


def test_after_a_run_in_earnest_there_is_nothing_to_tell(tmp_path: Path) -> None:
    write_all(tmp_path)
    before = snapshot(tmp_path)
    with dry_run() as found:
        changes = write_all(tmp_path)
    assert found == []
    assert not any(change.changed or change.problem for change in changes)
    assert snapshot(tmp_path) == before


def test_what_it_tells_is_what_is_written_then(tmp_path: Path) -> None:
    write_all(tmp_path)
    path = tmp_path / ".config/gtk-3.0/bookmarks"
    before = path.read_bytes()
    with dry_run() as found:
        write_all(tmp_path, "engineering", "new")
    write_all(tmp_path, "engineering", "new")
    told = next(d.text for d in found if d.path == str(path))
    assert told == unified(str(path), before, path.read_bytes())
    assert "-file:///vault/wiki" in told


def test_a_broken_file_is_told_and_not_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / ".config/obsidian/obsidian.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with dry_run() as found:
        changes = write_all(tmp_path)
    assert any("is not valid JSON" in problem for problem in problems(changes))
    assert list(path.parent.iterdir()) == [path]
    assert any(d.text.startswith(f"a copy of {path} as ") for d in found)


def test_what_would_be_refused_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nowhere")
    with dry_run() as found, pytest.raises(UserFileError, match="leads nowhere"):
        write(str(tmp_path / "link"), b"x", None)
    (tmp_path / "file").touch()
    with dry_run(), pytest.raises(NotADirectoryError):
        write(str(tmp_path / "file/below"), b"x", None)
    assert found == []


@pytest.mark.needs_root
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with home_of(0) as home:
        home.chmod(0o755)

        def step() -> None:
            with dry_run() as found:
                assert len(problems(write_all(home))) >= 5
                assert not any("bookmarks" in difference.path for difference in found)

        as_user(step)


def test_contents_that_are_no_text(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    with dry_run() as found:
        write(path, b"\xff\r\nlast", None)
        make_folders(str(tmp_path))
        make_folders(str(tmp_path / "new"))
    assert found == [
        Difference(
            path,
            f"--- /dev/null\n+++ {path}\n@@ -0,0 +1,2 @@\n+\\xff\r\n+last\n\\ No newline at end of file",
        ),
        Difference(str(tmp_path / "new"), f"new folder {tmp_path}/new"),
    ]
    assert json.dumps([d.text for d in found]).isascii()
    assert not is_dry()


def test_a_large_difference_is_cut(tmp_path: Path) -> None:
    with dry_run() as found:
        write(str(tmp_path / "x"), b"".join(b"%d\n" % number for number in range(100_000)), None)
    assert len(found[0].text) < 300_000
    assert "and more, of" in found[0].text[-60:]
