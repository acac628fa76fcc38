"""Moves in the background: the new name at once, the bytes later, and everything that may come between."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from session_agent.moves.names import RESERVED_PREFIX
from tests.support.cases import rename
from tests.support.ends import behind, folders_in, pair_name
from tests.support.vault import Storage, Vault, outcome, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

PAIRS = [("alpha", "beta"), ("gamma", "delta"), ("", "alpha")]
PATIENCE = 10.0  # seconds
MOVE_XATTR = "user.session_agent.move"


@pytest.fixture(scope="module")
def served(place: Storage) -> Iterator[Vault]:
    with serve(place, inline_bytes=1000) as vault:
        yield vault


@pytest.fixture(params=PAIRS, ids=pair_name)
def ends(vault: Vault, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    with folders_in(vault, request.param) as folders:
        yield folders


DATA = b"0123456789" * 1000


def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.005)


def arrived(vault: Vault, old: Path, new: Path) -> None:
    """The move is over, and everything is where the vault shows it."""
    until(lambda: os.path.lexists(behind(vault, new)) and not os.path.lexists(behind(vault, old)))
    until(lambda: not _reserved(vault))
    assert not os.path.lexists(old)
    assert os.path.lexists(new)


def stayed(vault: Vault, old: Path, new: Path) -> None:
    """The move is off."""
    until(lambda: not _reserved(vault))
    until(lambda: os.path.lexists(old))
    assert os.path.lexists(behind(vault, old))
    assert not os.path.lexists(behind(vault, new))
    until(lambda: not os.path.lexists(new))


def _reserved(vault: Vault) -> list[str]:
    prefix = os.fsdecode(RESERVED_PREFIX)
    return [
        name
        for branch in ("", *vault.branches)
        for _, folders, files in os.walk(vault.backing(branch))
        for name in (*folders, *files)
        if name.startswith(prefix)
    ]


@contextmanager
def moving(vault: Vault, old: Path, new: Path, point: str = "staged") -> Iterator[None]:
    """The move has been accepted, and gets no further than to that point while the block lasts."""
    with vault.held_at(point):
        rename(old, new)
        yield


def test_the_new_name_at_once(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    number = os.stat(old).st_ino
    with moving(vault, old, new):
        assert not old.exists()
        assert os.listdir(ends[0]) == []
        assert os.listdir(ends[1]) == ["new"]
        assert new.read_bytes() == DATA
        assert os.stat(new).st_ino == number
        assert behind(vault, old).read_bytes() == DATA
        assert not behind(vault, new).exists()
    arrived(vault, old, new)
    assert new.read_bytes() == behind(vault, new).read_bytes() == DATA
    assert os.stat(new).st_ino == number


def test_a_folder(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    (old / "below").mkdir(parents=True)
    (old / "below/note").write_bytes(DATA)
    os.link(old / "below/note", old / "link")
    (old / "way").symlink_to("below")
    with moving(vault, old, new):
        assert (new / "below/note").read_bytes() == DATA
        assert sorted(os.listdir(new)) == ["below", "link", "way"]
        assert os.path.samefile(new / "..", ends[1])
        (new / "late").write_bytes(b"late")
        (new / "below/note").write_bytes(b"changed")
        (new / "more").mkdir()
        os.rename(new / "link", new / "more/link")
        os.unlink(new / "way")
        assert not old.exists()
    arrived(vault, old, new)
    assert (behind(vault, new) / "late").read_bytes() == b"late"
    assert (behind(vault, new) / "below/note").read_bytes() == b"changed"
    assert (behind(vault, new) / "more/link").read_bytes() == b"changed"
    assert sorted(os.listdir(behind(vault, new))) == ["below", "late", "more"]
    assert os.path.samefile(new / "below/note", new / "more/link")


def test_writes_while_it_moves(vault: Vault, ends: tuple[Path, Path]) -> None:
    """By a handle from before, one from the move's time, by truncating, and after the end."""
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    with open(old, "r+b", buffering=0) as before:
        with moving(vault, old, new):
            os.pwrite(before.fileno(), b"before", 0)
            with open(new, "r+b", buffering=0) as during:
                os.pwrite(during.fileno(), b"during", 100)
            os.truncate(new, 9000)
            os.chmod(new, 0o640)
            os.utime(new, ns=(1, 5_000_000_001))
            expected = b"before" + DATA[6:100] + b"during" + DATA[106:9000]
            assert new.read_bytes() == expected
        arrived(vault, old, new)
        assert behind(vault, new).read_bytes() == expected
        assert os.stat(behind(vault, new)).st_mtime_ns == 5_000_000_001
        assert oct(os.stat(behind(vault, new)).st_mode) == "0o100640"
        os.pwrite(before.fileno(), b"after", 200)
        assert behind(vault, new).read_bytes()[200:205] == b"after"


