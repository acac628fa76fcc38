"""What others change behind the vault becomes the event that programs in it would get for a local change."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.fsutil.syscalls import RENAME_EXCHANGE
from tests.support.cases import rename
from tests.support.listening import Listener, listening, until
from tests.support.vault import Storage, Vault, drop_caches, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

CLOSED_X = "CLOSE_WRITE,CLOSE x"
QUIET = 0.4  # seconds in which an event that must not come would have come


def only(listener: Listener, *events: str) -> None:
    """These events come, in this order, and no others."""
    until(listener.events, list(events))
    time.sleep(QUIET)
    assert listener.events() == list(events)


@pytest.fixture(scope="module")
def served(place: Storage) -> Iterator[Vault]:
    with serve(place) as vault:
        yield vault


@pytest.fixture(params=["alpha", "gamma", "delta", ""], ids=["ext4", "xfs", "tmpfs", "root"])
def places(vault: Vault, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """One folder in the vault, and behind it."""
    name = "events-" + request.node.name.partition("[")[0]
    served, behind = vault.path / request.param / name, vault.backing(request.param) / name
    behind.mkdir()
    until(served.is_dir, True)  # the vault knows of no such name for up to a second
    yield served, behind
    shutil.rmtree(behind)
    until(served.exists, False)


def test_a_new_file_and_folder_and_link(places: tuple[Path, Path]) -> None:
    served, behind = places
    with listening(served) as listener:
        os.mknod(behind / "file")
        os.mkdir(behind / "folder")
        os.symlink("nowhere", behind / "link")
        os.mkfifo(behind / "pipe")
        only(listener, "CREATE file", "CREATE,ISDIR folder", "CREATE link", "CREATE pipe")
    assert sorted(os.listdir(served)) == ["file", "folder", "link", "pipe"]
    assert os.readlink(served / "link") == "nowhere"


def test_a_new_file_that_is_waited_for_by_looking(places: tuple[Path, Path]) -> None:
    """A program that polls finds the file before it is announced; who listens hears of it all the same."""
    served, behind = places
    with listening(served) as listener:
        (behind / "new").write_bytes(b"x")
        assert not {"new"} - set(os.listdir(served))
        assert (served / "new").read_bytes() == b"x"
        until(lambda: "CREATE new" in listener.events(), True)


def test_changed_contents_and_attributes(places: tuple[Path, Path]) -> None:
    served, behind = places
    (behind / "x").write_bytes(b"old")
    until((served / "x").exists, True)
    time.sleep(QUIET)
    before = os.stat(behind / "x")
    with listening(served) as listener:
        with open(behind / "x", "r+b") as file:
            file.write(b"newer")
        only(listener, "MODIFY x", CLOSED_X)
        changed = os.stat(behind / "x")
        assert (served / "x").read_bytes() == b"newer"
        os.chmod(behind / "x", 0o640)
        only(listener, "MODIFY x", CLOSED_X, "ATTRIB x")
        assert os.stat(served / "x").st_mode & 0o777 == 0o640
    assert os.stat(behind / "x").st_mtime_ns == changed.st_mtime_ns > before.st_mtime_ns


def test_a_file_that_stays_open_for_a_while(places: tuple[Path, Path]) -> None:
    """That it was closed is told when it is, once, and only of those who wrote."""
    served, behind = places
    with listening(served) as listener:
        with open(behind / "x", "wb", buffering=0) as file:
            only(listener, "CREATE x")
            file.write(b"1")
            only(listener, "CREATE x", "MODIFY x")
        only(listener, "CREATE x", "MODIFY x", CLOSED_X)
        with open(behind / "x", "rb") as file:
            file.read()
        with open(behind / "x", "ab"):
            pass
        (behind / "y").write_bytes(b"whole at once")
        expected = ("CREATE y", "MODIFY y", "CLOSE_WRITE,CLOSE y")
        only(listener, "CREATE x", "MODIFY x", CLOSED_X, *expected)


@pytest.mark.parametrize("known", [True, False])
def test_removed(places: tuple[Path, Path], known: bool) -> None:
    served, behind = places
    (behind / "x").write_bytes(b"old")
    (behind / "folder").mkdir()
    time.sleep(QUIET)
    if known:
        assert (served / "x").stat().st_size == 3
        assert (served / "folder").is_dir()
    with listening(served) as listener:
        os.unlink(behind / "x")
        os.rmdir(behind / "folder")
        only(listener, "DELETE x", "DELETE,ISDIR folder")
    assert os.listdir(served) == []


def test_renamed(places: tuple[Path, Path]) -> None:
    served, behind = places
    (behind / "x").write_bytes(b"old")
    (behind / "folder").mkdir()
    (behind / "folder/inside").write_bytes(b"in")
    until((served / "folder/inside").exists, True)
    assert (served / "x").read_bytes() == b"old"
    time.sleep(QUIET)
    with listening(served) as listener:
        os.rename(behind / "x", behind / "y")
        os.rename(behind / "folder", behind / "other")
        only(
            listener,
            "MOVED_FROM x",
            "MOVED_TO y",
            "MOVED_FROM,ISDIR folder",
            "MOVED_TO,ISDIR other",
        )
    assert (served / "y").read_bytes() == b"old"
    assert (served / "other/inside").read_bytes() == b"in"
    assert sorted(os.listdir(served)) == ["other", "y"]


def test_renamed_into_another_folder_and_out_of_the_branch(places: tuple[Path, Path]) -> None:
    served, behind = places
    (behind / "a").mkdir()
    (behind / "b").mkdir()
    (behind / "a/x").write_bytes(b"1")
    (behind / "a/tree").mkdir()
    assert (served / "a/x").read_bytes() == b"1"
    assert os.listdir(served / "b") == []
    time.sleep(QUIET)
    with listening(served / "a") as left, listening(served / "b") as entered:
        os.rename(behind / "a/x", behind / "b/x")
        os.rename(behind / "a/tree", behind / "b/tree")
        only(left, "MOVED_FROM x", "MOVED_FROM,ISDIR tree")
        only(entered, "MOVED_TO x", "MOVED_TO,ISDIR tree")
        (served / "b/tree/new").write_bytes(b"2")  # it is a folder like any other


def test_a_safe_save(places: tuple[Path, Path]) -> None:
    """As editors save: a new file is written beside the old one, and renamed over it."""
    served, behind = places
    (behind / "note.md").write_bytes(b"old")
    assert (served / "note.md").read_bytes() == b"old"
    time.sleep(QUIET)
    with listening(served) as listener:
        (behind / "note.tmp").write_bytes(b"new")
        os.rename(behind / "note.tmp", behind / "note.md")
        until(lambda: listener.events()[-1:] == ["MOVED_TO note.md"], True)
        time.sleep(QUIET)
        events = [event for event in listener.events() if not event.startswith("MODIFY")]
    closed = "CLOSE_WRITE,CLOSE note.tmp"
    assert events == ["CREATE note.tmp", closed, "MOVED_FROM note.tmp", "MOVED_TO note.md"]
    assert (served / "note.md").read_bytes() == b"new"


def test_the_own_changes_do_not_come_back(places: tuple[Path, Path]) -> None:
    served, _ = places
    with listening(served) as listener:
        (served / "x").write_bytes(b"1" * 300_000)
        os.chmod(served / "x", 0o600)
        os.utime(served / "x", (1, 1))
        os.setxattr(served / "x", "user.a", b"b")
        os.link(served / "x", served / "z")
        os.rename(served / "x", served / "y")
        os.mkdir(served / "folder")
        os.symlink("a", served / "link")
        os.truncate(served / "y", 5)
        os.unlink(served / "y")
        os.unlink(served / "z")
        os.rmdir(served / "folder")
        time.sleep(QUIET)
        events = listener.events()
    assert [e for e in events if not e.startswith(("MODIFY", "ATTRIB"))] == [
        "CREATE x",
        "CLOSE_WRITE,CLOSE x",
        "CREATE z",
        "MOVED_FROM x",
        "MOVED_TO y",
        "CREATE,ISDIR folder",
        "CREATE link",
        "DELETE y",
        "DELETE z",
        "DELETE,ISDIR folder",
    ]
    assert len([e for e in events if e.startswith("ATTRIB")]) <= 5, events


def test_moves_do_not_come_back(vault: Vault) -> None:
    with contextlib.ExitStack() as stack:
        alpha = stack.enter_context(listening(vault.path / "alpha"))
        gamma = stack.enter_context(listening(vault.path / "gamma"))
        (vault.path / "alpha/moved").write_bytes(b"1")
        os.rename(vault.path / "alpha/moved", vault.path / "gamma/moved")
        time.sleep(QUIET)
        assert [e for e in alpha.events() if "MOD" not in e] == [
            "CREATE moved",
            "CLOSE_WRITE,CLOSE moved",
            "MOVED_FROM moved",
        ]
        assert gamma.events() == ["MOVED_TO moved"]
        # Nothing is claimed for longer than the move takes.
        with open(vault.backing("gamma") / "moved", "ab") as file:
            file.write(b"2")
        heard = ["MOVED_TO moved", "MODIFY moved", "CLOSE_WRITE,CLOSE moved"]
        only(gamma, *heard)
        os.unlink(vault.backing("gamma") / "moved")
        only(gamma, *heard, "DELETE moved")


def test_exchanges_do_not_come_back(vault: Vault) -> None:
    """Nor what waits beside both names meanwhile (NAME.exchanged-…)."""
    one, other = vault.path / "alpha/one", vault.path / "gamma/other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    time.sleep(QUIET)
    with listening(one.parent) as alpha, listening(other.parent) as gamma:
        rename(one, other, RENAME_EXCHANGE)
        time.sleep(QUIET)
        assert sorted(alpha.events()) == ["MOVED_FROM one", "MOVED_TO one"]
        assert sorted(gamma.events()) == ["MOVED_FROM other", "MOVED_TO other"]
    assert (one.read_bytes(), other.read_bytes()) == (b"2", b"1")
    one.unlink()
    other.unlink()


SCRIPT = """
const fs = require('fs');
fs.watch(process.argv[1], (type, name) => console.log(type, name));
console.log('ready');
"""


@contextlib.contextmanager
def program(*command: str) -> Iterator[Listener]:
    listener = Listener.of(*command)
    try:
        yield listener
    finally:
        listener.close()


def test_node_as_obsidian_watches(places: tuple[Path, Path]) -> None:
    served, behind = places
    with program("node", "-e", SCRIPT, str(served)) as node:
        until(node.events, ["ready"])
        (behind / "note.md").write_bytes(b"1")
        until(lambda: node.events()[1:2], ["rename note.md"])
        time.sleep(QUIET)
        heard = len(node.events())
        with open(behind / "note.md", "ab") as file:
            file.write(b"2")
        until(lambda: node.events()[heard:], ["change note.md"])
        os.rename(behind / "note.md", behind / "other.md")
        wanted = ["change note.md", "rename note.md", "rename other.md"]
        until(lambda: node.events()[heard:], wanted)
        os.unlink(behind / "other.md")
        until(lambda: node.events()[heard:], [*wanted, "rename other.md"])


def test_gio_as_thunar_watches(places: tuple[Path, Path]) -> None:
    served, behind = places
    with program("gio", "monitor", f"--dir={served}") as gio:
        time.sleep(1.0)  # it does not say when it is ready
        (behind / "note.md").write_bytes(b"1")
        until(lambda: any("note.md: created" in event for event in gio.events()), True)
        os.rename(behind / "note.md", behind / "other.md")
        until(lambda: any("renamed to" in event for event in gio.events()), True)
        os.unlink(behind / "other.md")
        until(lambda: any("other.md: deleted" in event for event in gio.events()), True)


def test_watchdog(places: tuple[Path, Path]) -> None:
    served, behind = places
    script = (
        "import sys, time; from watchdog.observers import Observer;"
        "from watchdog.events import FileSystemEventHandler as H;"
        "h = H(); h.on_any_event = lambda e: print(e.event_type, e.src_path[-4:], flush=True);"
        "o = Observer(); o.schedule(h, sys.argv[1]); o.start(); print('ready', flush=True);"
        "time.sleep(60)"
    )
    with program(sys.executable, "-c", script, str(served)) as watchdog:
        until(lambda: watchdog.events()[:1], ["ready"])
        (behind / "note").write_bytes(b"1")
        until(lambda: "created note" in watchdog.events(), True)
        os.unlink(behind / "note")
        until(lambda: "deleted note" in watchdog.events(), True)


def test_tail_follows(places: tuple[Path, Path]) -> None:
    served, behind = places
    (behind / "log").write_bytes(b"one\n")
    until((served / "log").exists, True)
    with program("tail", "-f", "-s", "0.2", str(served / "log")) as tail:
        until(tail.events, ["one"])
        for line in ("two", "three"):
            with open(behind / "log", "a") as file:
                file.write(line + "\n")
            until(lambda: tail.events()[-1], line)


def test_a_burst(vault: Vault) -> None:
    """Two thousand files at once: every one is announced, once. What it costs others: ./dev bench."""
    served, behind = vault.path / "alpha/burst", vault.backing("alpha") / "burst"
    behind.mkdir()
    until(served.is_dir, True)
    with listening(served) as listener:
        for number in range(2000):
            (behind / f"{number}").write_bytes(b"x")
        wanted = {f"CREATE {number}" for number in range(2000)}
        until(lambda: wanted - set(listener.events()), set(), patience=20)
        time.sleep(QUIET)
        assert len([event for event in listener.events() if event.startswith("CREATE")]) == 2000
    shutil.rmtree(behind)


def watches_of(pid: int) -> int:
    """How many folders the process watches."""
    found = 0
    for instance in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found += instance.read_text().count("inotify wd:")
    return found


def test_a_large_tree_does_not_delay_the_start(place: Storage) -> None:
    """Only the vault's top and the branch are watched at first, and then what programs get to know."""
    behind = place.branch("delta") / "large"
    for number in range(2000):
        (behind / f"{number % 50}/{number}").mkdir(parents=True)
    with serve(place, {"delta": place.branch("delta")}) as vault:
        assert watches_of(vault.pid) == 2
        os.stat(vault.path / "delta/large/7/57")
        assert watches_of(vault.pid) == 5
        folders = sum(len(folders) for _, folders, _ in os.walk(vault.path / "delta"))
        until(lambda: watches_of(vault.pid), 2 + folders)
        with listening(vault.path / "delta/large/7/57") as listener:
            (behind / "7/57/new").touch()
            until(lambda: "CREATE new" in listener.events(), True)
    shutil.rmtree(behind)


