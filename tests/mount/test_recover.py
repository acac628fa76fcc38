"""`session-agent recover`: an agent that was killed in the middle of a move, and no new one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.session import USER, KasmSession, kasm_session
from tests.support.storage import run

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

SIZE = 192 << 20  # bytes; takes longer to copy than to kill


@pytest.fixture
def session(tmp_path: Path) -> Iterator[KasmSession]:
    """With two disks of the user's, `disk` and `other`, in the vault."""
    with kasm_session() as made:
        for name in ("disk", "other"):
            run("truncate", "--size=600M", str(tmp_path / name))
            run("mkfs.ext4", "-q", "-F", str(tmp_path / name))
            (made.vault / name).mkdir()
            run("mount", "-o", "loop", str(tmp_path / name), str(made.vault / name))
            os.rmdir(made.vault / name / "lost+found")
            os.chown(made.vault / name, USER, USER)
        yield made
        made.clean_up()
        for name in ("disk", "other"):
            run("umount", "--lazy", str(made.vault / name))


def _killed_in_a_move(session: KasmSession) -> bytes:
    """The bytes of the file that was on its way from `disk` to `other`."""
    session.first_launch(0)
    content = os.urandom(1 << 20) * (SIZE >> 20)
    (session.vault / "disk/video").write_bytes(content)
    os.chown(session.vault / "disk/video", USER, USER)
    pid = session.status()["pid"]
    os.rename(session.vault / "disk/video", session.vault / "other/video")
    session.kill_agent(pid)
    return content


def test_what_was_accepted_is_carried_out(session: KasmSession) -> None:
    content = _killed_in_a_move(session)
    done = session.run("recover", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (move,) = json.loads(done.stdout)["moves"]
    assert move["outcome"] == "finished"
    assert move["from"].endswith("disk/video")
    assert session.overlay_mounts() == [], "the killed agent's mount hides the branches"
    assert (session.vault / "other/video").read_bytes() == content
    assert sorted(os.listdir(session.vault / "other")) == ["video"]
    assert os.listdir(session.vault / "disk") == []
    again = session.run("recover")
    assert (again.returncode, again.stdout) == (0, "No move was cut off.\n")


def test_with_no_more_than_the_users_rights(session: KasmSession) -> None:
    """Root has asked for this one, but the journal is the user's file: who knows what it says."""
    os.chown(session.vault / "disk", 0, 0)
    content = _killed_in_a_move(session)
    done = session.run("recover", "--json")
    assert done.returncode == 2
    (move,) = json.loads(done.stdout)["moves"]
    assert (move["outcome"], move["why"]) == ("undone", "Permission denied")
    assert (session.vault / "disk/video").read_bytes() == content
    assert os.listdir(session.vault / "other") == []


def test_not_beside_an_agent(session: KasmSession) -> None:
    session.first_launch(0)
    done = session.run("recover")
    assert done.returncode == 1
    assert "is running" in done.stderr


def test_the_next_agent_does_it_by_itself(session: KasmSession) -> None:
    content = _killed_in_a_move(session)
    session.first_launch(0)
    assert (session.vault / "other/video").read_bytes() == content
    assert not (session.vault / "disk/video").exists()
    deadline = time.monotonic() + 20
    while json.loads(session.run("moves", "--json").stdout)["moves"][0]["state"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (session.vault / "other/video").read_bytes() == content


def test_a_branch_that_is_missing(session: KasmSession) -> None:
    """The move waits for it."""
    _killed_in_a_move(session)
    session.run("stop")
    session.settings["mounts"]["exclude"].append(str(session.vault / "other"))
    done = session.run("recover", "--json")
    assert done.returncode == 2
    (move,) = json.loads(done.stdout)["moves"]
    assert move["outcome"] == "waiting"
    assert "other" in move["why"]
    assert len((session.vault / "disk/video").read_bytes()) == SIZE


def test_a_journal_that_cannot_be_read(session: KasmSession) -> None:
    _killed_in_a_move(session)
    journal = session.state_dir / "moves.journal"
    text = journal.read_bytes()
    journal.write_bytes(text.replace(b"journal 1\n", b"journal 7\n"))
    done = session.run("recover")
    assert done.returncode == 2
    (kept,) = session.state_dir.glob("moves.journal.unread-*")
    assert kept.name in done.stderr
    assert kept.read_bytes().startswith(b"session-agent moves journal 7\n")
    assert len((session.vault / "disk/video").read_bytes()) == SIZE
    session.first_launch(0)
    assert any(kept.name in warning for warning in session.status()["warnings"])
