from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from session_agent.desktop import rooms
from session_agent.desktop.memory import Memory
from session_agent.desktop.merge import Remembered
from session_agent.desktop.rooms import Terms
from session_agent.model import Branch, Mode, Room
from session_agent.settings_types import RoomSettings
from tests.support.branches import branch
from tests.support.schemas import validator

ANN = Terms("", "/vault", username="ann", user_id="7")
NOBODY_KNOWS = Terms("", "/vault")

# What is easily mistaken for each other: separators, what stands for them, and what escapes look like.
PATHS = st.text(st.sampled_from("ab-/~2d ü"), min_size=1, max_size=8).filter(
    lambda path: all(part not in ("", ".", "..") for part in path.removeprefix("/").split("/"))
)
USERNAMES = st.text(st.sampled_from("ab-~2d@/ "), min_size=1, max_size=5)


VALIDATOR = validator("rooms")


def below_vault(*names: str) -> list[Branch]:
    """Branches mounted in the vault; one that ends in ":ro" is read-only."""
    return [
        replace(
            branch(name.removesuffix(":ro"), path=f"/vault/{name.removesuffix(':ro')}"),
            mode=Mode.RO if name.endswith(":ro") else Mode.RW,
        )
        for name in names
    ]


def names(*found: Branch, terms: Terms = ANN) -> list[str]:
    return [room.room for room in rooms.rooms(found, terms)]


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("/vault/engineering", "folder-engineering"),
        ("/vault/wiki/nested", "folder-wiki--nested"),
        ("/vault/a b", "folder-a~20b"),
        ("/vault/-a--b-", "folder-~2da-~2db~2d"),
        ("/vault/Büro", "folder-B~c3~bcro"),
        ("/shared", "folder---shared"),
        ("/mnt/shared", "folder---mnt--shared"),
        ("/vault/personal", "user-ann-personal"),
        ("/vault/users/ann/notes", "user-ann-users--ann--notes"),
        ("/vault/users/7", "user-ann-users--7"),
        ("/vault/impersonal", "folder-impersonal"),
        ("/vault/annals", "folder-annals"),
    ],
)
def test_room_names(path: str, room: str) -> None:
    assert names(branch("shown", path=path)) == [room]


def test_drives_of_two_people_at_one_path_never_share_a_room() -> None:
    for kind in ("gdrive", "onedrive", "dropbox"):
        drive = branch("drive", path="/drive", cloud_type=kind)
        assert names(drive) == ["user-ann---drive"]
        assert names(drive, terms=Terms("", "/vault", username="bob")) == ["user-bob---drive"]
    shared = branch("drive", path="/drive", cloud_type="nextcloud")
    assert names(shared) == ["folder---drive"]
    each = RoomSettings(personal_types=("Nextcloud",))
    assert names(shared, terms=replace(ANN, settings=each)) == ["user-ann---drive"]


def test_a_folder_that_is_the_users_on_the_host_is_personal() -> None:
    home = replace(branch("home", path="/vault/home"), root="/srv/users/ann", device="8:1")
    assert names(home) == ["user-ann-home"]
    assert names(replace(home, root="/srv/users/7/files")) == ["user-ann-home"]
    assert names(replace(home, root="/srv/users/annals")) == ["folder-home"]


def test_without_the_users_name_personal_folders_have_no_room_and_it_is_told() -> None:
    drive = branch("gdrive", path="/gdrive", cloud_type="gdrive")
    found = [*below_vault("personal", "wiki"), drive]
    assert names(*found, terms=NOBODY_KNOWS) == ["folder-wiki"]
    (told,) = rooms.warnings(found, NOBODY_KNOWS)
    assert "KASM_USER_NAME" in told
    assert rooms.warnings(found, ANN) == ()
    assert rooms.warnings(below_vault("wiki"), NOBODY_KNOWS) == ()


def test_names_do_not_depend_on_what_else_is_mounted() -> None:
    alone = branch("notes", path="/b/notes")
    beside = [branch("notes", path="/a/notes"), replace(alone, name="notes-2")]
    assert names(alone) == ["folder---b--notes"]
    assert names(*beside) == ["folder---a--notes", "folder---b--notes"]
    assert names(*below_vault("a/b")) == ["folder-a--b"]
    assert names(*below_vault("a/b", "a-b")) == ["folder-a-b", "folder-a--b"]


def test_one_folder_mounted_several_times_is_one_room() -> None:
    longer, shorter, other = (
        replace(one, root="/srv/wiki", device="8:1")
        for one in below_vault("x/wiki", "wiki:ro", "o")
    )
    other = replace(other, root="/srv/other")
    outside = replace(longer, name="w", path="/w")
    assert rooms.rooms([outside, longer, shorter, other], ANN) == (
        Room("/vault/o", "folder-o", False),
        # Named by the shortest path in the vault, at one that can be written.
        Room("/vault/x/wiki", "folder-wiki", False),
    )
    assert names(replace(shorter, device="8:2"), longer) == ["folder-wiki", "folder-x--wiki"]
    personal = replace(longer, path="/vault/personal/wiki")
    assert names(shorter, personal) == ["user-ann-wiki"]