def test_more_than_may_wait(place: Storage) -> None:
    """Of what is too much the folders are compared: nothing is missed in the end."""
    behind = place.branch("beta") / "too-much"
    for name in ("a", "b"):
        (behind / name).mkdir(parents=True)
    for number in range(300):
        (behind / f"a/old{number}").write_bytes(b"1")
    with serve(place, {"beta": place.branch("beta")}, pending=20) as vault:
        shown = vault.path / "beta/too-much"
        with (
            contextlib.ExitStack() as held,
            listening(shown / "a") as first,
            listening(shown / "b") as second,
        ):
            for number in range(300):
                held.enter_context(open(shown / f"a/old{number}", "rb"))
            os.kill(vault.pid, signal.SIGSTOP)
            try:
                for number in range(300):
                    (behind / f"b/new{number}").write_bytes(b"2")
                    if number % 3:
                        os.unlink(behind / f"a/old{number}")
                    else:
                        (behind / f"a/old{number}").write_bytes(b"22")
                time.sleep(
                    1.2
                )  # by then the oldest of it is older than times on disk may lag behind
            finally:
                os.kill(vault.pid, signal.SIGCONT)
            # What a program has come upon meanwhile, others are told of all the same.
            for number in range(0, 300, 10):
                os.stat(shown / f"b/new{number}")
            made = {f"CREATE new{number}" for number in range(300)}
            until(lambda: made - set(second.events()), set(), patience=20)
            changed = {
                f"DELETE old{number}" if number % 3 else f"MODIFY old{number}"
                for number in range(300)
            }
            until(lambda: changed - set(first.events()), set(), patience=20)
            assert not {event for event in first.events() if event.startswith("CREATE")}
    shutil.rmtree(behind)