def test_fsync_waits_for_the_bytes(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    for what in (new, ends[1]):
        old.write_bytes(DATA)
        with vault.held_at("staged"):
            rename(old, new)
            fd = os.open(what, os.O_RDONLY)
            pid = os.fork()
            if pid == 0:
                os._exit(0 if outcome(lambda: os.fsync(fd)) is None else 1)  # noqa: B023 - at once
            time.sleep(0.2)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), f"fsync of {what} did not wait"
        assert os.waitpid(pid, 0) == (pid, 0)
        os.close(fd)
        assert behind(vault, new).read_bytes() == DATA
        new.unlink()


def test_renamed_again(vault: Vault, ends: tuple[Path, Path]) -> None:
    """In its new folder, to a third branch, and back to where it came from."""
    old, new = ends[0] / "old", ends[1] / "new"
    with folders_in(vault, ("alpha" if "gamma" in str(ends[0]) else "gamma", "tiny")) as others:
        for again in (ends[1] / "newer", others[0] / "third", ends[0] / "back", old):
            old.write_bytes(DATA)
            number = os.stat(old).st_ino
            with moving(vault, old, new):
                rename(new, again)
                assert not os.path.lexists(new)
                assert again.read_bytes() == DATA
                assert os.stat(again).st_ino == number
            until(lambda: not _reserved(vault))
            until(lambda to=again: behind(vault, to).exists())  # type: ignore[misc]  # a default
            until(lambda to=again: not behind(vault, old).exists() or to == old)  # type: ignore[misc]
            assert again.read_bytes() == DATA
            again.unlink()
            assert [os.listdir(behind(vault, end)) for end in ends] == [[], []]


