"""A policy's limits on a real mount: hidden, read-only, read-write, by branch and by part; and changes."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cases import rename
from tests.support.listening import listening, until
from tests.support.vault import Storage, Vault, outcome, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

PATIENCE = 10.0  # seconds
# alpha: read-write, with parts; beta: read-only; gamma: hidden; delta: leads to one part only.
LIMITS = {
    "": "rw",
    "alpha": ["rw", {"secret": "hidden", "archive": ["ro", {"inbox": "rw"}], "a": ["rw", {"b": "hidden"}]}],
    "beta": "ro",
    "gamma": "hidden",
    "delta": [None, {"open": "rw", "shut": "hidden"}],
}  # fmt: skip
NAMES = ("alpha", "beta", "gamma", "delta")


@pytest.fixture(scope="module")
def served(place: Storage) -> Iterator[Vault]:
    branches = {name: place.branch(name) for name in NAMES}
    with serve(place, branches, limits=LIMITS, inline_bytes=1000, cache_seconds=0) as vault:
        yield vault


@pytest.fixture(autouse=True)
def filled(vault: Vault) -> Iterator[None]:
    folders = {
        "alpha": ("secret", "archive", "archive/inbox", "a/b", "plain"),
        "beta": ("folder",),
        "gamma": ("folder",),
        "delta": ("open", "shut", "other"),
    }
    for name, inside in folders.items():
        for folder in inside:
            (vault.backing(name) / folder).mkdir(parents=True)
            (vault.backing(name) / folder / "note").write_text("text")
        (vault.backing(name) / "note").write_text("text")
    yield
    vault.restrict(LIMITS)
    for name in (*NAMES, ""):
        for entry in vault.backing(name).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def writes(path: Path) -> dict[str, Callable[[], object]]:
    """Every way to change something at `path`, a file, and beside it."""
    beside = path.parent / "new"
    return {
        "open": lambda: os.close(os.open(path, os.O_WRONLY)),
        "open rw": lambda: os.close(os.open(path, os.O_RDWR)),
        "truncating open": lambda: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC)),
        "truncate": lambda: os.truncate(path, 0),
        "chmod": lambda: os.chmod(path, 0o600),
        "chown": lambda: os.chown(path, 1, 1),
        "utime": lambda: os.utime(path),
        "setxattr": lambda: os.setxattr(path, "user.x", b"x"),
        "removexattr": lambda: os.removexattr(path, "user.x"),
        "unlink": lambda: os.unlink(path),
        "create": lambda: os.close(os.open(beside, os.O_WRONLY | os.O_CREAT)),
        "mkdir": lambda: os.mkdir(beside),
        "mknod": lambda: os.mknod(beside),
        "mkfifo": lambda: os.mkfifo(beside),
        "symlink": lambda: os.symlink("x", beside),
        "rename": lambda: os.rename(path, beside),
        "link": lambda: os.link(path, beside),
    }


class TestHidden:
    def test_nothing_of_it_is_listed(self, vault: Vault) -> None:
        assert names(vault.path) == ["alpha", "beta", "delta"]
        assert names(vault.path / "alpha") == ["a", "archive", "note", "plain"]
        assert names(vault.path / "alpha/a") == ["note"] or names(vault.path / "alpha/a") == []
        assert names(vault.path / "delta") == ["open"]

    @pytest.mark.parametrize(
        "path", ["gamma", "gamma/note", "gamma/folder/note", "alpha/secret", "alpha/secret/note",
                 "alpha/a/b", "delta/note", "delta/shut", "delta/other/note", "alpha/SECRET",
                 "alpha/plain/../secret/note", "alpha/ſecret"],
    )  # fmt: skip
    def test_nothing_of_it_is_found(self, vault: Vault, path: str) -> None:
        for call in (os.stat, os.listdir, os.readlink, lambda p: os.open(p, os.O_PATH)):
            assert outcome(lambda call=call: call(vault.path / path)) == "ENOENT"  # type: ignore[misc]

    @pytest.mark.parametrize("path", ["alpha/secret", "alpha/Secret", "delta/new", "gamma"])
    def test_nothing_can_be_put_in_its_place(self, vault: Vault, path: str) -> None:
        place, plain = vault.path / path, vault.path / "alpha/plain"
        refused = {"ENOENT", "EACCES", "EROFS"}
        found = {
            outcome(lambda: os.close(os.open(place, os.O_WRONLY | os.O_CREAT))),
            outcome(lambda: os.mkdir(place)),
            outcome(lambda: os.mknod(place)),
            outcome(lambda: os.symlink("x", place)),
            outcome(lambda: os.link(plain / "note", place)),
            outcome(lambda: os.rename(plain, place)),
            outcome(lambda: os.rename(plain / "note", place)),
        }
        assert found & (refused | {"EEXIST"}) == found
        assert (vault.backing("alpha") / "secret/note").read_text() == "text"
        assert not (vault.backing("alpha") / "Secret").exists()
        assert not (vault.backing("delta") / "new").exists()

    def test_a_link_that_leads_to_it_leads_nowhere(self, vault: Vault) -> None:
        (vault.path / "alpha/planted").symlink_to("secret/note")
        (vault.path / "alpha/absolute").symlink_to(vault.path / "gamma/note")
        assert outcome((vault.path / "alpha/planted").read_text) == "ENOENT"
        assert outcome((vault.path / "alpha/absolute").read_text) == "ENOENT"

    def test_what_it_lies_in_cannot_be_taken_from_under_the_rule(self, vault: Vault) -> None:
        for name in ("a", "archive"):
            old = vault.path / "alpha" / name
            assert outcome(lambda old=old: os.rename(old, vault.path / "alpha/away")) == "EBUSY"  # type: ignore[misc]
            assert outcome(lambda old=old: os.rename(old, vault.path / "away")) == "EBUSY"  # type: ignore[misc]
            exchange = outcome(
                lambda old=old: rename(old, vault.path / "alpha/plain", 2)  # type: ignore[misc]
            )
            assert exchange == "EBUSY"
            assert outcome(lambda old=old: os.rmdir(old)) == "EBUSY"  # type: ignore[misc]


class TestReadOnly:
    @pytest.mark.parametrize("path", ["beta/note", "beta/folder/note", "alpha/archive/note"])
    def test_everything_is_read_and_nothing_is_changed(self, vault: Vault, path: str) -> None:
        assert (vault.path / path).read_text() == "text"
        for what, step in writes(vault.path / path).items():
            assert outcome(step) == "EROFS", what
        assert (vault.path / path).read_text() == "text"

    def test_a_part_may_be_written(self, vault: Vault) -> None:
        (vault.path / "alpha/archive/inbox/new").write_text("new")
        assert (vault.backing("alpha") / "archive/inbox/new").read_text() == "new"

    def test_moves_obey_both_sides(self, vault: Vault) -> None:
        alpha, beta = vault.path / "alpha", vault.path / "beta"
        assert outcome(lambda: os.rename(alpha / "note", beta / "new")) == "EROFS"
        assert outcome(lambda: os.rename(beta / "note", alpha / "new")) == "EROFS"
        assert outcome(lambda: os.rename(alpha / "archive/note", alpha / "new")) == "EROFS"
        assert outcome(lambda: os.link(alpha / "archive/note", alpha / "new")) == "EROFS"
        os.rename(alpha / "note", vault.path / "delta/open/moved")
        assert (vault.backing("delta") / "open/moved").read_text() == "text"
        assert outcome(lambda: os.rename(alpha / "plain/note", vault.path / "delta/new")) == "EROFS"


def test_the_vault_of_a_user_who_may_write_everything_is_as_without_limits(vault: Vault) -> None:
    vault.restrict(dict.fromkeys(("", *NAMES), "rw"))
    for what, step in writes(vault.path / "gamma/note").items():
        if what in ("rename", "link"):
            continue  # the name is taken, or the file gone, by then
        found = outcome(step)
        assert found in (None, "ENODATA", "EEXIST", "ENOENT"), (what, found)


class TestChanges:
    def test_what_is_revoked_vanishes_at_once(self, vault: Vault) -> None:
        plain = vault.path / "alpha/plain"
        assert (plain / "note").read_text() == "text"
        assert names(plain) == ["note"]
        vault.restrict(LIMITS | {"alpha": ["rw", {"plain": "hidden"}]})
        assert "plain" not in names(vault.path / "alpha")
        assert outcome((plain / "note").stat) == "ENOENT"
        assert outcome((plain / "note").read_text) == "ENOENT"

    def test_what_is_granted_appears(self, vault: Vault) -> None:
        assert outcome(lambda: os.stat(vault.path / "gamma")) == "ENOENT"
        vault.restrict(LIMITS | {"gamma": "ro"})
        assert "gamma" in names(vault.path)
        assert (vault.path / "gamma/note").read_text() == "text"
        assert outcome(lambda: (vault.path / "gamma/note").write_text("x")) == "EROFS"
        vault.restrict(LIMITS | {"gamma": "rw"})
        (vault.path / "gamma/note").write_text("x")

    def test_open_files_give_errors(self, vault: Vault) -> None:
        path = vault.path / "alpha/plain/note"
        fd = os.open(path, os.O_RDWR)
        with mmap.mmap(fd, 4, access=mmap.ACCESS_READ) as mapped:
            assert (os.pread(fd, 4, 0), mapped[:]) == (b"text", b"text")
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        vault.restrict(LIMITS | {"alpha": "ro"})
        assert os.pread(fd, 4, 0) == b"text"
        assert outcome(lambda: os.pwrite(fd, b"x", 0)) == "EROFS"
        assert outcome(lambda: os.ftruncate(fd, 0)) == "EROFS"
        vault.restrict(LIMITS | {"alpha": "hidden"})
        assert outcome(lambda: os.pread(fd, 4, 0)) == "EIO"
        assert outcome(lambda: os.pwrite(fd, b"x", 0)) == "EIO"
        assert outcome(lambda: os.fstat(fd)) == "EIO"
        assert outcome(lambda: os.listdir(folder)) in ("EIO", "ENOENT")
        inside = outcome(lambda: os.open("note", os.O_RDONLY, dir_fd=folder))
        assert inside in ("EIO", "ENOENT")
        os.close(folder)
        os.close(fd)
        assert (vault.backing("alpha") / "plain/note").read_text() == "text"

    def test_a_process_that_works_there_gets_no_further(self, vault: Vault) -> None:
        shell = subprocess.Popen(
            ["sh", "-c", "read go; cat note; cat ../note; ls; echo end"],
            cwd=vault.path / "alpha/plain",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        vault.restrict(LIMITS | {"alpha": "hidden"})
        out, _ = shell.communicate("go\n", timeout=PATIENCE)
        assert "text" not in out
        assert out.endswith("end\n")

    def test_a_move_out_of_it_is_stopped_before_its_commit(self, vault: Vault) -> None:
        source = vault.backing("alpha") / "plain/large"
        source.write_bytes(b"x" * 100_000)
        vault.expect("alpha/plain/large is not moved: access has ended")
        with vault.held_at("staged"):
            os.rename(vault.path / "alpha/plain/large", vault.path / "delta/open/large")
            assert (vault.path / "delta/open/large").stat().st_size == 100_000
            vault.restrict(LIMITS | {"alpha": "ro"})
        deadline = time.monotonic() + PATIENCE
        while names(vault.backing("delta") / "open") != ["note"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert source.stat().st_size == 100_000
        assert (vault.path / "alpha/plain/large").stat().st_size == 100_000
        assert not (vault.path / "delta/open/large").exists()

    def test_so_is_one_whose_caller_waits(self, vault: Vault) -> None:
        vault.expect("alpha/plain/note is not moved: access has ended")
        old, new = vault.path / "alpha/plain/note", vault.path / "delta/open/moved"
        answers: list[object] = []
        moving = threading.Thread(
            target=lambda: answers.append(outcome(lambda: os.rename(old, new)))
        )
        # The kernel keeps the folders locked meanwhile, so forgetting what it knows has to wait.
        restricting = threading.Thread(target=lambda: vault.restrict(LIMITS | {"alpha": "ro"}))
        with vault.held_at("staged"):
            moving.start()
            until(lambda: vault.has_reached("staged"), True)
            restricting.start()
            until(lambda: outcome(lambda: os.utime(vault.path / "alpha/note")), "EROFS")
        for thread in (moving, restricting):
            thread.join(PATIENCE)
        assert answers == ["EACCES"]
        assert names(vault.backing("delta") / "open") == ["note"]
        assert (vault.backing("alpha") / "plain/note").read_text() == "text"


def test_what_the_kernel_remembers_is_forgotten(place: Storage) -> None:
    for name in ("alpha", "beta"):
        (place.branch(name) / "folder").mkdir(exist_ok=True)
        (place.branch(name) / "folder/note").write_text("text")
    branches = {name: place.branch(name) for name in ("alpha", "beta")}
    limits = {"": "rw", "alpha": "rw", "beta": "hidden"}
    with serve(place, branches, limits=limits, cache_seconds=60) as vault:
        note, other = vault.path / "alpha/folder/note", vault.path / "beta/folder/note"
        for _ in range(2):
            assert (note.read_text(), names(note.parent)) == ("text", ["note"])
            assert outcome(other.read_text) == "ENOENT"
            assert names(vault.path) == ["alpha"]
            vault.restrict({"": "rw", "alpha": "hidden", "beta": "rw"})
            assert outcome(note.stat) == outcome(note.read_text) == "ENOENT"
            assert (other.read_text(), names(other.parent)) == ("text", ["note"])
            assert names(vault.path) == ["beta"]
            vault.restrict({"": "rw", "alpha": ["rw", {"folder": "ro"}], "beta": "hidden"})
            assert outcome(lambda: note.write_text("x")) == "EROFS"
            vault.restrict(limits)


def test_refusals_are_told(vault: Vault) -> None:
    assert outcome(lambda: os.stat(vault.path / "alpha/secret")) == "ENOENT"
    assert outcome(lambda: os.unlink(vault.path / "beta/note")) == "EROFS"
    log = vault.log.read_text()
    assert "refused lookup alpha/secret 0" in log
    assert "refused unlink beta/note 0" in log


SWAPPING = """
import ctypes, sys
libc = ctypes.CDLL(None)
while True:
    libc.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2)
