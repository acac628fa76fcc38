from __future__ import annotations

import ctypes
import ctypes.util
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_agent.desktop import bookmarks
from session_agent.desktop.bookmarks import Bookmark, label_of, path_of, render, wanted
from session_agent.desktop.memory import Memory
from session_agent.desktop.merge import Remembered
from tests.support.branches import branches

SCRIPT = Path(__file__).parents[2] / "data" / "kasm" / "emblems.sh"
NONE = Remembered()
LENGTHS = (503, 504, 1008, 1009)


def written(*marks: Bookmark) -> Remembered:
    return Remembered({mark.path: mark.label for mark in marks})


def marks(*names: str, cloud_mounts: str = "") -> tuple[Bookmark, ...]:
    return wanted("/vault", branches(*names), cloud_mounts)[0]


def test_the_vault_comes_first_and_labels_are_for_people() -> None:
    data = render(b"", marks("wiki:ro", "engineering", "wiki/büro 1"), NONE).data
    assert data == (
        b"file:///vault Vault\n"
        b"file:///vault/engineering Engineering\n"
        b"file:///vault/wiki Wiki (read-only)\n"
        b"file:///vault/wiki/b%C3%BCro%201 B\xc3\xbcro 1\n"
    )


def test_the_order_is_the_same_whatever_that_of_the_mounts_and_knows_no_capitals() -> None:
    names = ["b/x", "Archive", "wiki", "b", "Work", "archive"]
    orders = [[mark.path for mark in marks(*some)] for some in (names, names[::-1])]
    assert orders[0] == orders[1]
    assert [path.removeprefix("/vault") for path in orders[0]] == [
        *("", "/Archive", "/archive", "/b", "/b/x", "/wiki", "/Work")
    ]


def test_a_branch_elsewhere_is_named_by_its_path() -> None:
    data = render(b"", marks("/mnt/gdrive", "wiki", cloud_mounts="/mnt/gdrive|gdrive"), NONE).data
    assert data.splitlines()[1:] == [b"file:///mnt/gdrive", b"file:///vault/wiki Wiki"]


def test_foreign_lines_keep_their_bytes_and_order() -> None:
    foreign = b"sftp://host/x Host\r\nfile:///home/u/\xff\n\n  # hm\nfile:///home no newline"
    first = render(foreign, marks("a"), NONE)
    assert first.data == foreign + b"\nfile:///vault Vault\nfile:///vault/a A\n"
    gone = render(first.data, marks(), first.remembered)
    assert gone.data == foreign + b"\nfile:///vault Vault\n"


def test_a_file_that_needs_nothing_is_not_touched_even_without_a_final_newline() -> None:
    current = b"file:///vault Vault\r\nfile:///vault/a Mine"
    assert render(current, marks("a"), NONE).data == current


def test_a_new_branch_goes_beside_its_neighbours() -> None:
    first = render(b"", marks("a", "c"), NONE)
    theirs = first.data + b"file:///home/u Home\n"
    data = render(theirs, marks("0", "b", "a", "c", "d"), first.remembered).data
    assert [line.split(b"/")[-1] for line in data.splitlines()] == [
        b"vault Vault",
        b"0 0",
        b"a A",
        b"b B",
        b"c C",
        b"d D",
        b"u Home",
    ]


def test_the_vault_goes_before_branches_that_were_there_already() -> None:
    data = render(b"x\nfile:///vault/b\n", marks("b", "a"), NONE).data
    assert data == b"x\nfile:///vault Vault\nfile:///vault/a A\nfile:///vault/b\n"


def test_a_label_moves_along_unless_the_user_chose_it() -> None:
    first = render(b"", marks("a", "b"), NONE)
    renamed = first.data.replace(b"/b B", b"/b Mine")
    second = render(renamed, marks("a:ro", "b:ro"), first.remembered)
    assert second.data.splitlines()[1:] == [
        b"file:///vault/a A (read-only)",
        b"file:///vault/b Mine",
    ]
    # What the user named is the user's, even when the branch is gone.
    gone = render(second.data, marks("a:ro"), second.remembered)
    assert b"/b Mine" in gone.data


def test_a_bookmark_the_user_removed_stays_away_but_a_new_home_gets_all() -> None:
    first = render(b"", marks("a", "b"), NONE)
    removed = first.data.replace(b"file:///vault/a A\n", b"")
    second = render(removed, marks("a", "b"), first.remembered)
    assert second.data == removed
    assert render(removed, marks("a", "b"), second.remembered).data == removed
    assert render(b"x\n", marks("a", "b"), second.remembered).data == b"x\n" + first.data


def test_thunar_may_write_our_line_in_its_own_way() -> None:
    ours = marks("büro", cloud_mounts="/vault/büro|s3")
    first = render(b"", ours, NONE)
    assert first.data.splitlines()[1] == "file:///vault/büro".encode()
    rewritten = first.data.replace("ü".encode(), b"%C3%BC")
    assert render(rewritten, ours, first.remembered).data == rewritten
    doubled = rewritten + "file:///vault/büro\n".encode()
    single = render(doubled, ours, first.remembered).data
    assert single == first.data
    assert render(rewritten, marks(), first.remembered).data == b"file:///vault Vault\n"