def test_a_rename_that_is_refused_lets_it_go_on(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    (ends[1] / "folder").mkdir()
    with moving(vault, old, new):
        assert outcome(lambda: rename(new, ends[1] / "folder")) == "EISDIR"
        assert outcome(lambda: rename(new, ends[0] / "x" / "y")) == "ENOENT"
        assert new.read_bytes() == DATA
        assert not old.exists()
    arrived(vault, old, new)


def test_removed_while_it_moves(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    new.write_bytes(b"what was there")
    with open(old, "rb") as file:
        with moving(vault, old, new):
            new.unlink()
            assert not new.exists()
            assert not old.exists()
            assert os.listdir(ends[1]) == []
            assert file.read() == DATA
        until(lambda: not _reserved(vault))
    assert [os.listdir(behind(vault, end)) for end in ends] == [[], []]
    (ends[0] / "tree/sub").mkdir(parents=True)
    (ends[0] / "tree/big").write_bytes(DATA)
    with moving(vault, ends[0] / "tree", ends[1] / "tree"):
        assert outcome(lambda: os.rmdir(ends[1] / "tree")) == "ENOTEMPTY"
        os.unlink(ends[1] / "tree/big")
        os.rmdir(ends[1] / "tree/sub")
        os.rmdir(ends[1] / "tree")
        assert [os.listdir(end) for end in ends] == [[], []]
    until(lambda: not _reserved(vault))
    assert [os.listdir(behind(vault, end)) for end in ends] == [[], []]


def test_what_it_replaces(vault: Vault, ends: tuple[Path, Path]) -> None:
    """Gone from sight at once, for whoever does not have it open; there again if the move fails."""
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    new.write_bytes(b"what was there")
    with open(new, "rb") as file:
        with moving(vault, old, new):
            assert new.read_bytes() == DATA
            assert file.read() == b"what was there"
            assert os.fstat(file.fileno()).st_size == 14
            assert behind(vault, new).read_bytes() == b"what was there"
        arrived(vault, old, new)
        assert new.read_bytes() == behind(vault, new).read_bytes() == DATA
        file.seek(0)
        assert file.read() == b"what was there"


def test_replaced_while_it_moves(vault: Vault, ends: tuple[Path, Path]) -> None:
    """The other one waits its turn."""
    old, new, other = ends[0] / "old", ends[1] / "new", ends[1] / "other"
    old.write_bytes(DATA)
    other.write_bytes(b"other")
    with moving(vault, old, new):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if outcome(lambda: os.rename(other, new)) is None else 1)
        time.sleep(0.1)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert new.read_bytes() == b"other"
    assert os.listdir(ends[1]) == ["new"]
    until(lambda: not _reserved(vault))
    until(lambda: os.listdir(behind(vault, ends[0])) == [])


def test_the_old_name_is_not_free_yet(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    (ends[0] / "other").write_bytes(b"")
    with moving(vault, old, new):
        assert outcome(lambda: old.write_bytes(b"")) == "EBUSY"
        assert outcome(lambda: os.mkdir(old)) == "EBUSY"
        assert outcome(lambda: os.rename(ends[0] / "other", old)) == "EBUSY"
        assert outcome(lambda: os.unlink(old)) == "ENOENT"
        os.unlink(ends[0] / "other")
        assert outcome(lambda: os.rmdir(ends[0])) == "EBUSY"
        assert outcome(lambda: os.rmdir(ends[1])) == "ENOTEMPTY"
    arrived(vault, old, new)
    old.write_bytes(b"again")


def test_folders_above_are_renamed(vault: Vault, ends: tuple[Path, Path]) -> None:
    folders = [end / "folder" for end in ends]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "old").write_bytes(DATA)
    with moving(vault, folders[0] / "old", folders[1] / "new"):
        for end in ends:
            os.rename(end / "folder", end / "renamed")
        assert (ends[1] / "renamed/new").read_bytes() == DATA
        assert os.listdir(ends[0] / "renamed") == []
        assert os.listdir(ends[1] / "renamed") == ["new"]
    arrived(vault, ends[0] / "renamed/old", ends[1] / "renamed/new")


def test_moves_that_touch_each_other_keep_their_order(
    vault: Vault, ends: tuple[Path, Path]
) -> None:
    """Something is moved out of a folder under way, into it, and the folder above is moved as well."""
    tree, there = ends[0] / "tree", ends[1] / "there"
    tree.mkdir()
    (tree / "big").write_bytes(DATA)
    (tree / "out").write_bytes(b"out")
    (ends[1] / "in").write_bytes(b"in")
    steps = [
        (there / "out", ends[1] / "out"),
        (ends[1] / "in", there / "in"),
        (ends[1] / "there", ends[0] / "again"),
    ]
    with moving(vault, tree, there):
        pids = []
        for source, target in steps:
            pid = os.fork()
            if pid == 0:
                os._exit(0 if outcome(lambda: rename(source, target)) is None else 1)  # noqa: B023
            pids.append(pid)
            time.sleep(0.1)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    until(lambda: not _reserved(vault))
    again = ends[0] / "again"
    until(lambda: behind(vault, again).exists())
    assert sorted(os.listdir(again)) == ["big", "in"]
    assert (again / "in").read_bytes() == b"in"
    assert (ends[1] / "out").read_bytes() == b"out"
    assert not there.exists()
    assert not tree.exists()


def test_no_links_to_what_is_on_its_way(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    with moving(vault, old, new):
        for folder in ends:
            assert outcome(lambda to=folder: os.link(new, to / "link")) == "EXDEV"  # type: ignore[misc]
    arrived(vault, old, new)


def test_the_extended_attribute_tells(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    old.mkdir()
    (old / "note").write_bytes(DATA)
    with moving(vault, old, new):
        until(lambda: json.loads(os.getxattr(new, MOVE_XATTR))["files"] == 2)
        told = json.loads(os.getxattr(new / "note", MOVE_XATTR))
        assert told["bytes"] == told["total_bytes"] == len(DATA)
        assert told["state"] == "staging"
        assert told["to"].endswith("folder/new")
        assert "user.session_agent.move" in os.listxattr(new)
    arrived(vault, old, new)
    until(lambda: "user.session_agent.move" not in os.listxattr(new))
    assert outcome(lambda: os.getxattr(new, MOVE_XATTR)) == "ENODATA"


def test_a_target_without_room(vault: Vault) -> None:
    with folders_in(vault, ("alpha", "tiny")) as ends:
        old, new = ends[0] / "old", ends[1] / "new"
        old.write_bytes(bytes(3 << 20))
        vault.expect("cannot be moved: No space left on device")
        rename(old, new)
        stayed(vault, old, new)
        assert old.read_bytes() == bytes(3 << 20)


def test_the_source_goes_behind_the_vault(vault: Vault, ends: tuple[Path, Path]) -> None:
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    new.write_bytes(b"what was there")
    vault.expect("cannot be moved: No such file or directory")
    with moving(vault, old, new):
        until(lambda: _reserved(vault) != [])
        behind(vault, old).unlink()
    until(lambda: not _reserved(vault))
    until(lambda: outcome(new.read_bytes) == b"what was there")


def test_the_source_changes_behind_the_vault(vault: Vault, ends: tuple[Path, Path]) -> None:
    """Before the commit the change goes along; after it both versions are kept."""
    old, new = ends[0] / "old", ends[1] / "new"
    old.write_bytes(DATA)
    with moving(vault, old, new):
        behind(vault, old).write_bytes(b"changed")
    arrived(vault, old, new)
    assert new.read_bytes() == b"changed"
    old.write_bytes(DATA)
    vault.expect("the old version is kept")
    with vault.held_at("retiring"):
        rename(old, ends[1] / "other")
        until((behind(vault, ends[1]) / "other").exists)
        behind(vault, old).write_bytes(b"changed late")
    until(old.exists)
    assert (ends[1] / "other").read_bytes() == DATA
    assert old.read_bytes() == b"changed late"


def _killed_at(place: Storage, state: Path, point: str) -> None:
    """A move that gets no further, and then the vault is killed."""
    with serve(place, inline_bytes=1000, state=state) as vault:
        (vault.path / "alpha/old").mkdir()
        (vault.path / "alpha/old/note").write_bytes(DATA)
        with vault.held_at(point):
            pid = os.fork()
            if pid == 0:
                outcome(lambda: rename(vault.path / "alpha/old", vault.path / "delta/new"))
                os._exit(0)
            time.sleep(0.3)
            os.kill(vault.pid, 9)
        os.waitpid(pid, 0)


def test_killed_and_started_again(place: Storage, tmp_path: Path) -> None:
    """The new name is there from the first moment on, and the move goes on."""
    for point in ("accepted", "staging", "staged", "committing", "committed", "retiring"):
        with pytest.raises(AssertionError, match="did not end as told"):
            _killed_at(place, tmp_path, point)
        with serve(place, inline_bytes=1000, state=tmp_path) as vault:
            old, new = vault.path / "alpha/old", vault.path / "delta/new"
            assert (new / "note").read_bytes() == DATA, point
            assert not old.exists()
            arrived(vault, old, new)
            os.unlink(new / "note")
            os.rmdir(new)


def test_stopped_and_started_again(place: Storage, tmp_path: Path) -> None:
    hold = tmp_path / "hold-staging"
    hold.touch()
    with serve(place, inline_bytes=1000, state=tmp_path) as vault:
        (vault.path / "alpha/old").write_bytes(DATA)
        rename(vault.path / "alpha/old", vault.path / "delta/new")
        threading.Timer(1.5, hold.unlink).start()  # more than its grace period
    with serve(place, inline_bytes=1000, state=tmp_path) as vault:
        old, new = vault.path / "alpha/old", vault.path / "delta/new"
        assert new.read_bytes() == DATA
        arrived(vault, old, new)
        new.unlink()


def test_a_move_of_nothing_but_errors(vault: Vault, ends: tuple[Path, Path]) -> None:
    old = ends[0] / "old"
    old.write_bytes(DATA)
    (ends[1] / "folder").mkdir()
    assert outcome(lambda: rename(old, ends[1] / "folder")) == "EISDIR"
    assert outcome(lambda: rename(old, vault.path / "readonly/new")) == errno.errorcode[errno.EROFS]
    assert old.read_bytes() == DATA


def test_it_pauses_while_the_disk_is_short(vault: Vault) -> None:
    with folders_in(vault, ("alpha", "delta")) as ends:
        old, new = ends[0] / "old", ends[1] / "new"
        old.write_bytes(bytes(1 << 20))
        room = os.statvfs(vault.backing("delta"))
        filler = vault.backing("delta") / "filler"
        with moving(vault, old, new, "staging"):
            with open(filler, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - (2 << 20))
            until(lambda: "little room" in json.loads(os.getxattr(new, MOVE_XATTR))["paused"])
        time.sleep(0.5)
        assert not behind(vault, new).exists()
        assert new.read_bytes() == bytes(1 << 20)
        filler.unlink()
        arrived(vault, old, new)
