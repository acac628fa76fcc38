"""What policies give: the six scenarios as truth tables, and the rules one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from session_agent.policy.evaluate import evaluate, next_change
from session_agent.policy.identity import Identity
from tests.support.policies import MONDAY_NOON, modes, person, policy_of


def table(text: str, rows: list[tuple[Identity | None, str]]) -> None:
    """Each row: somebody, and the modes of the folders in the file's order."""
    policy = policy_of(text)
    found = [(who, " ".join(modes(policy, who).values())) for who, _ in rows]
    assert found == rows


def test_scenario_one_team_folder() -> None:
    table(
        """
        folders:
          - {name: engineering, path: /shared/engineering, access: [{groups: [engineering], mode: rw}]}
        """,
        [
            (person("ann", "engineering"), "rw"),
            (person("ann", "engineering", "sales"), "rw"),
            (person("bob", "sales"), "hidden"),
            (person("cyd"), "hidden"),
            (person("engineering"), "hidden"),
            (None, "hidden"),
        ],
    )


def test_scenario_one_folder_at_two_levels() -> None:
    table(
        """
        folders:
          - name: wiki
            path: /shared/wiki
            access:
              - {groups: [all-employees], mode: ro}
              - {groups: [wiki-editors], mode: rw}
        """,
        [
            (person("ann", "wiki-editors"), "rw"),
            (person("ann", "wiki-editors", "all-employees"), "rw"),
            (person("bob", "all-employees"), "ro"),
            (person("cyd"), "hidden"),
            (None, "hidden"),
        ],
    )


def test_scenario_compound_all() -> None:
    table(
        """
        folders:
          - name: deal-room-acme
            path: /shared/deals/acme
            access: [{groups: [legal, executive], compound: all, mode: rw}]
          - name: either
            path: /shared/either
            access: [{groups: [legal, executive], compound: any, mode: ro}]
        """,
        [
            (person("ann", "legal", "executive"), "rw ro"),
            (person("ann", "legal", "executive", "sales"), "rw ro"),
            (person("bob", "legal"), "hidden ro"),
            (person("bob", "executive"), "hidden ro"),
            (person("cyd", "sales"), "hidden hidden"),
            (None, "hidden hidden"),
        ],
    )


def test_scenario_derived_access() -> None:
    table(
        """
        folders:
          - name: project-alpha
            path: /shared/alpha
            access:
              - {groups: [alpha], mode: rw}
              - {groups: [guests], mode: ro}
            implies: [project-alpha-resources, {folder: handbook, mode: ro}]
          - name: project-alpha-resources
            path: /shared/alpha-resources
            implies: [fonts]
            deny: [{groups: [interns]}]
          - {name: handbook, path: /shared/handbook}
          - {name: fonts, path: /shared/fonts, access: [{groups: [designers], mode: rw}]}
        """,
        [
            (person("ann", "alpha"), "rw rw ro rw"),
            (person("bob", "guests"), "ro ro ro ro"),
            (person("bob", "guests", "designers"), "ro ro ro rw"),
            (person("cyd", "alpha", "interns"), "rw hidden ro hidden"),
            (person("dan", "designers"), "hidden hidden hidden rw"),
            (None, "hidden hidden hidden hidden"),
        ],
    )


def test_scenario_attributes() -> None:
    table(
        """
        folders:
          - name: hr-legal
            path: /shared/hr/legal
            access: [{groups: [hr], all: [department == legal], mode: rw}]
          - name: audit-emea
            path: /shared/audit/emea
            access: [{groups: [auditors], any: [region == emea, region == global], mode: ro}]
          - name: elsewhere
            path: /shared/elsewhere
            access: [{groups: [auditors], not: region == emea, mode: ro}]
        """,
        [
            (person("ann", "hr", department="legal"), "rw hidden hidden"),
            (person("ann", "hr", department="sales"), "hidden hidden hidden"),
            (person("ann", department="legal"), "hidden hidden hidden"),
            (person("bob", "auditors", region="emea"), "hidden ro hidden"),
            (person("bob", "auditors", region="global"), "hidden ro ro"),
            (person("bob", "auditors", region="apac"), "hidden hidden ro"),
            # What is not known never widens access, through `not` neither.
            (person("bob", "auditors"), "hidden hidden hidden"),
            (None, "hidden hidden hidden"),
        ],
    )


CONTRACTOR = """
    time_zone: Europe/Berlin
    folders:
      - name: project
        path: /shared/project
        access:
          - users: [carol]
            from: 2026-11-30
            until: 2026-12-04
            mode: rw
            windows: [{days: [mon-fri], from: "08:00", until: "18:00"}]
          - {users: [carol], from: 2026-11-30, until: 2026-12-04, mode: ro}
    """


