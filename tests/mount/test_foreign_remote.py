"""Others' changes in a cloud drive: a real server, and rclone's mount of it as a branch."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.cloud import Cloud, cloud, drive, stopped
from tests.support.listening import Listener, listening, until
from tests.support.vault import Storage, Vault, outcome, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.needs_rclone]

PATIENCE = 40.0  # seconds
OFTEN = 600  # looks a minute
CHANGING = ("PUT", "MKCOL", "DELETE", "MOVE", "COPY", "PROPPATCH")
UPLOAD_AFTER = "3s"


@dataclass(frozen=True)
class Drive:
    """A drive that is served as a branch."""

    vault: Vault
    server: Cloud

    def folder(self) -> tuple[Path, Path]:
        """A new folder with two notes and a folder, which a program has listed; and behind it."""
        behind = Path(tempfile.mkdtemp(dir=self.server.behind))
        (behind / "below").mkdir()
        (behind / "note").write_bytes(b"1")
        (behind / "other").write_bytes(b"22")
        shown = self.vault.path / "remote" / behind.name
        until(shown.exists, True, PATIENCE)
        assert sorted(os.listdir(shown)) == ["below", "note", "other"]
        return shown, behind


@pytest.fixture(scope="module", params=[pytest.param("straight", marks=pytest.mark.long), "late"])
def served(place: Storage, request: pytest.FixtureRequest) -> Iterator[Drive]:
    """What is written goes to the server straight away, or late (--vfs-cache-mode writes)."""
    late = request.param == "late"
    path = place.base / f"drive-{request.param}"
    with (
        cloud(place.base / f"cloud-{request.param}") as server,
        drive(server, path, writes=late, upload_after=UPLOAD_AFTER),
        serve(place, {"remote": path, "local": place.branch("alpha")}, remote_polls=OFTEN) as vault,
    ):
        os.listdir(vault.path / "remote")
        yield Drive(vault, server)


@pytest.fixture
def one(served: Drive) -> Iterator[Drive]:
    with served.vault.watched():
        yield served


def heard(listener: Listener, wanted: set[str]) -> None:
    """All of these and nothing else, each once."""
    until(lambda: set(listener.events()), wanted, PATIENCE)
    assert len(listener.events()) == len(wanted), listener.events()


def file_events(*names: str) -> set[str]:
    return {event.format(name) for name in names for event in ("CREATE {}", "CLOSE_WRITE,CLOSE {}")}


def looked_at_often(shown: Path, seconds: float) -> None:
    """A program lists the folder all the time, and so it is looked at all the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.listdir(shown)
        time.sleep(0.3)


def test_what_others_do(one: Drive) -> None:
    shown, behind = one.folder()
    start = time.monotonic()
    with listening(shown) as listener:
        (behind / "new").write_bytes(b"3")
        (behind / "folder").mkdir()
        wanted = file_events("new") | {"CREATE,ISDIR folder"}
        heard(listener, wanted)
        assert (shown / "new").read_bytes() == b"3"
        (behind / "note").write_bytes(b"changed")
        os.unlink(behind / "other")
        wanted |= {"MODIFY note", "CLOSE_WRITE,CLOSE note", "DELETE other"}
        heard(listener, wanted)
        assert (shown / "note").read_bytes() == b"changed"
        # The server does not tell renames from new files.
        os.rename(behind / "new", behind / "newer")
        os.rename(behind / "below", behind / "lower")
        wanted |= file_events("newer") | {"DELETE new", "CREATE,ISDIR lower", "DELETE,ISDIR below"}
        heard(listener, wanted)
        (behind / "draft").write_bytes(b"saved safely")
        os.rename(behind / "draft", behind / "newer")
        os.rmdir(behind / "folder")
        wanted |= {"MODIFY newer", "DELETE,ISDIR folder"}
        until(lambda: set(listener.events()), wanted, PATIENCE)
        assert Counter(listener.events()) == dict.fromkeys(wanted, 1) | {
            "CLOSE_WRITE,CLOSE newer": 2
        }
        assert (shown / "newer").read_bytes() == b"saved safely"
    assert sorted(os.listdir(shown)) == ["lower", "newer", "note"]
    assert one.server.asked(*CHANGING, since=start) == []


def test_in_a_folder_that_others_have_made(one: Drive) -> None:
    shown, behind = one.folder()
    with listening(shown) as listener:
        (behind / "deep").mkdir()
        (behind / "deep/note").write_bytes(b"1")
        until(listener.events, ["CREATE,ISDIR deep"], PATIENCE)
    with listening(shown / "deep") as listener:
        assert os.listdir(shown / "deep") == ["note"]
        (behind / "deep/note").write_bytes(b"changed")
        heard(listener, {"MODIFY note", "CLOSE_WRITE,CLOSE note"})


