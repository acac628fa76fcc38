from __future__ import annotations

import os
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_agent.model import CloudMount
from session_agent.mounts.cloud_mounts import TYPES, parse


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ("", []),
        (" , ,,", []),
        ("/s3|s3", [CloudMount("/s3", "s3")]),
        ("/a|s3,/b|gdrive", [CloudMount("/a", "s3"), CloudMount("/b", "gdrive")]),
        (" /a | S3 ,\n, /b|OneDrive ,", [CloudMount("/a", "s3"), CloudMount("/b", "onedrive")]),
        ("/My Drive|gdrive", [CloudMount("/My Drive", "gdrive")]),
        ("/My%20Drive|gdrive", [CloudMount("/My Drive", "gdrive")]),
        ("/a%2Cb%7Cc|kasm", [CloudMount("/a,b|c", "kasm")]),
        ("/100%|dropbox", [CloudMount("/100%", "dropbox")]),
        ("/B%C3%BCro%FF|s3", [CloudMount(os.fsdecode(b"/B\xc3\xbcro\xff"), "s3")]),
        ("//a//b/./c/|s3", [CloudMount("/a/b/c", "s3")]),
        ("/a|s3,/a/|s3", [CloudMount("/a", "s3")]),
    ],
)
def test_what_is_in_order(value: str, entries: list[CloudMount]) -> None:
    assert parse(value) == (entries, [])


@pytest.mark.parametrize("value", ["/a", "/a|", "/a| ", "/a|ftp", "/a|s3|s3"])
def test_a_type_that_is_missing_or_unknown_is_one_warning(value: str) -> None:
    entries, warnings = parse(f"{value},/b|s3")
    assert entries == [CloudMount("/a", ""), CloudMount("/b", "s3")]
    assert len(warnings) == 1
    assert repr(value.strip()) in warnings[0]
    assert "s3" in warnings[0]


@pytest.mark.parametrize("value", ["a|s3", "|s3", "|", "/|s3", "/..|s3", "/a%00b|s3", "\ud800|s3"])
def test_an_entry_without_a_usable_path_is_one_warning(value: str) -> None:
    entries, warnings = parse(f"{value},/b|s3")
    assert entries == [CloudMount("/b", "s3")]
    assert len(warnings) == 1
    assert repr(value) in warnings[0]


def test_the_first_of_two_types_stays() -> None:
    entries, warnings = parse("/a|s3,/a|gdrive")
    assert entries == [CloudMount("/a", "s3")]
    assert len(warnings) == 1
    assert "'/a|gdrive'" in warnings[0]


def test_warnings_pass_no_control_characters_on() -> None:
    _, warnings = parse("x\x1b[2J\udcff|s3")
    assert warnings[0].isprintable()


_components = st.binary(min_size=1).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)


@given(st.lists(st.tuples(_components, st.sampled_from(sorted(TYPES))), unique_by=lambda e: e[0]))
def test_percent_encoding_round_trips(entries: list[tuple[bytes, str]]) -> None:
    value = ",".join(f"/{quote(name)}|{kind}" for name, kind in entries)
    assert parse(value) == ([CloudMount(os.fsdecode(b"/" + n), t) for n, t in entries], [])


_texts = st.text(st.characters(exclude_categories=[])) | st.text("/|,% .s3a\0\udcff")


@given(_texts)
def test_never_raises_and_counts_bad_entries_once(value: str) -> None:
    entries, warnings = parse(value)
    assert len(warnings) <= value.count(",") + 1
    assert len({entry.path for entry in entries}) == len(entries)
    assert all(entry.path.startswith("/") and entry.type in {*TYPES, ""} for entry in entries)