"""


def test_a_race_of_links_does_not_get_in(vault: Vault) -> None:
    """A folder that is swapped for a symbolic link to what is hidden, while it is walked through."""
    base = vault.path / "alpha/plain"
    (base / "real").mkdir()
    (base / "real/note").write_text("mine")
    (base / "link").symlink_to("../secret")
    swapper = subprocess.Popen(
        [
            "python3",
            "-c",
            SWAPPING,
            base / "real",
            base / "link",
        ]
    )
    seen = set()
    try:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            seen.add(outcome((base / "real/note").read_text))
            seen.add(outcome(lambda: os.close(os.open(base / "real/note", os.O_WRONLY))))
    finally:
        swapper.kill()
        swapper.wait()
    assert "mine" in seen
    assert seen <= {"mine", None, "ENOENT", "ENOTDIR", "ESTALE", "ELOOP"}
    assert (vault.backing("alpha") / "secret/note").read_text() == "text"


def test_nobody_hears_of_foreign_changes_that_are_hidden(vault: Vault) -> None:
    """Of what is shown read-only they do."""
    until(lambda: names(vault.path / "alpha/archive"), ["inbox", "note"])
    with (
        listening(vault.path / "alpha") as alpha,
        listening(vault.path / "alpha/archive") as archive,
    ):
        time.sleep(0.3)
        before = alpha.events(), archive.events()
        os.rename(vault.backing("alpha") / "secret", vault.backing("alpha") / "renamed")
        os.rename(vault.backing("alpha") / "renamed", vault.backing("alpha") / "secret")
        (vault.backing("alpha") / "archive/new").write_text("new")
        until(lambda: "CREATE new" in archive.events(), True)
        time.sleep(0.3)
        assert not [e for e in alpha.events()[len(before[0]) :] if "secret" in e]