@pytest.mark.parametrize("kept", ["open", "known", "forgotten"])
def test_what_the_kernel_could_not_keep_is_found_by_comparing(vault: Vault, kept: str) -> None:
    """While the agent is stopped more happens than inotify's queue holds (16,384 events by default).

    The kernel may have forgotten the files by then, though a program has seen them.
    """
    served, behind = vault.path / "delta/flood", vault.backing("delta") / "flood"
    behind.mkdir()
    (behind / "gone").touch()
    (behind / "changed").write_bytes(b"1")
    until(served.is_dir, True)
    time.sleep(
        QUIET
    )  # until the folder itself has been announced: the kernel looks at it anew then
    assert sorted(os.listdir(served)) == ["changed", "gone"]
    size = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    time.sleep(QUIET)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(served))
        if kept == "open":
            stack.enter_context(open(served / "gone"))
            stack.enter_context(open(served / "changed"))
        if kept == "forgotten" and not drop_caches():
            pytest.skip(
                "the kernel cannot be made to forget: /proc/sys/vm/drop_caches is read-only"
            )
        os.kill(vault.pid, signal.SIGSTOP)
        try:
            for number in range(size // 2 + 10):
                os.mknod(behind / f"filler-{number % 2}")
                os.unlink(behind / f"filler-{number % 2}")
            os.unlink(behind / "gone")
            (behind / "changed").write_bytes(b"2")
            (behind / "new").write_bytes(b"3")
        finally:
            os.kill(vault.pid, signal.SIGCONT)
        wanted = {"CREATE new", "DELETE gone", "MODIFY changed"}
        until(lambda: wanted - set(listener.events()), set())
    shutil.rmtree(behind)
    until(served.exists, False)


def test_both_sides_at_once(places: tuple[Path, Path]) -> None:
    """Files changed from both sides: in the end the vault shows what is there, and who listens has heard."""
    served, behind = places
    names = [f"n{number}" for number in range(8)]
    with listening(served) as listener:

        def hammer(folder: Path, seed: int) -> None:
            chance = random.Random(seed)
            for step in range(300):
                name, other = chance.choice(names), chance.choice(names)
                with contextlib.suppress(OSError):
                    action = chance.randrange(4)
                    if action == 0:
                        (folder / name).write_bytes(b"%d-%d" % (seed, step))
                    elif action == 1:
                        os.unlink(folder / name)
                    elif action == 2:
                        os.rename(folder / name, folder / other)
                    else:
                        (folder / name).read_bytes()

        sides = (served, behind, served, behind)
        threads = [
            threading.Thread(target=hammer, args=(folder, seed))
            for seed, folder in enumerate(sides)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(1.2)
        there = {name: (behind / name).read_bytes() for name in os.listdir(behind)}
        assert {name: (served / name).read_bytes() for name in os.listdir(served)} == there
        known = [name for name in names if os.path.exists(served / name)]
        assert sorted(known) == sorted(there)
        assert listener.events()
        last = {}
        for event in listener.events():
            kind, _, name = event.partition(" ")
            if kind in ("CREATE", "MOVED_TO", "DELETE", "MOVED_FROM"):
                last[name] = kind in ("CREATE", "MOVED_TO")
        assert {name for name, exists in last.items() if exists} == set(there)