def test_rooms_are_ordered_and_read_only_as_their_branches() -> None:
    assert rooms.rooms(below_vault("wiki:ro", "eng", "\udcff"), ANN) == (
        Room("/vault/eng", "folder-eng", False),
        Room("/vault/wiki", "folder-wiki", True),
    )


def test_the_names_are_made_from_the_configured_templates() -> None:
    settings = RoomSettings(shared="acme.{name}.v1", personal="private.{name}-{username}")
    terms = Terms("", "/vault", settings, "a-b")
    found = below_vault("personal", "wiki")
    assert names(*found, terms=terms) == ["private.personal-a~2db", "acme.wiki.v1"]


@given(st.lists(PATHS, unique=True, max_size=8))
def test_every_path_has_a_room_of_its_own(paths: list[str]) -> None:
    found = [
        branch(str(number), path=path if path.startswith("/") else f"/vault/{path}")
        for number, path in enumerate(paths)
    ]
    made = {one.path: names(one)[0] for one in found}
    assert len(set(made.values())) == len(paths)
    assert sorted(names(*found)) == sorted(made.values())
    assert all(not set(room) & set("/ ü") for room in made.values())


@given(
    st.sampled_from(["user-{username}-{name}", "user-{name}.-.{username}"]),
    USERNAMES,
    PATHS,
    USERNAMES,
    PATHS,
)
def test_two_people_never_share_a_personal_room(
    template: str, one: str, first: str, other: str, second: str
) -> None:
    settings = RoomSettings(personal=template)
    made = {
        rooms.room_name(path, Terms("", "/vault", settings, who), personal=True)
        for who, path in ((one, first), (other, second))
    }
    assert len(made) == (1 if (one, first) == (other, second) else 2)


def test_the_file_has_the_documented_form(tmp_path: Path) -> None:
    file = tmp_path / "config" / "rooms.yaml"
    terms = replace(ANN, file=str(file), server="ws://sync:1234")
    found = rooms.rooms(below_vault("engineering", "yes: no:ro"), terms)
    memory = Memory(str(tmp_path / "state"))
    assert [rooms.apply(found, terms, memory).changed for _ in range(2)] == [True, False]
    assert file.read_text().splitlines()[1:] == [
        "sync:",
        "  user: ann",
        "  server: ws://sync:1234",
        "  vault: /vault",
        "  folders:",
        "  - {path: /vault/engineering, room: folder-engineering, readOnly: false}",
        "  - {path: '/vault/yes: no', room: folder-yes~3a~20no, readOnly: true}",
    ]


def rendered(current: bytes, terms: Terms, *names: str) -> bytes:
    """What becomes of a file that the agent does not remember."""
    found = rooms.rooms(below_vault(*names), terms)
    return rooms.render(current, found, terms, Remembered())[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("path: /vault/a", "path: a"),
        ("room: folder-a", "room: ''"),
        ("room: folder-a", "room: a/b"),
        ("readOnly: false", "readOnly: 0"),
        ("readOnly: false", "readonly: false"),
        ("user: ann", "user: 7"),
        ("server: ws://s:1", "server: ws://ann:secret@s:1"),
        ("vault: /vault", "vaults: /vault"),
        ("sync:", "synchronise:"),
    ],
)
def test_the_schema_refuses_mistakes(old: str, new: str) -> None:
    text = rendered(b"", replace(ANN, server="ws://s:1"), "a").decode()
    assert VALIDATOR.is_valid(yaml.safe_load(text))
    assert text.count(old) == 1
    assert not VALIDATOR.is_valid(yaml.safe_load(text.replace(old, new)))


def test_other_keys_are_kept_and_an_equal_file_keeps_its_comments() -> None:
    theirs = b"# mine\nuser: ann\nsync: {url: 'ws://x:1234', folders: []}\nlast: 1\n"
    data = rendered(theirs, NOBODY_KNOWS, "a")
    assert yaml.safe_load(data) == {
        "user": "ann",
        "sync": {
            "url": "ws://x:1234",
            "folders": [{"path": "/vault/a", "room": "folder-a", "readOnly": False}],
            "vault": "/vault",
        },
        "last": 1,
    }
    commented = b"# mine\n" + data
    assert rendered(commented, NOBODY_KNOWS, "a") == commented


