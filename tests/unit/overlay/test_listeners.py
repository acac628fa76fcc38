from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.overlay import listeners
from session_agent.overlay.inotify import CREATE
from session_agent.overlay.listeners import listened
from tests.support.as_user import as_user
from tests.support.vault import Storage, Vault, serve

pytestmark = pytest.mark.skipif(not shutil.which("inotifywait"), reason="needs inotify-tools")

PERSON, OTHER = 7411, 7412  # nobody else's
ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def watching(*paths: Path, uid: int | None = None) -> Iterator[None]:
    """A program of that user, or of this one, watches these."""
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
    command = [*drop, "inotifywait", "--monitor", *map(str, paths)]
    with subprocess.Popen(
        command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as program:
        try:
            assert program.stderr is not None
            while b"established" not in (line := program.stderr.readline()):
                assert line, "inotifywait does not start"
            yield
        finally:
            program.kill()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with the folders `a` and `b`, that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for folder in (place, place / "a", place / "b"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        yield place


def inodes(*paths: Path) -> set[int]:
    return {path.stat().st_ino for path in paths}


def test_a_program_of_the_own_user(place: Path) -> None:
    uids, device = {os.geteuid()}, place.stat().st_dev
    folders = inodes(place / "a", place / "b")
    assert not folders & listened(uids, device)
    with watching(place / "a", place / "b"):
        assert folders <= listened(uids, device)
    assert not folders & listened(uids, device)


def test_what_this_process_watches_does_not_count(place: Path) -> None:
    from watchdog.observers import inotify_c  # noqa: PLC0415

    instance = inotify_c.inotify_init()
    try:
        assert inotify_c.inotify_add_watch(instance, os.fsencode(place), CREATE) > 0
        assert not inodes(place) & listened({os.geteuid()}, place.stat().st_dev)
    finally:
        os.close(instance)


@pytest.mark.needs_root
def test_other_users_and_other_file_systems(place: Path) -> None:
    device, elsewhere = place.stat().st_dev, Path("/proc")
    with watching(place / "a", elsewhere, uid=PERSON), watching(place / "b", uid=OTHER):
        assert listened({PERSON}, device) == inodes(place / "a")
        assert listened([OTHER], device) == inodes(place / "b")
        assert listened((OTHER, PERSON), device) == inodes(place / "a", place / "b")
        assert listened({PERSON}, elsewhere.stat().st_dev) == inodes(elsewhere)
        assert listened((), device) == set()


@pytest.mark.needs_root
def test_as_a_user(place: Path) -> None:
    """Others' programs may not be looked at: there is nothing to be found, and nothing fails."""
    device = place.stat().st_dev

    def look() -> None:
        assert listened({PERSON, OTHER, 0}, device) == inodes(place / "a")

    with watching(place / "a", uid=PERSON), watching(place / "b", uid=OTHER):
        as_user(look, PERSON)


@pytest.mark.needs_root
def test_root_in_a_container(place: Path) -> None:
    """Without CAP_SYS_PTRACE: only with the user's identity."""
    source = (
        "import sys; from session_agent.fsutil.credentials import Caller, acting_as;"
        "from session_agent.overlay.listeners import listened;"
        "person, device = map(int, sys.argv[1:]);"
        "print(sorted(listened({person}, device)));"
        "context = acting_as(Caller(person, person)); context.__enter__();"
        "print(sorted(listened({person}, device)))"
    )
    lesser = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    with watching(place / "a", uid=PERSON):
        done = subprocess.run(
            [*lesser, sys.executable, "-c", source, str(PERSON), str(place.stat().st_dev)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    assert done.stdout.splitlines() == ["[]", str(sorted(inodes(place / "a")))]


def test_programs_that_end_meanwhile(place: Path) -> None:
    device, uids = place.stat().st_dev, {os.geteuid()}
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for program in [subprocess.Popen(["true"], cwd="/") for _ in range(5)]:
                program.wait()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        with watching(place / "a"):
            for _ in range(100):
                listened(uids, device)
    finally:
        stop.set()
        thread.join()


@pytest.mark.needs_root
def test_many_watches(place: Path) -> None:
    """The newest are found, as many as the limit lets, and none that is no watch."""
    files = [place / "a" / str(number) for number in range(12_000)]
    for file in files:
        file.touch()
    with watching(*files, uid=PERSON):
        found = listened({PERSON}, place.stat().st_dev)
    newest = [file.stat().st_ino for file in files[-len(found) :]]
    assert found == set(newest)
    assert 6000 < len(found) < 12_000


@pytest.mark.needs_root
def test_when_there_is_no_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found so far: here nothing."""
    device = place.stat().st_dev
    monkeypatch.setattr(listeners, "_TIME", 0.0)
    with watching(place / "a", uid=PERSON), watching(place / "b", uid=PERSON):
        assert listened({PERSON}, device) == set()


@pytest.fixture
def vault(place: Path) -> Iterator[Vault]:
    """With the branch `alpha`."""
    storage = Storage(place)
    alpha = storage.branch("alpha")
    for folder in (storage.root, alpha / "folder"):
        folder.mkdir(parents=True)
    with serve(storage, {"alpha": alpha}) as served:
        yield served


@pytest.mark.needs_root
@pytest.mark.needs_fuse
def test_in_a_vault(vault: Vault) -> None:
    folders = [vault.path, vault.path / "alpha", vault.path / "alpha/folder"]
    device = vault.path.stat().st_dev
    with watching(*folders, vault.backing("alpha"), uid=PERSON):
        assert listened({PERSON}, device) == inodes(*folders)
    assert listened({PERSON}, device) == set()
