"""A session with a permission policy, from first-launch on: real mounts, real processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.session import KasmSession, kasm_session
from tests.support.vault import as_person, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

PATIENCE = 10.0  # seconds
USER = 1000


def until(condition: Callable[[], bool]) -> float:
    """Wait for it; seconds that took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + PATIENCE, "it does not come true"
        time.sleep(0.01)
    return time.monotonic() - begun


class Governed:
    """A session with a policy file and an identity file."""

    def __init__(self, session: KasmSession) -> None:
        self.session = session
        self.folder = session.base / "etc"
        self.folder.mkdir()
        self.policy = self.folder / "vault-permissions.yaml"
        self.identity = self.folder / "identity.yaml"
        self.trail = self.folder / "log/audit.jsonl"
        session.settings["policy"] = {
            "file": str(self.policy),
            "identity_file": str(self.identity),
            "audit_file": str(self.trail),
        }
        self.be("groups: [staff]")
        self.rule()

    def write(self, path: Path, text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)

    def be(self, rest: str) -> None:
        self.write(self.identity, f"user: ann\n{rest}\n")

    def rule(self, engineering: str = "{groups: [staff], mode: rw}", rest: str = "") -> None:
        self.write(
            self.policy,
            "folders:\n"
            f"  - {{name: engineering, path: /srv/engineering, target: {self.session.vault}/engineering,"
            f" access: [{engineering}]{rest}}}\n"
            f"  - {{name: wiki, path: /srv/wiki, target: {self.session.vault}/wiki,"
            " access: [{groups: [editors], mode: rw}]}\n",
        )

    def names(self) -> set[str]:
        return {
            n for n in as_person(lambda: os.listdir(self.session.vault), USER) if n[0] not in "._"
        }

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.trail.read_text().splitlines()]


@pytest.fixture
def governed() -> Iterator[Governed]:
    with kasm_session() as session:
        yield Governed(session)


def test_what_the_policy_gives(governed: Governed) -> None:
    session = governed.session
    done = session.run("first-launch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert governed.names() == {"engineering"}
    bookmarks = (session.home / ".config/gtk-3.0/bookmarks").read_text()
    assert "engineering" in bookmarks
    assert "wiki" not in bookmarks
    assert governed.events()[0].items() >= {
        "event": "grant",
        "user": "ann",
        "folder": "engineering",
        "mode": "rw",
        "before": "hidden",
        "because": "group staff",
    }.items()  # fmt: skip
    assert os.stat(governed.trail).st_mode & 0o777 == 0o600
    status = json.loads(session.run("status", "--json").stdout)
    assert [branch["name"] for branch in status["branches"]] == ["engineering"]
    again = session.run("first-launch")
    assert "Everything is unchanged." in again.stdout


def test_changes_are_followed_without_a_restart(governed: Governed) -> None:
    session = governed.session
    assert session.run("first-launch").returncode == 0
    bookmarks = session.home / ".config/gtk-3.0/bookmarks"
    governed.be("groups: [editors]")
    assert until(lambda: governed.names() == {"wiki"}) < 3
    until(lambda: "wiki" in bookmarks.read_text())
    assert "engineering" not in bookmarks.read_text()
    governed.be("groups: [staff, editors]")
    until(lambda: governed.names() == {"engineering", "wiki"})
    governed.rule("{groups: [staff], mode: ro}")
    note = session.vault / "engineering/new"
    until(lambda: outcome(lambda: as_person(note.touch, USER)) == "EROFS")
    until(lambda: _read_only(session))
    changes = [
        (e["folder"], e["before"], e["mode"]) for e in governed.events() if e["event"] == "grant"
    ]
    assert changes == [
        ("engineering", "hidden", "rw"),
        ("engineering", "rw", "hidden"),
        ("wiki", "hidden", "rw"),
        ("engineering", "hidden", "rw"),
        ("engineering", "rw", "ro"),
    ]
    refused = [(e["path"], e["uid"]) for e in governed.events() if e["event"] == "refused"]
    assert ("engineering/new", USER) in refused


def test_obsidian_follows_without_a_restart(governed: Governed) -> None:
    """Through the overlay it is the same vault to the agent's memory as beside it."""
    session = governed.session
    assert session.run("first-launch").returncode == 0
    app = session.vault / ".obsidian/app.json"

    def choose() -> None:
        settings = {**json.loads(app.read_bytes()), "attachmentFolderPath": "engineering/files"}
        app.write_text(json.dumps(settings))

    def shown() -> tuple[str, list[str]]:
        bookmarks = json.loads((app.parent / "bookmarks.json").read_bytes())
        paths = [item["path"] for group in bookmarks["items"] for item in group["items"]]
        return json.loads(app.read_bytes())["attachmentFolderPath"], paths

    as_person(choose, USER)
    governed.be("groups: [editors]")
    until(lambda: as_person(shown, USER) == ("_inbox/attachments", ["wiki"]))
    governed.be("groups: [staff]")
    until(lambda: as_person(shown, USER) == ("engineering/files", ["engineering"]))
    until(lambda: "Everything is unchanged." in session.run("first-launch").stdout)


def _read_only(session: KasmSession) -> bool:
    rooms = (session.home / ".config/session-agent/rooms.yaml").read_text()
    return "engineering, readOnly: true" in rooms


def test_a_window_closes(governed: Governed) -> None:
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 4))
    governed.rule(f"{{groups: [staff], mode: rw, until: {ends}}}")
    assert governed.session.run("first-launch").returncode == 0
    assert governed.names() == {"engineering"}
    until(lambda: governed.names() == set())