def test_what_was_looked_up_a_moment_ago(one: Drive) -> None:
    """The kernel still remembers it, for the drive, when it is listed no more."""
    shown, behind = one.folder()
    names = [f"file{number}" for number in range(8)]
    for name in names:
        (behind / name).write_bytes(b"1")
    until(lambda: len(os.listdir(shown)), 11, PATIENCE)
    looked_at_often(shown, 2.0)
    with listening(shown) as listener:
        for name in names:
            os.stat(shown / name)
            os.unlink(behind / name)
            looked_at_often(shown, 0.3)
        heard(listener, {f"DELETE {name}" for name in names})


def test_a_file_that_is_open_is_followed(one: Drive) -> None:
    """As `tail -f` does: what is appended at the server is read."""
    shown, behind = one.folder()
    with listening(shown) as listener, open(shown / "note", "rb", buffering=0) as file:
        assert file.read() == b"1"
        with open(behind / "note", "ab") as appended:
            appended.write(b"2")
        heard(listener, {"MODIFY note", "CLOSE_WRITE,CLOSE note"})
        until(lambda: os.fstat(file.fileno()).st_size, 2, PATIENCE)
    assert (shown / "note").read_bytes() == b"12"


def save_in_many_ways(one: Drive, shown: Path) -> dict[str, bytes]:
    """What is to be in the folder then, and be uploaded by the vault alone."""
    files = {f"size{size}": b"x" * size for size in (0, 1, 100_000, 5_000_000)}
    for name, data in files.items():
        (shown / name).write_bytes(data)
    for number in range(3):
        files["note"] = b"saved safely %d" % number
        (shown / "draft").write_bytes(files["note"])
        os.rename(shown / "draft", shown / "note")
        looked_at_often(shown, 1.0)
    moved = one.vault.root / "moved"
    moved.write_bytes(b"m" * 5000)
    os.utime(moved, (1000, 1000))  # which this server cannot keep
    os.rename(one.vault.path / "moved", shown / "moved")
    files["moved"] = b"m" * 5000
    os.mkdir(shown / "folder")
    os.rename(shown / "folder", shown / "directory")
    os.rmdir(shown / "directory")
    os.unlink(shown / "other")
    return files


def test_saving_is_no_news(one: Drive) -> None:
    shown, behind = one.folder()
    with listening(shown) as listener:
        files = save_in_many_ways(one, shown)
        time.sleep(0.2)
        before = listener.events()

        def uploaded() -> dict[str, bytes]:
            os.listdir(shown)
            return {
                name: (behind / name).read_bytes() for name in files if (behind / name).exists()
            }

        until(uploaded, files, PATIENCE)
        looked_at_often(shown, 3.0)
        assert listener.events() == before
        # Nor is what others do to the same names taken for the vault's doing.
        (behind / "note").write_bytes(b"theirs")
        (behind / "moved").unlink()
        (behind / "other").write_bytes(b"made anew")
        wanted = {"MODIFY note", "DELETE moved", *file_events("other"), "CLOSE_WRITE,CLOSE note"}
        until(lambda: set(listener.events()[len(before) :]), wanted, PATIENCE)
        assert len(listener.events()) == len(before) + len(wanted)
        assert (shown / "note").read_bytes() == b"theirs"


def test_cutting_a_file_is_no_news(one: Drive, request: pytest.FixtureRequest) -> None:
    """By its name: nothing is closed that could tell. It can only be done where writes are kept."""
    shown, behind = one.folder()
    if "late" not in request.node.name:
        with pytest.raises(PermissionError):
            os.truncate(shown / "other", 1)
        return
    (shown / "own").write_bytes(b"own")
    until((behind / "own").exists, True, PATIENCE)
    with listening(shown) as listener:
        # An error of rclone's own as long as it is still busy with the upload.
        until(lambda: outcome(lambda: os.truncate(shown / "own", 1)), None, PATIENCE)
        until(lambda: (behind / "own").stat().st_size, 1, PATIENCE)
        looked_at_often(shown, 3.0)
        assert listener.events() == ["MODIFY own"]


def test_nothing_is_uploaded_but_what_the_vault_writes(one: Drive) -> None:
    """Each save is one upload, though others change the same folder meanwhile."""
    shown, behind = one.folder()
    start = time.monotonic()
    with listening(shown) as listener:
        for number in range(3):
            (behind / f"theirs{number}").write_bytes(b"t")
            (shown / f"ours{number}").write_bytes(b"o")
        until(
            lambda: {f"CREATE theirs{number}" for number in range(3)} <= set(listener.events()),
            True,
            PATIENCE,
        )
        until(lambda: sum((behind / f"ours{n}").exists() for n in range(3)), 3, PATIENCE)
        looked_at_often(shown, 3.0)
    changed = [
        (one.verb, Path(one.path).name) for one in one.server.asked("PUT", "MOVE", since=start)
    ]
    assert sorted(changed) == [("PUT", f"ours{number}") for number in range(3)]
    assert one.server.asked("DELETE", "COPY", "PROPPATCH", since=start) == []


# A drive that trusts its listings for long, as rclone does by itself


