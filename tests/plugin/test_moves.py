"""The Obsidian plugin under Node, between a tmpfs and an ext4."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import storage
from tests.support import vault as served
from tests.support.disks import Seen, contents, image, picture

HERE = Path(__file__).parent
PLUGIN = Path(__file__).parents[2] / "session_agent/desktop/plugin"
RESERVED = ".~session-agent-"
HOST = "0123456789ab"  # nobody's

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
]


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Path]:
    """A folder with two mounts: `a`, a tmpfs, and `b`, an ext4. Nothing reserved is left in them."""
    folder = tmp_path / "vault"
    with (
        storage.tmpfs(folder / "a", size="32m"),
        image(tmp_path / "ext4", "ext4") as ext4,
        storage.bind(ext4, folder / "b"),
    ):
        (ext4 / "lost+found").rmdir()
        yield folder
        assert leftovers(folder) == []


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(f"{RESERVED}*")]


def run(vault: Path, *steps: list[Any], **job: Any) -> dict[str, Any]:
    """What came of the steps. With `kill`, {} where the process has killed itself."""
    given = {"vault": str(vault), "plugin": str(PLUGIN / "main.js"), "steps": steps, **job}
    done = subprocess.run(
        ["node", str(HERE / "drive.js")],
        input=json.dumps(given),
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    if job.get("kill") and done.returncode == -signal.SIGKILL:
        return {}
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def moved(vault: Path, source: str, target: str, **job: Any) -> dict[str, Any]:
    """The same for one rename that has to succeed."""
    done = run(vault, ["rename", source, target], **job)
    assert done["outcomes"] == [None], done
    return done


def refused(vault: Path, source: str, target: str, **job: Any) -> dict[str, Any]:
    """The same for one that has to fail, changing nothing. Its error, with all `notices`."""
    before = kept(picture(vault))
    done = run(vault, ["rename", source, target], **job)
    (error,) = done["outcomes"]
    assert error is not None
    assert kept(picture(vault)) == before
    return {**error, "notices": done["notices"]}


def kept(seen: dict[str, Seen]) -> dict[str, Seen]:
    """A picture without the times of folders: what is built in them and taken back changes these."""
    return {
        name: one._replace(mtime_ns=0) if stat.S_ISDIR(one.format) else one
        for name, one in seen.items()
    }


def texts(done: dict[str, Any]) -> str:
    return "\n".join(message for notice in done["notices"] for message in notice["messages"])


def make_tree(top: Path) -> None:
    (top / "sub/deep").mkdir(parents=True)
    (top / "Grüße 📓.md").write_text("hello")
    (top / "sub/e\u0301 and \u00e9").write_bytes(os.urandom(3_000_000))
    (top / "sub/deep/empty").touch(mode=0o600)
    (top / "link").symlink_to("../elsewhere/nowhere")
    (top / "sub").chmod(0o750)
    age(top)


class TestMoves:
    @pytest.mark.parametrize("books", [True, False], ids=["fsPromises", "rename-alone"])
    @pytest.mark.parametrize(("one", "other"), [("a", "b"), ("b", "a")])
    def test_a_file(self, vault: Path, one: str, other: str, books: bool) -> None:
        note = vault / one / "Grüße 📓.md"
        note.write_text("hello")
        note.chmod(0o640)
        os.utime(note, ns=(0, 1_600_000_000_123_456_000))
        before = picture(note)
        done = moved(vault, f"{one}/Grüße 📓.md", f"{other}/New.md", books=books)
        assert picture(vault / other / "New.md") == before
        assert not note.exists()
        assert done["notices"] == []
        # Obsidian's own rename has come to its end, so it keeps links and tabs.
        assert done["renamed"] == ([[f"{one}/Grüße 📓.md", f"{other}/New.md"]] if books else [])

    @pytest.mark.parametrize(("one", "other"), [("a", "b"), ("b", "a")])
    def test_a_folder(self, vault: Path, one: str, other: str) -> None:
        make_tree(vault / one / "notes")
        before = picture(vault / one / "notes")
        moved(vault, f"{one}/notes", f"{other}/moved")
        assert picture(vault / other / "moved") == before
        assert not (vault / one / "notes").exists()

    def test_within_one_mount_nothing_is_copied(self, vault: Path) -> None:
        (vault / "a/one.md").write_text("hello")
        inode = (vault / "a/one.md").stat().st_ino
        done = moved(vault, "a/one.md", "a/two.md")
        assert (vault / "a/two.md").stat().st_ino == inode
        assert done["calls"] == ["rename"]

    def test_to_obsidians_own_trash(self, vault: Path) -> None:
        (vault / "b/one.md").write_text("hello")
        assert run(vault, ["trashLocal", "b/one.md"])["outcomes"] == [None]
        assert contents(vault / ".trash") == {"one.md": b"hello"}
        assert not (vault / "b/one.md").exists()

    def test_a_folder_of_5000_notes(self, vault: Path) -> None:
        for number in range(5000):
            if number % 100 == 0:
                (vault / f"a/notes/{number // 100}").mkdir(parents=True)
            (vault / f"a/notes/{number // 100}/{number}.md").write_text(f"# {number}\n")
        before = contents(vault / "a/notes")
        moved(vault, "a/notes", "b/notes")
        assert contents(vault / "b/notes") == before
        assert not (vault / "a/notes").exists()

    def test_others_are_saved_while_a_large_move_shows_its_progress(self, vault: Path) -> None:
        for name in "12":
            (vault / f"a/{name}").mkdir(parents=True)
        (vault / "a/1/large").write_bytes(os.urandom(5_000_000))
        done = moved(vault, "a/1", "b/large", slow="handle.write")
        assert done["saved"]
        (notice,) = done["notices"]
        assert "Moving “1”" in notice["messages"][0]
        assert "100 %" in notice["messages"][-1]
        assert notice["hidden"]

    def test_the_same_move_twice_at_once(self, vault: Path) -> None:
        (vault / "a/one.md").write_text("hello")
        done = run(vault, ["together", ["a/one.md", "b/one.md"], ["a/one.md", "b/one.md"]])
        assert [outcome for outcome in done["outcomes"][0] if outcome is None] == [None]
        assert contents(vault / "b") == {"one.md": b"hello"}
        assert not (vault / "a/one.md").exists()


class TestRefusals:
    @pytest.mark.parametrize("books", [True, False], ids=["fsPromises", "rename-alone"])
    def test_a_taken_name(self, vault: Path, books: bool) -> None:
        (vault / "a/one.md").write_text("mine")
        (vault / "b/one.md").write_text("theirs")
        assert "exists" in refused(vault, "a/one.md", "b/one.md", books=books)["message"]

    @pytest.mark.parametrize("links", [True, False], ids=["hard-links", "no-hard-links"])
    def test_a_name_taken_meanwhile(self, vault: Path, links: bool) -> None:
        (vault / "a/one.md").write_text("mine")
        theirs = {"create": str(vault / "b/one.md"), "text": "theirs"}
        done = run(
            vault,
            ["rename", "a/one.md", "b/one.md"],
            meanwhile={"link": theirs},
            refuse={} if links else {"link": "EPERM"},
        )
        assert done["outcomes"][0]["code"] == "EEXIST"
        assert contents(vault / "a") == {"one.md": b"mine"}
        assert contents(vault / "b") == {"one.md": b"theirs"}

    def test_a_folders_name_taken_meanwhile(self, vault: Path) -> None:
        make_tree(vault / "a/notes")
        (vault / "b/notes").mkdir()
        (vault / "b/notes/theirs").touch()
        done = refused(vault, "a/notes", "b/notes")
        assert "exists" in done["message"]

    def test_no_hard_links(self, vault: Path) -> None:
        (vault / "a/one.md").write_text("mine")
        moved(vault, "a/one.md", "b/one.md", refuse={"link": "EPERM"})
        assert contents(vault) == {"b/one.md": b"mine"}

    def test_no_space(self, vault: Path) -> None:
        with storage.tmpfs(vault / "small", size="1m"):
            make_tree(vault / "b/notes")
            error = refused(vault, "b/notes", "small/notes")
            assert error["code"] == "ENOSPC"
            assert "was not moved, and is where it was" in texts(error)
            assert picture(vault / "small").keys() == {""}

    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_a_read_only_source(self, vault: Path, kind: str) -> None:
        make_tree(vault / "b/notes")
        with storage.bind(vault / "b", vault / "ro", read_only=True):
            path = "ro/notes" if kind == "folder" else "ro/notes/Grüße 📓.md"
            assert refused(vault, path, "a/new")["code"] == "EROFS"
        assert os.listdir(vault / "a") == []

    def test_a_source_that_cannot_be_removed_after_all(self, vault: Path) -> None:
        """The copy is in place by then, and is taken back."""
        make_tree(vault / "b/notes")
        fixed = str(vault / "b/notes/sub/deep/empty")
        subprocess.run(["chattr", "+i", fixed], check=True)
        try:
            error = refused(vault, "b/notes/sub/deep", "a/new")
        finally:
            subprocess.run(["chattr", "-i", fixed], check=True)
        assert error["code"] == "EPERM"
        assert "was not moved, and is where it was" in texts(error)
        assert os.listdir(vault / "a") == []

    def test_a_copy_that_somebody_has_written_to_is_not_taken_back(self, vault: Path) -> None:
        (vault / "b/one.md").write_text("hello")
        added = {"append": str(vault / "a/one.md"), "text": ", world"}
        subprocess.run(["chattr", "+i", str(vault / "b/one.md")], check=True)
        try:
            # The first unlink is that of the reserved name, the copy being in place by then.
            done = moved(vault, "b/one.md", "a/one.md", meanwhile={"unlink": added})
        finally:
            subprocess.run(["chattr", "-i", str(vault / "b/one.md")], check=True)
        assert contents(vault) == {"b/one.md": b"hello", "a/one.md": b"hello, world"}
        assert str(vault / "b/one.md") in texts(done)

    def test_what_is_no_file(self, vault: Path) -> None:
        make_tree(vault / "a/notes")
        os.mkfifo(vault / "a/notes/sub/fifo")
        assert "fifo" in refused(vault, "a/notes", "b/notes")["message"]

    def test_a_mount_in_the_folder(self, vault: Path) -> None:
        make_tree(vault / "a/notes")
        with storage.tmpfs(vault / "a/notes/mount"):
            assert refused(vault, "a/notes", "b/notes")["code"] == "EBUSY"
            assert refused(vault, "a/notes", "a/notes/mount/notes")["code"] == "EINVAL"


class TestChangedMeanwhile:
    def test_while_it_is_copied(self, vault: Path) -> None:
        """It is copied again, so that nothing is left behind."""
        (vault / "a/one.md").write_text("hello")
        added = {"append": str(vault / "a/one.md"), "text": ", world"}
        done = moved(vault, "a/one.md", "b/one.md", meanwhile={"handle.sync": added})
        assert contents(vault) == {"b/one.md": b"hello, world"}
        assert done["notices"] == []

    def test_when_the_copy_is_ready(self, vault: Path) -> None:
        """Between the copy and Obsidian's second call to rename, which puts it in place."""
        (vault / "a/one.md").write_text("hello")
        added = {"append": str(vault / "a/one.md"), "text": ", world"}
        moved(vault, "a/one.md", "b/one.md", meanwhile={"rename:2": added})
        assert contents(vault) == {"b/one.md": b"hello, world"}

    def test_one_that_is_written_to_all_the_time(self, vault: Path) -> None:
        (vault / "a/one.md").write_text("1")
        more = {"append": str(vault / "a/one.md"), "text": "+1"}
        calls = {f"rename{number}": more for number in ("", ":2", ":3", ":4")}
        done = run(vault, ["rename", "a/one.md", "b/one.md"], meanwhile=calls)
        assert done["outcomes"][0]["code"] == "EBUSY"
        assert contents(vault) == {"a/one.md": b"1+1+1+1+1"}
        assert "being changed" in texts(done)

    @pytest.mark.parametrize("call", ["rename", "handle.write"])
    def test_a_folder_while_it_is_copied(self, vault: Path, call: str) -> None:
        make_tree(vault / "a/notes")
        added = {"append": str(vault / "a/notes/Grüße 📓.md"), "text": ", world"}
        moved(vault, "a/notes", "b/notes", meanwhile={call: added})
        assert (vault / "b/notes/Grüße 📓.md").read_text() == "hello, world"
        assert not (vault / "a/notes").exists()

    def test_after_the_copy_is_in_place(self, vault: Path) -> None:
        """Both are kept, and it is told."""
        make_tree(vault / "a/notes")
        (vault / "a/notes/last.md").write_text("old")
        added = {"append": str(vault / "a/notes/Grüße 📓.md"), "text": ", world"}
        done = moved(vault, "a/notes", "b/notes", meanwhile={"unlink": added})
        assert contents(vault / "a") == {"notes/Grüße 📓.md": b"hello, world"}
        assert (vault / "b/notes/Grüße 📓.md").read_text() == "hello"
        assert "Grüße 📓.md" in texts(done)

    def test_a_new_file_in_the_folder(self, vault: Path) -> None:
        make_tree(vault / "a/notes")
        new = {"create": str(vault / "a/notes/new.md"), "text": "new"}
        done = moved(vault, "a/notes", "b/notes", meanwhile={"unlink": new})
        assert contents(vault / "a") == {"notes/new.md": b"new"}
        assert str(vault / "a/notes") in texts(done)


