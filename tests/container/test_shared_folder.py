"""Two sessions in two containers that share folders: what one does, the other hears of and sees."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.container.conftest import Built, mounts, with_folders
from tests.support.engine import FUSE, Container
from tests.support.listening import Listener, until

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse, pytest.mark.timeout(300)]

SERVED = "mountpoint -q /vault && stat -f -c %T /vault | grep -q fuse && ls /vault/engineering"
PATIENCE = 20.0  # seconds
QUIET = 0.5  # seconds in which an event that must not come would have come


@dataclass(frozen=True)
class Pair:
    """Who changes things in the shared folder `folder`, and who hears of it."""

    maker: Container
    other: Container
    host: Path
    folder: str

    @contextlib.contextmanager
    def listening(self) -> Iterator[tuple[Listener, Listener]]:
        with self.maker.listening(self.folder) as own, self.other.listening(self.folder) as others:
            yield own, others

    def made(self, script: str) -> None:
        """The maker runs it in the folder."""
        self.maker.sh(f"cd {self.folder}; {script}")

    def seen(self, script: str = "cat *") -> str:
        """What it prints in the other's folder."""
        return self.other.sh(f"cd {self.folder}; {script}")


@pytest.fixture(scope="module")
def sessions(
    built: Built, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Container, Container]]:
    """The host's folder; a session whose agent the user runs, and one whose agent root runs."""
    host = with_folders(tmp_path_factory.mktemp("shared"))
    with (
        built.engine.container(*FUSE, *mounts(host)) as of_user,
        built.engine.container(
            *FUSE, *mounts(host), "--entrypoint", "sleep", command=["600"]
        ) as of_root,
    ):
        of_root.run("session-agent", "first-launch", user="0")
        for session, uid in ((of_user, "1000"), (of_root, "0")):
            session.until(SERVED)
            agent = int(session.sh("pgrep -o -f 'session_agent serve'"))
            assert session.sh(f"stat -c %u /proc/{agent}") == uid
        yield host, of_user, of_root


@pytest.fixture(params=["user's", "root's"])
def pair(
    sessions: tuple[Path, Container, Container], request: pytest.FixtureRequest
) -> Iterator[Pair]:
    """The maker's agent is the user's or root's, and the other's the other way round."""
    host, of_user, of_root = sessions
    maker, other = (of_user, of_root) if request.param == "user's" else (of_root, of_user)
    name = request.node.name.partition("[")[0]
    folder = f"/vault/engineering/{name}"
    maker.sh(f"mkdir {folder}")
    other.until(f"test -d {folder}")
    yield Pair(maker, other, host / "engineering" / name, folder)
    maker.sh(f"rm -r {folder}")
    other.until(f"! test -e {folder}")


def only(listeners: tuple[Listener, Listener], *events: str) -> None:
    """Both hear of just these, in this order."""
    wanted = list(events)
    for listener in reversed(listeners):
        until(partial(told, listener), wanted, patience=PATIENCE)
    time.sleep(QUIET)
    assert [told(listener) for listener in listeners] == [wanted, wanted]


def told(listener: Listener) -> list[str]:
    """What it has heard. Of a file that is made and written at once, one hears once or twice."""
    text = "\n".join(listener.events()[1:])
    return re.sub(r"^(CREATE (.*))\nMODIFY \2$", r"\1", text, flags=re.MULTILINE).splitlines()


def test_a_note_is_made_renamed_changed_and_deleted(pair: Pair) -> None:
    with pair.listening() as listeners:
        pair.made("echo text > note.md")
        only(listeners, "CREATE note.md")
        assert pair.seen("stat -c '%n %s %u' *; cat *") == "note.md 5 1000\ntext"
        pair.made("mv note.md other.md")
        heard = ["CREATE note.md", "MOVED_FROM note.md", "MOVED_TO other.md"]
        only(listeners, *heard)
        assert pair.seen("ls; cat *") == "other.md\ntext"
        pair.made("echo more >> other.md")
        only(listeners, *heard, "MODIFY other.md")
        assert pair.seen() == "text\nmore"
        pair.made("rm other.md")
        only(listeners, *heard, "MODIFY other.md", "DELETE other.md")
        assert pair.seen("ls -A") == ""


def test_a_folder_is_made_renamed_and_removed(pair: Pair) -> None:
    with pair.listening() as listeners:
        pair.made("mkdir a")
        only(listeners, "CREATE,ISDIR a")
        pair.made("echo text > a/note.md; mv a b")
        heard = ["CREATE,ISDIR a", "MOVED_FROM,ISDIR a", "MOVED_TO,ISDIR b"]
        only(listeners, *heard)
        assert pair.seen("ls; cat b/*") == "b\ntext"
        pair.made("rm -r b")
        only(listeners, *heard, "DELETE,ISDIR b")


