"""From grants to what may be done where in the branches that a session has."""

from __future__ import annotations

from session_agent.model import Branch, Grant, Mode, MountKind, MountState
from session_agent.policy.evaluate import FolderGrant
from session_agent.policy.limit import HIDDEN, Limit, branch_limits

HIDE, RO, RW = Grant.HIDDEN, Grant.RO, Grant.RW


def branch(name: str, path: str = "") -> Branch:
    return Branch(name, path or f"/vault/{name}", Mode.RW, MountState.ALIVE, MountKind.LOCAL)


def grant(path: str, mode: Grant, target: str = "") -> FolderGrant:
    return FolderGrant("x", "", path, target or path, mode, "")


def limits(
    branches: list[Branch], grants: list[FolderGrant] | None, shown: bool = False
) -> dict[str, object]:
    """Each limit as its grant, or as the grant and what is below."""
    found = branch_limits("/vault", branches, grants, "shown" if shown else "hidden")
    return {name: plain(limit) for name, limit in found.items()}


def plain(limit: Limit) -> object:
    below = {name.decode(): plain(inner) for name, inner in limit.below.items()}
    return (limit.grant, below) if below else limit.grant


def test_a_branch_is_the_folder_by_its_target_or_its_path() -> None:
    branches = [branch("a"), branch("b", "/shared/b"), branch("c", "/s3")]
    grants = [
        grant("/host/a", RO, "/vault/a"),
        grant("/shared/b", RW, "/elsewhere/b"),
        grant("/host/c", RW, "/s3"),
    ]
    assert {n: g for n, g in limits(branches, grants).items() if n} == {"a": RO, "b": RW, "c": RW}


def test_without_a_usable_policy_everything_is_hidden() -> None:
    assert limits([branch("a")], None) == {"": RW, "a": HIDE}
    assert limits([branch("a")], None, shown=True) == {"": RW, "a": HIDE}


def test_what_the_policy_does_not_speak_of() -> None:
    assert limits([branch("a")], []) == {"": RW, "a": HIDE}
    assert limits([branch("a")], [], shown=True) == {"": RW, "a": RW}


def test_a_branch_that_holds_several_folders_only_leads_to_them() -> None:
    shared = branch("shared", "/shared")
    grants = [grant("/shared/eng", RW), grant("/shared/deals/acme", RO), grant("/shared/x", HIDE)]
    inside = {"eng": RW, "deals": (None, {"acme": RO}), "x": HIDE}
    assert limits([shared], grants)["shared"] == (None, inside)
    assert limits([shared], grants, shown=True)["shared"] == (
        RW,
        {"eng": RW, "deals": (RW, {"acme": RO}), "x": HIDE},
    )
    assert limits([shared], [grant("/shared/x", HIDE)])["shared"] == HIDE


def test_a_branch_that_lies_in_a_folder_is_as_that() -> None:
    inner = branch("eng/big", "/vault/eng/big")
    grants = [grant("/vault/eng", RO), grant("/vault", HIDE)]
    assert limits([inner], grants)["eng/big"] == RO
    assert limits([inner], [*grants, grant("/vault/eng/big", RW)])["eng/big"] == RW


def test_of_two_folders_at_one_place_the_weaker_holds() -> None:
    two = [grant("/host/a", RW, "/vault/a"), grant("/vault/a", RO, "/other")]
    assert limits([branch("a")], two)["a"] == RO
    assert limits([branch("a")], two[::-1])["a"] == RO


def test_a_branch_that_may_be_seen_can_be_reached() -> None:
    branches = [branch("a"), branch("a/b/c")]
    grants = [grant("/host/c", RW, "/vault/a/b/c")]
    found = limits(branches, grants)
    assert found["a/b/c"] == RW
    assert found["a"] == (None, {"b": (None, {"c": RW})})
    assert limits(branches, [grant("/host/c", HIDE, "/vault/a/b/c")])["a"] == HIDE


def test_the_root_branch_is_the_users_own_but_for_governed_names() -> None:
    found = limits([], [grant("/x/deals", HIDE, "/vault/deals"), grant("/vault", HIDE)])
    assert found == {"": (RW, {"deals": HIDE})}


def test_names_that_a_file_system_may_take_for_the_same_are_hidden() -> None:
    limit = Limit(RW, {"Straße".encode(): HIDDEN, b"open": Limit(RO)})
    assert limit.child(b"open").grant is RO
    for name in ("STRASSE", "straße", "OPEN", "ｏｐｅｎ"):
        assert limit.child(name.encode()).hidden, name
    for other in (b"other", b"\xff", b"openx"):
        assert limit.child(other).grant is RW
    assert Limit(None, {b"a": Limit(RO)}).child(b"b").hidden