@pytest.mark.parametrize(
    ("instant", "mode"),
    [
        ("2026-11-29T22:59:59", "hidden"),  # Berlin is an hour ahead in winter
        ("2026-11-29T23:00:00", "ro"),
        ("2026-11-30T06:59:59", "ro"),
        ("2026-11-30T07:00:00", "rw"),
        ("2026-11-30T16:59:59", "rw"),
        ("2026-11-30T17:00:00", "ro"),
        ("2026-12-04T16:00:00", "rw"),  # until Friday: with Friday
        ("2026-12-04T22:59:59", "ro"),
        ("2026-12-04T23:00:00", "hidden"),
    ],
)
def test_scenario_time_limited_contractor(instant: str, mode: str) -> None:
    at = datetime.fromisoformat(instant).replace(tzinfo=UTC)
    policy = policy_of(CONTRACTOR)
    assert modes(policy, person("carol"), at) == {"project": mode}
    assert modes(policy, person("dave"), at) == {"project": "hidden"}


def test_the_instants_of_changes_are_known() -> None:
    policy = policy_of(CONTRACTOR)
    at = datetime(2026, 11, 28, tzinfo=UTC)
    seen = []
    while (change := next_change(policy, at)) is not None and change < datetime(
        2026, 12, 6, tzinfo=UTC
    ):
        assert change > at
        before = modes(policy, person("carol"), change - timedelta(microseconds=1))
        after = modes(policy, person("carol"), change)
        if before != after:
            seen.append(change.isoformat()[:16])
        at = change
    assert seen[:3] == ["2026-11-29T23:00", "2026-11-30T07:00", "2026-11-30T17:00"]
    assert seen[-1] == "2026-12-04T23:00"
    assert len(seen) == 12


def test_a_window_past_midnight_belongs_to_the_day_it_begins() -> None:
    policy = policy_of(
        """
        folders:
          - name: night
            path: /n
            access:
              - everyone: true
                mode: ro
                windows: [{days: [fri], from: "22:00", until: "06:00", time_zone: UTC}]
        """
    )
    friday = datetime(2026, 11, 27, 22, tzinfo=UTC)
    for offset, mode in (
        (-1, "hidden"),
        (0, "ro"),
        (7, "ro"),
        (8, "hidden"),
        (24, "hidden"),
        (-17, "hidden"),
    ):
        assert modes(policy, None, friday + timedelta(hours=offset)) == {"night": mode}, offset


def test_windows_follow_the_clocks_of_their_zone() -> None:
    policy = policy_of(
        """
        folders:
          - name: a
            path: /a
            access:
              - everyone: true
                mode: ro
                windows: [{from: "08:00", until: "18:00", time_zone: Europe/Berlin}]
        """
    )
    for day, hour in (("2026-03-28", 7), ("2026-03-29", 6), ("2026-10-24", 6), ("2026-10-25", 7)):
        opens = datetime.fromisoformat(f"{day}T{hour:02}:00:00+00:00")
        assert modes(policy, None, opens - timedelta(seconds=1)) == {"a": "hidden"}
        assert modes(policy, None, opens) == {"a": "ro"}
        assert next_change(policy, opens - timedelta(seconds=1)) == opens


class TestDenial:
    TEXT = """
        folders:
          - name: a
            path: /a
            access: [{everyone: true, mode: rw}]
            deny: [{groups: [contractors]}, {any: [clearance == none]}]
        """

    def test_it_always_wins(self) -> None:
        policy = policy_of(self.TEXT)
        assert modes(policy, person("u", clearance="high")) == {"a": "rw"}
        assert modes(policy, person("u", "contractors", clearance="high")) == {"a": "hidden"}
        assert modes(policy, person("u", clearance="none")) == {"a": "hidden"}

    def test_what_is_not_known_is_denied(self) -> None:
        policy = policy_of(self.TEXT)
        assert modes(policy, person("u")) == {"a": "hidden"}
        assert modes(policy, None) == {"a": "hidden"}

    def test_one_that_is_over_denies_nothing(self) -> None:
        policy = policy_of(
            """
            folders:
              - name: a
                path: /a
                access: [{everyone: true, mode: rw}]
                deny: [{users: [u], until: 2026-11-30T11:00Z}]
            """
        )
        assert modes(policy, person("u")) == {"a": "rw"}
        assert modes(policy, person("u"), MONDAY_NOON - timedelta(hours=2)) == {"a": "hidden"}


def test_nobody_known_gets_what_needs_no_identity() -> None:
    policy = policy_of(
        """
        folders:
          - {name: public, path: /p, access: [{everyone: true, mode: ro}, {groups: [x], mode: rw}]}
          - {name: others, path: /o, access: [{not: {groups: [contractors]}, mode: ro}]}
        """
    )
    assert modes(policy, None) == {"public": "ro", "others": "hidden"}
    assert modes(policy, person("u")) == {"public": "ro", "others": "ro"}


