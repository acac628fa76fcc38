"""Where the kernel lets no more folders be watched: what others change is found by looking, and that is told.

The limits are those of a namespace of the test's own (tests.support.narrow): the machine's stay as they are.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support import narrow
from tests.support.listening import Listener, listening, until
from tests.support.narrow import narrowed
from tests.support.session import KasmSession, kasm_session
from tests.support.storage import bind
from tests.support.vault import Storage, Vault, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

T = TypeVar("T")

PATIENCE = 40.0  # seconds
MANY = 30  # folders
LIMIT = 20  # folders that may be watched
TOLD = "/proc/sys/fs/inotify/max_user_watches"
EXPIRED = 1.0 + 0.1  # seconds: cache_seconds, and what the kernel rounds up
NO_MORE = "no more folders can be watched"


def in_namespace(step: Callable[[], T]) -> T:
    try:
        return narrowed(step)
    except narrow.NotHereError:
        pytest.skip("needs user namespaces")


@pytest.fixture
def behind(place: Storage) -> Iterator[Path]:
    """A branch with many folders."""
    branch = place.branch("alpha")
    for number in range(MANY):
        (branch / f"{number:02}").mkdir(exist_ok=True)
        (branch / f"{number:02}/note").write_bytes(b"1")
    yield branch
    for number in range(MANY):
        for path in (branch / f"{number:02}").iterdir():
            path.unlink()


def tell_limit(place: Storage, stack: ExitStack) -> None:
    """Let the kernel tell of LIMIT, in this namespace."""
    told = place.base / "limit"
    told.write_text(f"{LIMIT}\n", encoding="ascii")
    stack.enter_context(bind(told, Path(TOLD)))


def watches(pid: int) -> int:
    """How many a process has."""
    count = 0
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            count += sum(line.startswith("inotify ") for line in info.read_text().splitlines())
    return count


def read_all(vault: Vault) -> list[Path]:
    folders = [vault.path / f"local/{number:02}" for number in range(MANY)]
    for folder in folders:
        assert os.listdir(folder) == ["note"]
        assert (folder / "note").read_bytes() == b"1"
    return folders


def heard(listener: Listener, wanted: set[str]) -> bool:
    return wanted <= set(listener.events())


def all_is_heard_of(folders: list[Path], behind: Path) -> None:
    """Of the first folder, that was there before the limit was met, and of the last."""
    for folder in (folders[0], folders[-1]):
        there = behind / folder.name
        with listening(folder) as listener:
            time.sleep(1.5)  # it has been looked at once by then
            (there / "new").write_bytes(b"3")
            wanted = {"CREATE new", "CLOSE_WRITE,CLOSE new"}
            until(partial(heard, listener, wanted), True, PATIENCE)
            (there / "note").write_bytes(b"changed")
            (there / "new").unlink()
            wanted |= {"MODIFY note", "CLOSE_WRITE,CLOSE note", "DELETE new"}
            until(partial(heard, listener, wanted), True, PATIENCE)
            # Where it is watched writing is heard of by itself, or not.
            assert set(listener.events()) - {"MODIFY new"} == wanted
        assert (folder / "note").read_bytes() == b"changed"


def nothing_is_old(folders: list[Path], behind: Path) -> None:
    """Whatever the kernel remembered of any folder, a second later it is right."""
    for folder in folders:
        assert not (folder / "later").exists()
        assert (folder / "note").read_bytes()
        there = behind / folder.name
        (there / "later").write_bytes(b"later")
        (there / "note").write_bytes(b"note, as it is now")
    time.sleep(EXPIRED)
    for folder in folders:
        assert (folder / "later").read_bytes() == b"later"
        assert (folder / "note").stat().st_size == 18
        assert (folder / "note").read_bytes() == b"note, as it is now"
        assert sorted(os.listdir(folder)) == ["later", "note"]
        (behind / folder.name / "note").unlink()
    time.sleep(EXPIRED)
    assert [folder for folder in folders if (folder / "note").exists()] == []


def the_vault_works(folders: list[Path], behind: Path) -> None:
    for folder in folders:
        (folder / "own").write_bytes(b"own")
        os.rename(folder / "own", folder / "renamed")
        assert (behind / folder.name / "renamed").read_bytes() == b"own"
        os.unlink(folder / "renamed")


def test_half_is_left_to_the_programs(place: Storage, behind: Path) -> None:
    def step() -> list[str]:
        narrow.allow(watches=LIMIT)
        with ExitStack() as stack:
            tell_limit(place, stack)
            vault = stack.enter_context(serve(place, {"local": behind}))
            folders = read_all(vault)
            until(lambda: watches(vault.pid), LIMIT // 2)
            for folder in folders[: LIMIT // 2 - 2]:
                stack.enter_context(listening(folder))  # the kernel lets them
            the_vault_works(folders, behind)
            nothing_is_old(folders, behind)
            assert watches(vault.pid) == LIMIT // 2
            return vault.new_warnings()

    warnings = in_namespace(step)
    assert len(warnings) == 1, warnings
    assert NO_MORE in warnings[0]


def test_changes_beyond_the_limit_are_heard_of(place: Storage, behind: Path) -> None:
    def step() -> list[str]:
        narrow.allow(watches=LIMIT)
        with ExitStack() as stack:
            tell_limit(place, stack)
            vault = stack.enter_context(serve(place, {"local": behind}))
            all_is_heard_of(read_all(vault), behind)
            return vault.new_warnings()

    warnings = in_namespace(step)
    assert len(warnings) == 1, warnings
    assert NO_MORE in warnings[0]


def test_the_kernel_refuses_before_that(place: Storage, behind: Path) -> None:
    """Others have taken what it tells of: here it tells of many more than it gives."""

    def step() -> list[str]:
        narrow.allow(watches=LIMIT)
        with serve(place, {"local": behind}) as vault:
            folders = read_all(vault)
            until(lambda: watches(vault.pid), LIMIT)
            the_vault_works(folders, behind)
            narrow.allow(watches=LIMIT + 5)  # for the programs that listen
            all_is_heard_of(folders, behind)
            for folder in folders:
                (behind / folder.name / "note").write_bytes(b"1")
            nothing_is_old(folders, behind)
            return vault.new_warnings()

    warnings = in_namespace(step)
    assert len(warnings) == 1, warnings
    assert NO_MORE in warnings[0]


def test_there_is_no_instance_left(place: Storage, behind: Path) -> None:
    """fs.inotify.max_user_instances: nothing can be watched at all."""

    def step() -> list[str]:
        narrow.allow(instances=0)
        with serve(place, {"local": behind, "": place.root}) as vault:
            folders = read_all(vault)
            assert watches(vault.pid) == 0
            the_vault_works(folders, behind)
            narrow.allow(instances=5)  # for the programs that listen
            all_is_heard_of(folders, behind)
            for folder in folders:
                (behind / folder.name / "note").write_bytes(b"1")
            nothing_is_old(folders, behind)
            return vault.new_warnings()

    warnings = in_namespace(step)
    assert len(warnings) == 2, warnings
    assert all("is not watched: Too many open files" in warning for warning in warnings)


# A whole session


def told(session: KasmSession) -> tuple[str, dict[str, int], dict[str, str]]:
    """By status, by its JSON, and by the doctor, of a session in which all folders were listed."""
    behind = session.base / "host/engineering"
    for number in range(MANY):
        (behind / f"{number:02}").mkdir()
    done = session.run("first-launch", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(MANY):
        assert os.listdir(session.vault / f"engineering/{number:02}") == []
    counts = session.status()["foreign"]
    line = next(
        line
        for line in session.run("status").stdout.splitlines()
        if line.startswith("others' changes")
    )
    checks = json.loads(session.run("doctor", "--json").stdout)["checks"]
    found = [check for check in checks if check["name"] == "foreign-events"]
    assert len(found) == 1, checks
    return line, counts, found[0]


@pytest.mark.parametrize("what", ["watches", "instances"])
def test_status_and_doctor_tell(what: str) -> None:
    def step() -> tuple[str, dict[str, int], dict[str, str]]:
        narrow.allow(**{what: LIMIT if what == "watches" else 0})
        with kasm_session() as session:
            return told(session)

    line, counts, check = in_namespace(step)
    watched = LIMIT if what == "watches" else 0
    assert counts["watched"] == watched
    assert counts["unwatched"] >= MANY - watched
    assert f"looked at because there are too many {counts['unwatched']}" in line
    assert check["state"] == "warn", check
    assert f"{counts['unwatched']} unwatched" in check["detail"]
    assert "max_user_watches" in check["fix"]
    assert "max_user_instances" in check["fix"]
