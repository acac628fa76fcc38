from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from session_agent.desktop.merge import Json, same
from session_agent.desktop.pointers import flatten, patch, stands_in_the_way

KEYS = st.sampled_from(["a", "b", "", "a/b", "~", "~1"])
JSON: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["x", "y"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=3)
SETS = st.sampled_from([(), ("/a",), ("/a/b", "/b")])


def test_pointers_are_those_of_the_standard() -> None:
    assert flatten({"a/b": {"m~n": 1, "": [2]}, "c": {}}) == {
        "/a~1b/m~0n": 1,
        "/a~1b/": [2],
        "/c": {},
    }
    assert flatten(None) == {}
    assert flatten(["x", "y/"], [""]) == {"/x": True, "/y~1": True}


def test_what_stays_keeps_its_place_and_what_is_new_comes_last() -> None:
    before: Json = {"z": {"b": 1, "a": 2}, "list": ["q", "p"], "k": 0}
    values = flatten(before, ["/list"])
    del values["/z/b"], values["/list/q"]
    after = patch(before, {**values, "/z/0": 3, "/list/r": True, "/new/x": 4}, ["/list"])
    assert list(after.items()) == [  # type: ignore[union-attr]
        ("z", {"a": 2, "0": 3}),
        ("list", ["p", "r"]),
        ("k", 0),
        ("new", {"x": 4}),
    ]
    assert before == {"z": {"b": 1, "a": 2}, "list": ["q", "p"], "k": 0}


def test_a_set_that_is_not_there_is_made() -> None:
    assert patch(None, {"/x": True}, [""]) == ["x"]
    assert patch({"a": 1}, {"/a": 1, "/s/x": True, "/s/y": True}, ["/s"]) == {
        "a": 1,
        "s": ["x", "y"],
    }


def test_what_stands_in_the_way() -> None:
    values: dict[str, Json] = {"/a": 1, "/b/c": 2, "/d": {}, "/s": 3}
    assert stands_in_the_way("/a/x", values)
    assert stands_in_the_way("/b", values)
    assert not stands_in_the_way("/d/x", values)
    assert not stands_in_the_way("/b/d", values)
    assert stands_in_the_way("/d/x", values, ["/d"])


@given(OBJECTS, SETS)
def test_nothing_changed_changes_nothing(document: dict[str, Json], sets: tuple[str, ...]) -> None:
    assert same(patch(document, flatten(document, sets), sets), document)


@given(OBJECTS, OBJECTS, SETS)
def test_what_is_put_in_is_there(
    document: dict[str, Json], other: dict[str, Json], sets: tuple[str, ...]
) -> None:
    after = flatten(document, sets)
    for pointer, value in flatten(other, sets).items():
        if pointer in after or not stands_in_the_way(pointer, after, sets):
            after[pointer] = value
    found = flatten(patch(document, after, sets), sets)
    filled = {key for key in after if any(other.startswith(key + "/") for other in after)}
    assert all(after[key] == {} for key in filled)
    assert found == {key: value for key, value in after.items() if key not in filled}