def test_user_and_server_follow_the_session_unless_the_user_changes_them(tmp_path: Path) -> None:
    file = tmp_path / "rooms.yaml"
    memory = Memory(str(tmp_path / "state"))

    def written(user: str, server: str) -> dict[str, str]:
        terms = replace(ANN, file=str(file), username=user, server=server)
        assert rooms.apply((), terms, memory).problem == ""
        assert not rooms.apply((), terms, memory).changed
        sync = yaml.safe_load(file.read_text())["sync"]
        assert (sync.pop("vault"), sync.pop("folders")) == ("/vault", [])
        assert isinstance(sync, dict)
        return sync

    assert written("ann", "ws://a") == {"user": "ann", "server": "ws://a"}
    assert written("bob", "ws://b") == {"user": "bob", "server": "ws://b"}
    assert written("caf\udce9", "") == {}
    assert written("ann", "ws://a") == {"user": "ann", "server": "ws://a"}
    file.write_text(file.read_text().replace("ws://a", "ws://mine"))
    assert written("bob", "ws://b") == {"user": "bob", "server": "ws://mine"}
    file.write_text(file.read_text().replace("  user: bob\n", ""))
    assert written("ann", "ws://a") == {"server": "ws://mine"}
    file.unlink()
    assert written("ann", "ws://a") == {"user": "ann", "server": "ws://a"}


@pytest.mark.parametrize("value", ["2024-01-01", "[1]", "&a [*a]", "null", "{a: 1}"])
def test_a_server_that_is_no_text_is_the_users(value: str) -> None:
    current = f"sync: {{folders: [], server: {value}}}\n".encode()
    terms = replace(ANN, server="ws://a")
    data, after = rooms.render(current, (), terms, Remembered({"server": "ws://a"}))
    assert after.left == {"server"}
    found, kept = (yaml.safe_load(text)["sync"]["server"] for text in (current, data))
    assert type(kept) is type(found)
    assert str(kept) == str(found)


@given(st.lists(PATHS.map(lambda path: path.strip("/")), unique=True, max_size=8), st.text())
@example([], "\x85")
@example(["a\u2028b", "c\x85", "\ufeff"], "\u2029")
def test_what_is_written_reads_back(paths: list[str], username: str) -> None:
    terms = Terms("", "/vault", username=username)
    found = rooms.rooms(below_vault(*paths), terms)
    data = rendered(b"", terms, *paths)
    VALIDATOR.validate(yaml.safe_load(data))
    sync = yaml.safe_load(data)["sync"]
    assert sync.get("user", "") == terms.username
    assert sync["folders"] == [
        {"path": room.path, "room": room.room, "readOnly": room.read_only} for room in found
    ]
    assert rendered(data, terms, *paths) == data


def test_what_a_killed_run_has_written_is_the_agents(tmp_path: Path) -> None:
    """What is about to be written is noted before, for one killed after the file was written."""
    file = tmp_path / "rooms.yaml"
    terms = replace(ANN, file=str(file))
    memory = Memory(str(tmp_path / "state"))
    file.symlink_to("nowhere")  # reads as absent, and is not replaced
    assert rooms.apply((), terms, memory).problem
    with memory.locked() as notes:
        assert notes.about(terms.file) == Remembered(pending={"user": "ann"})
    file.unlink()
    file.write_bytes(rendered(b"", terms))
    rooms.apply((), replace(terms, username="bob"), memory)
    assert b"user: bob" in file.read_bytes()


def test_ten_thousand_rooms(tmp_path: Path) -> None:
    terms = replace(ANN, file=str(tmp_path / "rooms.yaml"))
    found = rooms.rooms(below_vault(*(f"team {n}/notes" for n in range(10_000))), terms)
    memory = Memory(str(tmp_path / "state"))
    assert [rooms.apply(found, terms, memory).changed for _ in range(2)] == [True, False]
    assert (
        Path(terms.file).read_bytes().count(b"readOnly")
        == len({one.room for one in found})
        == 10_000
    )


def test_a_file_that_unfolds_without_end_is_not_unfolded() -> None:
    lines = [b"a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [b"%c: &%c [%s]" % (n + 1, n + 1, b", ".join([b"*%c" % n] * 9)) for n in b"abcdefghi"]
    server = b"sync: {server: *j, user: *j, folders: *j}"
    data = rendered(b"\n".join([*lines, server]), replace(ANN, server="ws://a"), "a")
    assert len(data) < 2000
    assert yaml.safe_load(data)["sync"]["folders"] == [
        {"path": "/vault/a", "room": "folder-a", "readOnly": False}
    ]


BROKEN = [
    *(b"{", b"- 1", b"sync: [1]", b"\xff", b"a: !x 1", b"a: !!bool x", b"a: !!timestamp x", b"a: !!int ''"),
    *(b"[" * 10_000, b"sync: {[1]: 2}", b"a: 1\n---\nb: 2", b"\0", b"a: 2024-99-99"),
    b"\n".join(b" " * n + b"a:" for n in range(400)),
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_kept_reported_and_left_alone(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "rooms.yaml"
    file.write_bytes(broken)
    change = rooms.apply((), Terms(str(file), "/vault"), Memory(str(tmp_path / "state")))
    assert "rooms.yaml.broken-" in change.problem
    assert file.read_bytes() == broken
    assert [copy.read_bytes() for copy in tmp_path.glob("*.broken-*")] == [broken]