def test_groups_by_members_nesting_and_an_identity_providers_names() -> None:
    policy = policy_of(
        """
        groups:
          all: {groups: [dev, ops]}
          dev: {members: [ann], provided: ["CN=Developers,OU=Groups"]}
          ops: [bob]
        folders:
          - {name: all, path: /all, access: [{groups: [all], mode: ro}]}
          - {name: dev, path: /dev, access: [{groups: [dev], mode: rw}]}
        """
    )
    assert modes(policy, person("ann")) == {"all": "ro", "dev": "rw"}
    assert modes(policy, person("bob")) == {"all": "ro", "dev": "hidden"}
    assert modes(policy, person("cyd", "CN=Developers,OU=Groups")) == {"all": "ro", "dev": "rw"}
    assert modes(policy, person("cyd", "ops")) == {"all": "ro", "dev": "hidden"}
    # `provided` stands in place of the group's own name.
    assert modes(policy, person("cyd", "dev")) == {"all": "hidden", "dev": "hidden"}


class TestSubfolders:
    TEXT = """
        folders:
          - name: a
            path: /a
            access: [{groups: [g], mode: rw}, {everyone: true, mode: ro}]
            subfolders:
              - {path: archive, mode: ro}
              - {path: archive/inbox, mode: rw}
              - {path: hr, access: [{groups: [hr], mode: rw}]}
              - {path: hr/forms, deny: [{groups: [interns]}]}
        """

    @pytest.mark.parametrize(
        ("groups", "expected"),
        [
            ("g", "rw ro rw hidden hidden"),
            ("", "ro ro rw hidden hidden"),
            ("hr", "ro ro rw rw rw"),
            ("g hr interns", "rw ro rw rw hidden"),
        ],
    )
    def test_they_have_modes_of_their_own(self, groups: str, expected: str) -> None:
        found = modes(policy_of(self.TEXT), person("u", *groups.split()))
        order = ["a", "a/archive", "a/archive/inbox", "a/hr", "a/hr/forms"]
        assert [found[name] for name in order] == expected.split()

    def test_nothing_is_seen_in_what_is_hidden(self) -> None:
        policy = policy_of(
            """
            folders:
              - name: a
                path: /a
                access: [{groups: [g], mode: rw}]
                subfolders: [{path: x, access: [{everyone: true, mode: rw}]}]
            """
        )
        assert modes(policy, person("u")) == {"a": "hidden", "a/x": "hidden"}

    def test_one_that_a_users_name_makes_the_same_as_another_is_the_weaker(self) -> None:
        policy = policy_of(
            """
            folders:
              - name: a
                path: /a
                access: [{everyone: true, mode: ro}]
                subfolders: [{path: "{username}", mode: rw}, {path: shared, mode: ro}]
            """
        )
        assert modes(policy, person("ann")) == {"a": "ro", "a/ann": "rw", "a/shared": "ro"}
        assert modes(policy, person("shared")) == {"a": "ro", "a/shared": "ro"}


class TestPlaceholders:
    TEXT = """
        folders:
          - name: home
            path: /home/{username}-{user_id}
            target: /vault/{username}
            access: [{everyone: true, mode: rw}]
        """

    def test_they_are_filled(self) -> None:
        grant = evaluate(policy_of(self.TEXT), person("ann", user_id="7"), MONDAY_NOON)[0]
        assert (grant.path, grant.target, grant.mode) == ("/home/ann-7", "/vault/ann", "rw")

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "a/b", "../x", "a\0b", "{user_id}", "a\nb", "x" * 256]
    )
    def test_a_value_that_would_lead_elsewhere_hides(self, name: str) -> None:
        identity = Identity(name, "7")
        assert modes(policy_of(self.TEXT), identity) == {"home": "hidden"}

    def test_nobody_known_has_none(self) -> None:
        assert modes(policy_of(self.TEXT), None) == {"home": "hidden"}

    def test_a_part_that_cannot_be_named_hides_the_whole(self) -> None:
        policy = policy_of(
            """
            folders:
              - name: a
                path: /a
                access: [{everyone: true, mode: rw}]
                subfolders: [{path: "{user_id}", mode: ro}]
            """
        )
        assert modes(policy, person("u")) == {"a": "hidden", "a/{user_id}": "hidden"}


def test_reasons() -> None:
    policy = policy_of(
        """
        folders:
          - name: a
            path: /a
            because: the team's
            access: [{groups: [g], mode: ro}, {groups: [h], mode: rw, because: they write it}]
            deny: [{groups: [x], because: left the company}]
            implies: [b]
          - {name: b, path: /b}
        """
    )

    def reasons(*groups: str) -> list[str]:
        return [grant.because for grant in evaluate(policy, person("u", *groups), MONDAY_NOON)]

    assert reasons("g") == ["the team's", "access to a includes it (the team's)"]
    assert reasons("h")[0] == "they write it"
    assert reasons("h", "x") == ["left the company", "no rule matches"]
    assert reasons() == ["no rule matches", "no rule matches"]