@pytest.mark.parametrize(
    "broken", ["folders: [", "folders: [{name: a, path: /a, acess: []}]", None, "others"]
)
def test_a_broken_policy_shows_nothing_and_says_why(governed: Governed, broken: str | None) -> None:
    session = governed.session
    assert session.run("first-launch").returncode == 0
    if broken is None:
        governed.policy.unlink()
    elif broken == "others":
        governed.policy.chmod(0o666)
    else:
        governed.write(governed.policy, broken)
    until(lambda: governed.names() == set())
    status = json.loads(session.run("status", "--json").stdout)
    assert any("No branch is shown" in warning for warning in status["warnings"])
    done = session.run("first-launch")
    assert "No branch is shown" in done.stdout
    if broken == "others":
        governed.policy.chmod(0o644)
    else:
        governed.rule()
    until(lambda: governed.names() == {"engineering"})


class TestIdentity:
    def test_a_file_that_others_can_change_is_not_believed(self, governed: Governed) -> None:
        os.chown(governed.identity, USER, USER)
        done = governed.session.run("first-launch")
        assert "is not trusted" in done.stdout
        assert governed.names() == set()

    def test_without_one_there_is_what_needs_none(self, governed: Governed) -> None:
        governed.identity.write_text("{}")
        governed.rule("{everyone: true, mode: ro}")
        governed.session.run("first-launch")
        assert governed.names() == {"engineering"}

    def test_the_environment_is_believed_only_if_the_settings_say_so(
        self, governed: Governed
    ) -> None:
        session = governed.session
        del session.settings["policy"]["identity_file"]
        session.environment["SESSION_AGENT_IDENTITY"] = '{"user": "ann", "groups": ["staff"]}'
        session.run("first-launch")
        assert governed.names() == set()
        session.run("stop")
        session.settings["policy"]["identity_from_environment"] = True
        session.run("first-launch")
        assert governed.names() == {"engineering"}


def test_what_the_policy_does_not_speak_of(governed: Governed) -> None:
    governed.write(governed.policy, "folders: []")
    session = governed.session
    session.run("first-launch")
    assert governed.names() == set()
    session.run("stop")
    session.settings["policy"]["ungoverned"] = "shown"
    session.run("first-launch")
    assert governed.names() == {"engineering", "wiki"}


def test_parts_of_a_branch(governed: Governed) -> None:
    session = governed.session
    engineering = session.vault / "engineering"
    for name in ("salaries", "archive", "open"):
        (engineering / name).mkdir()
        os.chown(engineering / name, USER, USER)
    governed.rule(rest=", subfolders: [{path: salaries, access: []}, {path: archive, mode: ro}]")
    session.run("first-launch")
    inside = as_person(lambda: os.listdir(engineering), USER)
    assert {"archive", "open"} <= set(inside)
    assert "salaries" not in inside
    for name, expected in (("archive", "EROFS"), ("open", None)):
        made = engineering / name / "x"
        assert outcome(lambda made=made: as_person(made.touch, USER)) == expected  # type: ignore[misc]


def test_without_a_vault_nothing_keeps_the_policy_and_that_is_said(governed: Governed) -> None:
    governed.session.settings["overlay"] = {"enabled": False}
    done = governed.session.run("first-launch")
    assert "The permission policy is not kept" in done.stdout
    bookmarks = (governed.session.home / ".config/gtk-3.0/bookmarks").read_text()
    assert "wiki" not in bookmarks
