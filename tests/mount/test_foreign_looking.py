"""Where nothing tells what others change (remote branches, too many folders) it is found by looking."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.listening import listening, until
from tests.support.vault import Storage, Vault, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

PATIENCE = 20.0
QUIET = 1.6  # seconds in which a folder that has just changed is looked at again


@pytest.fixture(scope="module", params=["remote", "too many"])
def served(place: Storage, request: pytest.FixtureRequest) -> Iterator[Vault]:
    """A branch on the ext4, which is treated as a cloud drive or has more folders than can be watched."""
    remote = request.param == "remote"
    name = "remote" if remote else "local"
    with serve(
        place, {name: place.branch("alpha")}, watches=None if remote else 1, remote_polls=600
    ) as vault:
        if not remote:
            vault.expect("no more folders can be watched")
        with vault.watched():
            os.listdir(vault.path / name)
            yield vault


@pytest.fixture
def places(
    vault: Vault,
) -> Iterator[tuple[Path, Path]]:
    """A folder in the vault that a program has listed, and behind it; of another name each time."""
    branch = next(name for name in vault.branches if name)
    behind = Path(tempfile.mkdtemp(dir=vault.branches[branch]))
    (behind / "below").mkdir()
    (behind / "note").write_bytes(b"1")
    (behind / "other").write_bytes(b"22")
    shown = vault.path / branch / behind.name
    until(shown.exists, True)
    assert sorted(os.listdir(shown)) == ["below", "note", "other"]
    os.listdir(shown / "below")
    yield shown, behind
    shutil.rmtree(behind)


def test_what_others_do(places: tuple[Path, Path]) -> None:
    shown, behind = places
    with listening(shown) as listener:
        (behind / "new").write_bytes(b"3")
        (behind / "folder").mkdir()
        wanted = {"CREATE new", "CLOSE_WRITE,CLOSE new", "CREATE,ISDIR folder"}
        until(lambda: set(listener.events()), wanted, PATIENCE)
        assert (shown / "new").read_bytes() == b"3"
        (behind / "note").write_bytes(b"changed")
        os.unlink(behind / "other")
        wanted |= {"MODIFY note", "CLOSE_WRITE,CLOSE note", "DELETE other"}
        until(lambda: set(listener.events()), wanted, PATIENCE)
        assert (shown / "note").read_bytes() == b"changed"
        os.rename(behind / "new", behind / "newer")
        os.rmdir(behind / "folder")
        wanted |= {"MOVED_FROM new", "MOVED_TO newer", "DELETE,ISDIR folder"}
        until(lambda: set(listener.events()), wanted, PATIENCE)
        assert len(listener.events()) == len(wanted), "each of them once"
        os.chmod(behind / "note", 0o600)
        until(lambda: listener.events()[-1], "ATTRIB note", PATIENCE)
    assert sorted(os.listdir(shown)) == ["below", "newer", "note"]


def test_in_a_folder_that_was_never_listed(vault: Vault, places: tuple[Path, Path]) -> None:
    """What a program has looked up there is known all the same."""
    shown, behind = places
    (behind / "below/deep").mkdir()
    (behind / "below/deep/note").write_bytes(b"1")
    until((shown / "below/deep/note").exists, True)
    with listening(shown / "below/deep") as listener:
        time.sleep(QUIET)  # it has been looked at once by then
        (behind / "below/deep/note").write_bytes(b"changed")
        until(lambda: "MODIFY note" in listener.events(), True, PATIENCE)


def test_what_the_vault_does_is_no_news(places: tuple[Path, Path]) -> None:
    shown, behind = places
    with listening(shown) as listener, listening(shown / "below") as below:
        (shown / "own").write_bytes(b"own" * 100_000)
        (shown / "note").write_bytes(b"own")
        os.truncate(shown / "other", 1)
        os.rename(shown / "own", shown / "below/renamed")
        os.mkdir(shown / "folder")
        time.sleep(QUIET)
        os.rmdir(shown / "folder")
        os.unlink(shown / "other")
        time.sleep(0.2)
        heard = listener.events(), below.events()
        time.sleep(2 * QUIET)
        assert (listener.events(), below.events()) == heard
        # Nor is what others do to the same names taken for the vault's doing.
        (behind / "note").write_bytes(b"theirs")
        (behind / "other").write_bytes(b"made anew")
        os.unlink(behind / "below/renamed")
        until(lambda: {"MODIFY note", "CREATE other"} <= set(listener.events()), True, PATIENCE)
        until(lambda: below.events()[-1], "DELETE renamed", PATIENCE)


def test_a_safe_save_and_then_others(places: tuple[Path, Path]) -> None:
    """What somebody else writes soon after the vault has saved the same file is news."""
    shown, behind = places
    with listening(shown) as listener:
        (shown / "tmp").write_bytes(b"saved here")
        os.rename(shown / "tmp", shown / "note")
        time.sleep(2 * QUIET)
        own = ["CREATE tmp", "MODIFY tmp", "CLOSE_WRITE,CLOSE tmp", "MOVED_FROM tmp"]
        assert listener.events() == [*own, "MOVED_TO note"]
        (behind / "note").write_bytes(b"and there, a moment later")
        until(lambda: listener.events()[5:6], ["MODIFY note"], PATIENCE)


def test_the_files_themselves_are_not_touched(places: tuple[Path, Path]) -> None:
    shown, behind = places
    with listening(shown) as listener:
        (behind / "new").write_bytes(b"3")
        before = os.stat(behind / "new")
        until(lambda: "CLOSE_WRITE,CLOSE new" in listener.events(), True, PATIENCE)
        time.sleep(0.2)
        after = os.stat(behind / "new")
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert after.st_nlink == 1


def test_moves_between_branches_are_no_news(place: Storage) -> None:
    branches = {"remote": place.branch("beta"), "local": place.branch("gamma")}
    with serve(place, branches, remote_polls=600) as vault:
        (vault.path / "local/tree").mkdir()
        (vault.path / "local/tree/a").write_bytes(b"1")
        assert os.listdir(vault.path / "remote") == os.listdir(place.branch("beta"))
        with listening(vault.path / "remote") as listener:
            os.rename(vault.path / "local/tree", vault.path / "remote/tree")
            time.sleep(2 * QUIET)
            os.rename(vault.path / "remote/tree", vault.path / "local/tree")
            time.sleep(2 * QUIET)
            assert listener.events() == ["MOVED_TO,ISDIR tree", "MOVED_FROM,ISDIR tree"]
            (place.branch("beta") / "tree").mkdir()
            until(lambda: listener.events()[2:], ["CREATE,ISDIR tree"], PATIENCE)
        os.rmdir(place.branch("beta") / "tree")


def test_no_more_looks_than_are_allowed(place: Storage) -> None:
    """Forty folders are known, and thirty looks a minute to be had."""
    behind = place.branch("beta") / "many"
    for number in range(40):
        (behind / f"{number}").mkdir(parents=True)
    with serve(place, {"remote": place.branch("beta")}, remote_polls=30) as vault:
        for number in range(40):
            assert os.listdir(vault.path / f"remote/many/{number}") == []
        for number in range(40):  # the access time of a folder tells when it was last read
            os.utime(behind / f"{number}", (1, 1))
        start = time.monotonic()
        time.sleep(9.0)
        looked = sum(os.stat(behind / f"{number}").st_atime > 1 for number in range(40))
        assert 1 <= looked <= 1 + (time.monotonic() - start) / 2


def test_none_if_none_are_allowed(place: Storage) -> None:
    with serve(place, {"remote": place.branch("beta")}, remote_polls=0) as vault:
        os.listdir(vault.path / "remote")
        with listening(vault.path / "remote") as listener:
            (place.branch("beta") / "unseen").touch()
            time.sleep(2 * QUIET)
            assert listener.events() == []
        os.unlink(place.branch("beta") / "unseen")


def test_more_are_watched_when_there_is_room_again(place: Storage) -> None:
    """A folder that was only looked at is watched once another one has gone."""
    behind = place.branch("beta") / "room"
    for name in ("first", "second"):
        (behind / name).mkdir(parents=True)
    # The vault's top, the branch, room, and one more.
    with serve(place, {"local": place.branch("beta")}, watches=4) as vault:
        vault.expect("no more folders can be watched")
        shown = vault.path / "local/room"
        os.stat(shown / "first")
        os.stat(shown / "second")
        os.rmdir(shown / "first")
        with listening(shown / "second") as listener:
            time.sleep(3 * QUIET)
            for number in range(20):  # each is heard of by itself, as no look would
                (behind / f"second/{number}").touch()
                time.sleep(0.1)
                os.unlink(behind / f"second/{number}")
                time.sleep(0.1)
            until(lambda: len(listener.events()) >= 60, True)
        vault.new_warnings()