class TestKills:
    """A process that kills itself before its first, second, … call that changes anything."""

    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_nothing_is_lost(self, vault: Path, kind: str) -> None:
        def make() -> None:
            if kind == "file":
                (vault / "a/notes").write_bytes(b"x" * 1_500_000)
            else:
                (vault / "a/notes/sub").mkdir(parents=True)
                (vault / "a/notes/one.md").write_text("one")
                (vault / "a/notes/sub/two.md").write_bytes(b"x" * 1_500_000)
                (vault / "a/notes/link").symlink_to("one.md")
            age(vault / "a/notes")

        make()
        before = picture(vault / "a/notes")
        number = 0
        done: dict[str, Any] = {}
        while not done:
            number += 1
            done = run(vault, ["rename", "a/notes", "b/notes"], kill=number)
            whole = [picture(vault / folder / "notes") == before for folder in "ab"]
            where = f"killed before call {number}"
            assert any(whole), where
            assert whole[1] or not os.path.lexists(vault / "b/notes"), where
            run(vault)
            assert leftovers(vault) == [], where
            for folder in "ab":
                remove(vault / folder / "notes")
            make()
        assert number > (12 if kind == "file" else 30)


def age(top: Path) -> None:
    """Times that every file system and Node can keep, another for each."""
    for number, path in enumerate([*sorted(top.rglob("*"), reverse=True), top]):
        ns = (1_600_000_000 + number) * 10**9
        os.utime(path, ns=(ns, ns), follow_symlinks=False)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class TestLeftovers:
    def test_only_those_that_nobody_makes_any_more(self, vault: Path) -> None:
        def name(age_hours: float, host: str = HOST) -> str:
            milliseconds = (vault.stat().st_mtime - age_hours * 3600) * 1000
            return f"{RESERVED}note-{host}-1-{base36(int(milliseconds))}-{'0' * 12}"

        old, young = name(25), name(23)
        foreign = [f"{RESERVED}0123456789ab-0", f"{RESERVED}note-x", "note.md"]
        (vault / "a/sub").mkdir()
        make_tree(vault / "a/sub" / old)
        for other in (young, *foreign):
            (vault / "a/sub" / other).touch()
        run(vault)
        assert sorted(os.listdir(vault / "a/sub")) == sorted([young, *foreign])
        for other in (young, *foreign):
            (vault / "a/sub" / other).unlink()


def base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


class TestOnAndOff:
    def test_off(self, vault: Path) -> None:
        (vault / "a/one.md").write_text("hello")
        done = run(vault, ["unload"], ["rename", "a/one.md", "b/one.md"])
        assert done["outcomes"][0]["code"] == "EXDEV"
        assert not done["wrapped"]
        assert run(vault)["wrapped"]

    @pytest.mark.needs_fuse
    def test_nothing_where_the_vault_is_the_agents(self) -> None:
        with served.storage() as mounts, served.serve(mounts) as vault:
            assert not run(vault.path)["wrapped"]
            (vault.path / "alpha/one.md").write_text("hello")
            moved(vault.path, "alpha/one.md", "beta/one.md")