def test_a_line_that_the_script_means_for_another_place_does_not_count() -> None:
    misread = b"file:///vault/a Drive"
    data = render(misread + b"\n", marks("a"), NONE, ignored=[misread]).data
    assert data == misread + b"\nfile:///vault Vault\nfile:///vault/a A\n"


def test_our_line_gives_way_to_the_users_for_the_same_place() -> None:
    first = render(b"", marks("a"), NONE)
    both = first.data + b"file:///vault/a My place\n"
    assert render(both, marks("a"), first.remembered).data == (
        b"file:///vault Vault\nfile:///vault/a My place\n"
    )


def test_a_killed_run_still_knows_its_lines() -> None:
    first = render(b"", marks("a"), NONE)
    known = Remembered(pending=first.remembered.written)
    assert render(first.data, marks(), known).data == b"file:///vault Vault\n"
    assert render(b"", marks("a"), known).data == first.data


def test_lines_are_never_longer_than_thunar_reads() -> None:
    # 14 bytes stand before the name; Thunar reads 1,023, with the line's end.
    fits, too_long_a_label, alone, too_long = (c * n for c, n in zip("abcd", LENGTHS, strict=True))
    found, problems = wanted("/vault", branches(fits, too_long_a_label, alone, too_long))
    assert [(len(mark.line), mark.label != "") for mark in found[1:]] == [
        (1021, True),
        (14 + 504, False),
        (1022, False),
    ]
    assert problems == (f"The path of /vault/{too_long} is too long for a bookmark.",)


GLIB = ctypes.util.find_library("gio-2.0")


@pytest.mark.skipif(GLIB is None, reason="needs GLib (libglib2.0-0)")
@pytest.mark.parametrize(
    "place",
    [
        b"/v/B\xc3\xbcro",
        b"/v/B%c3%BCro",
        b"/v/a?b",
        b"/v/100%",
        b"/v/a%4",
        b"/v/a%4x",
        b"/v/a%41",
        b'/v/a[b]*;"<>\\^{|}`',
        b"/v/wiki/",
        b"/v//wiki",
        b"/v/./w/../z",
        b"/v/a%2Fb",
        b"/v/a%00b",
        b"/v/a%ffb",
        b"localhost/v/x",
        b"elsewhere/v/x",
        b"",
    ],
)
def test_a_path_is_read_as_glib_reads_it(place: bytes) -> None:
    gio = ctypes.CDLL(GLIB)
    gio.g_file_new_for_uri.restype = ctypes.c_void_p
    gio.g_file_get_path.restype = ctypes.c_char_p
    gio.g_file_get_path.argtypes = [ctypes.c_void_p]
    path = gio.g_file_get_path(gio.g_file_new_for_uri(b"file://" + place))
    expected = None if path is None or b"elsewhere" in place else os.fsdecode(path)
    assert path_of(b"file://" + place + b" label") == expected


@pytest.mark.skipif(GLIB is None, reason="needs GLib (libglib2.0-0)")
@given(st.binary(min_size=1, max_size=20).filter(lambda name: not {0, 47} & set(name)))
def test_a_path_is_written_as_glib_writes_it(name: bytes) -> None:
    path = os.path.normpath(b"/v/" + name)
    gio = ctypes.CDLL(GLIB)
    gio.g_file_new_for_path.restype = ctypes.c_void_p
    gio.g_file_get_uri.restype = ctypes.c_char_p
    gio.g_file_get_uri.argtypes = [ctypes.c_void_p]
    expected = gio.g_file_get_uri(gio.g_file_new_for_path(path))
    (mark,), _ = wanted(os.fsdecode(path), [])
    assert mark.line.split(b" ")[0] == expected
    assert path_of(mark.line) == os.fsdecode(path)


NAMES = st.sampled_from(["a", "b", "büro", "my drive", "w/n", "\udcff", "C#", "50%"])
BRANCHES = st.lists(NAMES, unique=True, max_size=6)
FOREIGN = st.lists(
    st.one_of(
        st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")),
        st.sampled_from([b"file:///vault/a", b"file:///vault/b Mine\r", b"file:///vault/a X"]),
    ),
    max_size=8,
)


def is_subsequence(part: list[bytes], whole: list[bytes]) -> bool:
    rest = iter(whole)
    return all(line in rest for line in part)


