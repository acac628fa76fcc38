from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_agent.mounts.mountinfo import MountEntry, parse, read

CAPTURES = Path(__file__).parents[2] / "data/mountinfo"


def test_every_field() -> None:
    line = rb"98 78 254:0 /a\040b /c\011d ro,relatime master:2 shared:7 - fuse.x y\012z rw,a\134b"
    assert parse(line) == [
        MountEntry(
            mount_id=98,
            parent_id=78,
            device="254:0",
            root="/a b",
            path="/c\td",
            options=("ro", "relatime"),
            optional=("master:2", "shared:7"),
            fstype="fuse.x",
            source="y\nz",
            super_options=("rw", "a\\b"),
        )
    ]


@pytest.mark.parametrize("optional", [b"", b"shared:1 ", b"master:1 propagate_from:2 unbindable "])
def test_any_number_of_optional_fields(optional: bytes) -> None:
    (entry,) = parse(b"1 0 0:1 / /x rw " + optional + b"- tmpfs none rw")
    assert (entry.optional, entry.fstype) == (tuple(optional.decode().split()), "tmpfs")


def test_names_that_look_like_syntax() -> None:
    """A dash is the separator only where it can be one; "\\0409" is a space and a nine."""
    (entry,) = parse(rb"1 0 0:1 / /-/\0409/\9/\777 rw - - - rw")
    assert (entry.path, entry.fstype, entry.source) == ("/-/ 9/\\9/\\777", "-", "-")


def test_an_empty_source() -> None:
    (entry,) = parse(b"1 0 0:1 / /x rw - tmpfs  ro,size=1")
    assert (entry.source, entry.super_options) == ("", ("ro", "size=1"))


@pytest.mark.parametrize(
    ("options", "super_options", "read_only"),
    [
        (b"rw", b"rw", False),
        (b"ro,relatime", b"rw", True),
        (b"rw,relatime", b"ro,size=1", True),
        (b"rw", b"rw,ro", False),  # an option of a file system's own
        (b"rw", b"", False),
    ],
)
def test_read_only(options: bytes, super_options: bytes, read_only: bool) -> None:
    (entry,) = parse(b"1 0 0:1 / /x " + options + b" - tmpfs none " + super_options)
    assert entry.read_only is read_only


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"1 0 0:1 / /x rw tmpfs none rw",
        b"1 0 0:1 / /x rw - tmpfs",
        b"1 0 0:1 / relative rw - tmpfs none rw",
        b"x 0 0:1 / /x rw - tmpfs none rw",
        b"1 0 0:1 / /x rw -  none rw",
        b"1 0 - tmpfs none rw",
        b"1 0 0:1 / /x - tmpfs none rw",
    ],
)
def test_garbage_is_left_out(line: bytes) -> None:
    good = b"1 0 0:1 / /x rw - tmpfs none rw"
    assert parse(line) == []
    assert len(parse(b"\n".join([good, line, good, b""]))) == 2
    assert len(parse([good + b"\n", line + b"\n"])) == 1


@pytest.mark.parametrize(("name", "mounts"), [("container", 36), ("host", 19)])
def test_captures_are_understood_whole(name: str, mounts: int) -> None:
    text = (CAPTURES / f"{name}.txt").read_bytes()
    assert len(parse(text)) == len(text.splitlines()) == mounts


def test_the_capture_of_odd_names() -> None:
    paths = [entry.path for entry in parse((CAPTURES / "container.txt").read_bytes())]
    assert "/vault/My Drive" in paths
    assert "/vault/B\u00fcro\ttab" in paths


def test_reads_the_list_of_this_process() -> None:
    assert "/" in {entry.path for entry in read()}


_names = st.binary().filter(lambda name: b"\0" not in name)


def _escape(name: bytes) -> bytes:
    """As the kernel does: fs/seq_file.c, `mangle_path`."""
    return b"".join(b"\\%03o" % c if c in b" \t\n\\" else bytes([c]) for c in name)


@given(_names, _names, _names)
def test_escapes_round_trip(root: bytes, path: bytes, source: bytes) -> None:
    fields = (b"/" + _escape(root), b"/" + _escape(path), _escape(source))
    (entry,) = parse(b"1 0 0:1 %s %s rw - ext4 %s rw" % fields)
    assert os.fsencode(entry.root) == b"/" + root
    assert os.fsencode(entry.path) == b"/" + path
    assert os.fsencode(entry.source) == source


@given(
    st.binary() | st.lists(st.sampled_from([b"1", b"-", b" ", b"/x", b"\\", b"\n"])).map(b"".join)
)
def test_never_raises(text: bytes) -> None:
    assert len(parse(text)) <= text.count(b"\n") + 1
