from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from session_agent.mounts.names import assign, below

VAULT = "/vault"


def test_below_the_vault_the_path_is_the_name() -> None:
    assert assign(["/vault/wiki", "/vault/wiki/nested", "/vault/My Drive"], VAULT) == {
        "/vault/wiki": "wiki",
        "/vault/wiki/nested": "wiki/nested",
        "/vault/My Drive": "My Drive",
    }


def test_elsewhere_the_last_component_is() -> None:
    assert assign(["/s3", "/mnt/deep/drive", "/vaults/x"], VAULT) == {
        "/s3": "s3",
        "/mnt/deep/drive": "drive",
        "/vaults/x": "x",
    }


def test_taken_names_are_numbered() -> None:
    assert assign(["/c/x", "/a/x", "/b/x", "/d/x-2"], VAULT) == {
        "/a/x": "x",
        "/b/x": "x-2",
        "/c/x": "x-3",
        "/d/x-2": "x-2-2",
    }


def test_the_vault_has_the_first_choice() -> None:
    assert assign(["/a/x", "/vault/x"], VAULT) == {"/a/x": "x-2", "/vault/x": "x"}


def test_nothing_comes_to_lie_above_a_nested_branch() -> None:
    assert assign(["/mnt/wiki", "/vault/wiki/nested"], VAULT)["/mnt/wiki"] == "wiki-2"


def test_the_root_branch_keeps_its_folders() -> None:
    assert assign(["/mnt/.obsidian", "/vault/.trash"], VAULT) == {
        "/mnt/.obsidian": ".obsidian-2",
        "/vault/.trash": ".trash",
    }


def test_the_vault_itself() -> None:
    assert assign(["/vault", "/vault/a"], VAULT) == {"/vault": ".", "/vault/a": "a"}


def test_below() -> None:
    assert below("/a/b/c", "/a") == "b/c"
    assert below("/a", "/a") == "."
    assert below("/ab", "/a") is None
    assert below("/a", "/a/b") is None
    assert below("/a", "/") == "a"
    assert below("/", "/") == "."


_paths = st.lists(
    st.lists(st.sampled_from(["vault", "x", "x-2", "wiki", ".trash"]), min_size=1, max_size=3).map(
        lambda parts: "/" + "/".join(parts)
    ),
    unique=True,
)


@given(_paths, st.randoms())
def test_names_are_unique_and_do_not_depend_on_the_order(paths: list[str], random: Random) -> None:
    names = assign(paths, VAULT)
    assert len(set(names.values())) == len(paths) == len(names)
    shuffled = list(paths)
    random.shuffle(shuffled)
    assert assign(shuffled, VAULT) == names