@given(FOREIGN, BRANCHES, BRANCHES, st.booleans(), st.booleans())
def test_any_file_is_merged_without_loss(
    foreign: list[bytes], before: list[str], after: list[str], newline: bool, cloud: bool
) -> None:
    cloud_mounts = ",".join(f"/vault/{name}|s3" for name in before) if cloud else ""
    current = b"\n".join(foreign) + (b"\n" if newline else b"")
    first = render(current, marks(*before, cloud_mounts=cloud_mounts), NONE)
    second = render(first.data, marks(*after), first.remembered)
    third = render(second.data, marks(*after), second.remembered)
    assert (third.data, third.remembered) == (second.data, second.remembered)
    lines = second.data.split(b"\n")
    assert is_subsequence([line for line in foreign if line], [line for line in lines if line])
    theirs = {path_of(line) for line in foreign}
    for mark in marks(*after):
        found = [line for line in lines if path_of(line) == mark.path]
        assert found
        if mark.path not in theirs:
            assert [label_of(line) for line in found] == [mark.label]
    wanted_paths = {mark.path for mark in marks(*after)}
    for name in set(before) - set(after):
        path = f"/vault/{name}"
        assert path in theirs | wanted_paths or path not in {path_of(line) for line in lines}


def run_script(home: Path, cloud_mounts: str) -> None:
    environment = {"HOME": str(home), "CLOUD_MOUNTS": cloud_mounts, "PATH": os.environ["PATH"]}
    subprocess.run(["bash", SCRIPT], env=environment, check=True)


# Names that the script's `grep -qx` does not find again: it appends them at each start.
DOUBLED = ["a[b]", "x*"]
SCRIPT_NAMES = ["wiki", "büro", "My Drive", "My", "C#", "50%", "%41", "v1.0", *DOUBLED]


@pytest.mark.parametrize("order", ["as", "sa", "asas", "saas", "sasa", "ssaa"])
@pytest.mark.parametrize("form", ["{}|s3", "{}", "{}/|gdrive", " {}|s3"])
def test_beside_emblems_sh_in_any_order_there_is_one_bookmark(
    tmp_path: Path, order: str, form: str
) -> None:
    vault = tmp_path / "vault"
    for name in SCRIPT_NAMES:
        (vault / name).mkdir(parents=True)
    file = tmp_path / ".config" / "gtk-3.0" / "bookmarks"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"file:///home/u/Documents\n")
    cloud_mounts = ",".join(form.format(vault / name) for name in SCRIPT_NAMES)
    for step in order:
        if step == "s":
            run_script(tmp_path, cloud_mounts)
        else:
            change = bookmarks.apply(
                str(tmp_path / ".config"),
                str(vault),
                branches(*SCRIPT_NAMES),
                Memory(str(tmp_path / "state")),
                cloud_mounts=cloud_mounts,
            )
            assert change.problem == ""
    # The script's line for a name with a space is read as another path: no bookmark of that name.
    misread = {f"file://{vault}/My Drive{slash}".encode() for slash in ("", "/")}
    lines = [line for line in file.read_bytes().splitlines() if line not in misread]
    paths = [path_of(line) for line in lines]
    for name in SCRIPT_NAMES:
        count = paths.count(str(vault / name))
        if name in DOUBLED:
            assert 1 <= count <= order.count("s") + order.endswith("s")
        else:
            assert count == 1, (name, lines)
    assert paths.count(str(vault)) == 1
    assert lines[0] == b"file:///home/u/Documents"


def test_apply_says_changed_once_and_reports_what_it_left_out(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "state"))
    found = branches("a", "ü" * 250 + "/" + "ü" * 250)
    for expected in (True, False, False):
        change = bookmarks.apply(str(tmp_path / "config"), "/vault", found, memory)
        assert change.changed is expected
        assert "too long" in change.problem
    file = Path(bookmarks.bookmarks_path(str(tmp_path / "config")))
    before = file.stat().st_ino
    bookmarks.apply(str(tmp_path / "config"), "/vault", found, memory)
    assert file.stat().st_ino == before
    assert bookmarks.apply(str(tmp_path / "config"), "/vault", [], memory).changed
    assert file.read_bytes() == b"file:///vault Vault\n"


def test_apply_remembers_what_the_user_removed(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "state"))
    file = Path(bookmarks.bookmarks_path(str(tmp_path)))
    bookmarks.apply(str(tmp_path), "/vault", branches("a", "b"), memory)
    file.write_bytes(b"file:///vault Vault\nfile:///vault/b B\n")
    for found in (branches("a", "b"), branches("b"), branches("a", "b")):
        assert not bookmarks.apply(str(tmp_path), "/vault", found, memory).changed


def test_ten_thousand_lines(tmp_path: Path) -> None:
    file = Path(bookmarks.bookmarks_path(str(tmp_path)))
    file.parent.mkdir()
    foreign = b"".join(b"file:///home/u/%d\xff Place %d\n" % (i, i) for i in range(10_000))
    same_place = b"file:///vault/a Mine\n" * 1_000
    file.write_bytes(foreign + same_place)
    memory = Memory(str(tmp_path / "state"))
    assert bookmarks.apply(str(tmp_path), "/vault", branches("a", "b"), memory).changed
    after = file.read_bytes()
    assert after.startswith(foreign)
    assert after.count(b"file:///vault/a Mine\n") == 1_000
    assert not bookmarks.apply(str(tmp_path), "/vault", branches("a", "b"), memory).changed