def test_a_safe_save(pair: Pair) -> None:
    """As editors save: the note is there all the time, old or new."""
    pair.made("echo old > note.md")
    pair.other.until(f"test -e {pair.folder}/note.md")
    time.sleep(QUIET)
    with pair.listening() as listeners:
        pair.made("echo new > note.tmp; mv note.tmp note.md")
        wanted = ["CREATE note.tmp", "MOVED_FROM note.tmp", "MOVED_TO note.md"]
        own, others = listeners
        until(lambda: wanted[-1] in told(others), True, patience=PATIENCE)
        assert pair.seen("ls; cat *") == "note.md\nnew"
        time.sleep(QUIET)
        assert told(own) == wanted
        heard = [event for event in told(others) if not event.startswith("MODIFY")]
        # Where the note was renamed just before its first name was announced, nobody hears of that.
        assert heard in (wanted, wanted[1:])


def test_a_note_that_both_write(pair: Pair) -> None:
    """In turns: each has what the other wrote as soon as it hears of it."""
    pair.made(": > note.md")
    pair.other.until(f"test -e {pair.folder}/note.md")
    time.sleep(QUIET)
    with pair.listening() as listeners:
        text: list[str] = []
        for turn in range(6):
            writer, reader = (pair.maker, pair.other)[:: 1 if turn % 2 else -1]
            writer.sh(f"echo {turn} >> {pair.folder}/note.md")
            text.append(str(turn))
            wanted = ["ready", *["MODIFY note.md"] * len(text)]
            until(listeners[turn % 2].events, wanted, patience=PATIENCE)
            assert reader.sh(f"cat {pair.folder}/note.md").split() == text
        only(listeners, *["MODIFY note.md"] * len(text))
    assert (pair.host / "note.md").read_text().split() == text


def test_a_note_is_moved_to_another_branch(pair: Pair) -> None:
    """The other hears of one that goes and one that comes, and of no names that only the agents know."""
    marketing = "/vault/marketing"
    pair.made("echo text > note.md")
    pair.other.until(f"test -e {pair.folder}/note.md")
    time.sleep(QUIET)
    with (
        pair.listening() as left,
        pair.maker.listening(marketing) as own,
        pair.other.listening(marketing) as entered,
    ):
        pair.made(f"mv note.md {marketing}/note.md")
        until(lambda: told(left[1]), ["DELETE note.md"], patience=PATIENCE)
        until(lambda: told(entered), ["CREATE note.md"], patience=PATIENCE)
        time.sleep(QUIET)
        assert [told(left[0]), told(own)] == [["MOVED_FROM note.md"], ["MOVED_TO note.md"]]
        assert [told(left[1]), told(entered)] == [["DELETE note.md"], ["CREATE note.md"]]
    assert pair.other.sh(f"cat {marketing}/note.md") == "text"
    pair.maker.sh(f"rm {marketing}/note.md")
    pair.other.until(f"! test -e {marketing}/note.md")


def archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1_000_000_000
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def test_five_hundred_files_are_unpacked(pair: Pair) -> None:
    """Every one is announced once, to the other alone, and is whole; those in a new folder are seen, too."""
    files = {f"{number}.bin": os.urandom(3000) for number in range(500)}
    files |= {f"deep/er/{number}.bin": os.urandom(3000) for number in range(50)}
    packed = pair.host.parent.parent / "archive.tar"
    packed.write_bytes(archive(files))
    pair.maker.engine.docker("cp", str(packed), f"{pair.maker.name}:/tmp/archive.tar")
    with pair.listening() as listeners:
        pair.made("tar -xf /tmp/archive.tar")
        created = Counter(["CREATE,ISDIR deep", *(f"CREATE {n}.bin" for n in range(500))])

        def missing(listener: Listener) -> Counter[str]:
            return created - Counter(told(listener))

        for listener in reversed(listeners):
            until(partial(missing, listener), Counter(), patience=PATIENCE)
        time.sleep(QUIET)
        for listener in listeners:
            more = Counter(told(listener)) - created
            assert {event.partition(" ")[0] for event in more} <= {"MODIFY", "ATTRIB"}, more
    sums = "find . -type f | sort | xargs sha256sum"
    assert pair.seen(sums) == pair.maker.sh(f"cd {pair.folder}; {sums}")
    assert len(pair.seen(sums).splitlines()) == len(files)
    for name, content in files.items():
        assert (pair.host / name).read_bytes() == content
    assert pair.seen("stat -c %Y 0.bin deep/er/0.bin").split() == ["1000000000"] * 2