def test_a_drive_that_is_told_of_changes_late(place: Storage) -> None:
    """rclone shows nothing before it has forgotten its listings: when its server tells, or SIGHUP does."""
    path = place.base / "drive-long"
    with (
        cloud(place.base / "cloud-long") as server,
        drive(server, path, dir_cache="5m") as process,
        serve(place, {"remote": path}, remote_polls=OFTEN) as vault,
    ):
        shown, behind = Drive(vault, server).folder()
        time.sleep(3.0)
        start = time.monotonic()
        with listening(shown) as listener:
            (behind / "new").write_bytes(b"3")
            looked_at_often(shown, 3.0)
            assert listener.events() == []
            assert server.asked("PROPFIND", since=start) == [], "looking asks the server nothing"
            process.send_signal(signal.SIGHUP)
            heard(listener, file_events("new"))
            assert (shown / "new").read_bytes() == b"3"


# How often


@pytest.fixture
def many(place: Storage, request: pytest.FixtureRequest) -> Iterator[Drive]:
    """A drive with sixty folders, all of which a program has listed. `param`: looks a minute."""
    path = place.base / "drive-many"
    with (
        cloud(place.base / "cloud-many") as server,
        drive(server, path) as _,
        ExitStack() as stack,
    ):
        for number in range(60):
            (server.behind / f"{number:02}").mkdir(exist_ok=True)
            (server.behind / f"{number:02}/note").write_bytes(b"1")
        vault = stack.enter_context(serve(place, {"remote": path}, remote_polls=request.param))
        os.listdir(vault.path / "remote")
        for number in range(60):
            os.listdir(vault.path / f"remote/{number:02}")
        time.sleep(1.0)  # the server's log has told of it
        yield Drive(vault, server)


def folders_asked_for(server: Cloud, since: float) -> list[str]:
    return [one.path.strip("/") for one in server.asked("PROPFIND", since=since)]


@pytest.mark.parametrize("many", [60], indirect=True)
def test_no_more_is_asked_than_is_allowed(many: Drive) -> None:
    start = time.monotonic()
    time.sleep(10.5)
    times = [one.at for one in many.server.asked("PROPFIND", since=start)]
    assert len(times) >= 8
    for window in (2.0, 5.0, 10.0):
        most = max(sum(begin <= at < begin + window for at in times) for begin in times)
        assert most <= window + 1, "one a second"


@pytest.mark.parametrize("many", [30], indirect=True)
def test_folders_in_use_come_first(many: Drive) -> None:
    """Long before each of the others has had its turn once."""
    shown, server = many.vault.path / "remote", many.server
    start = time.monotonic()
    with listening(shown / "58") as listener, open(shown / "59/note", "rb"):
        until(lambda: folders_asked_for(server, start).count("58") >= 2, True, PATIENCE)
        until(lambda: folders_asked_for(server, start).count("59") >= 2, True, PATIENCE)
        assert len(set(folders_asked_for(server, start))) < 40
        (server.behind / "58/note").write_bytes(b"changed")
        heard(listener, {"MODIFY note", "CLOSE_WRITE,CLOSE note"})
        assert len(set(folders_asked_for(server, start))) < 50


@pytest.mark.long
def test_an_idle_vault_asks_less_and_less(one: Drive) -> None:
    shown, _ = one.folder()
    name = shown.name
    start = time.monotonic() + 1.0
    until(lambda: folders_asked_for(one.server, start).count(name) >= 4, True, PATIENCE)
    times = [
        asked.at
        for asked in one.server.asked("PROPFIND", since=start)
        if asked.path.strip("/") == name
    ]
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert pauses == sorted(pauses), times
    assert pauses[-1] > 2 * pauses[0]


# A server that hangs


@pytest.mark.parametrize("what", ["server", pytest.param("rclone", marks=pytest.mark.long)])
def test_what_hangs(place: Storage, what: str) -> None:
    path = place.base / f"drive-hung-{what}"
    local = place.branch("beta")
    with (
        cloud(place.base / f"cloud-hung-{what}") as server,
        drive(server, path) as process,
        serve(place, {"remote": path, "local": local}, remote_polls=OFTEN) as vault,
    ):
        shown, behind = Drive(vault, server).folder()
        os.listdir(vault.path / "local")
        with listening(shown) as far, listening(vault.path / "local") as near:
            threads = []
            with stopped(server.process if what == "server" else process):
                (behind / "new").write_bytes(b"3")
                for number in range(16):
                    (local / f"{what}{number}").write_bytes(b"1")
                    until(lambda: near.events()[-1:], [f"CLOSE_WRITE,CLOSE {what}{number}"])
                    time.sleep(0.5)
                    threads.append(len(os.listdir(f"/proc/{vault.pid}/task")))
                assert far.events() == []
            assert max(threads) <= threads[0] + 3, (
                "one that looks, and one that asks whether it answers"
            )
            heard(far, file_events("new"))
            assert (shown / "new").read_bytes() == b"3"
            (behind / "note").write_bytes(b"changed")
            heard(far, file_events("new") | {"MODIFY note", "CLOSE_WRITE,CLOSE note"})
        vault.new_warnings()
