"""Plans for programs, Docker and Kasm; comparison, explanation and differences."""

from __future__ import annotations

import csv
import json

from session_agent.policy import compare, kasm, plan
from session_agent.policy.diff import diff
from session_agent.policy.evaluate import evaluate
from session_agent.policy.explain import explain
from session_agent.policy.identity import Identity
from session_agent.policy.model import Policy
from tests.support.policies import MONDAY_NOON, person, policy_of

POLICY = """
    folders:
      - name: engineering
        path: /shared/engineering
        access: [{groups: [engineering], mode: rw}, {groups: [staff], mode: ro}]
        subfolders:
          - {path: salaries, access: [{groups: [hr], mode: rw}]}
          - {path: salaries/forms, mode: ro}
          - {path: archive, mode: ro}
      - name: notes
        path: /home/{username}/a,"b"
        target: /notes
        access: [{users: [ann], mode: rw}]
      - name: drive
        path: /bucket
        storage: {type: s3, options: {s3-region: eu-central-1, s3-secret-access-key: hunter2}}
        access: [{groups: [staff], mode: ro}]
      - name: hidden
        path: /hidden
        access: [{groups: [none], mode: rw}]
    """


def entries(policy: Policy, identity: Identity | None) -> dict[str, object]:
    return plan.as_json(plan.flat(evaluate(policy, identity, MONDAY_NOON)))


def test_the_flat_list() -> None:
    found = entries(policy_of(POLICY), person("ann", "engineering"))
    assert found == {
        "folders": [
            {
                "name": "engineering",
                "path": "/shared/engineering",
                "target": "/vault/engineering",
                "mode": "rw",
                "because": "group engineering",
            },
            {
                "name": "engineering/salaries",
                "path": "/shared/engineering/salaries",
                "target": "/vault/engineering/salaries",
                "mode": "hidden",
                "because": "no rule matches",
            },
            {
                "name": "engineering/archive",
                "path": "/shared/engineering/archive",
                "target": "/vault/engineering/archive",
                "mode": "ro",
                "because": "for whoever sees what it lies in",
            },
            {
                "name": "notes",
                "path": '/home/ann/a,"b"',
                "target": "/notes",
                "mode": "rw",
                "because": "user ann",
            },
        ]
    }


def test_a_part_with_the_mode_of_what_it_lies_in_is_no_entry() -> None:
    found = plan.flat(evaluate(policy_of(POLICY), person("bob", "staff"), MONDAY_NOON))
    assert [(plan.label(entry), entry.mode) for entry in found] == [
        ("engineering", "ro"),
        ("engineering/salaries", "hidden"),
        ("drive", "ro"),
    ]


def test_docker() -> None:
    policy = policy_of(POLICY)
    found = plan.as_docker(plan.flat(evaluate(policy, person("ann", "staff"), MONDAY_NOON)))
    run = found["run"]
    assert isinstance(run, list)
    assert run[::2] == ["--mount"] * 4
    assert [next(csv.reader([line])) for line in run[1::2]] == [
        ["type=bind", "source=/shared/engineering", "target=/vault/engineering", "readonly"],
        ["type=tmpfs", "target=/vault/engineering/salaries", "tmpfs-mode=0555", "readonly"],
        ["type=bind", 'source=/home/ann/a,"b"', "target=/notes"],
        ["type=bind", "source=/bucket", "target=/vault/drive", "readonly"],
    ]
    assert found["volumes"] == {
        "/shared/engineering": {"bind": "/vault/engineering", "mode": "ro"},
        '/home/ann/a,"b"': {"bind": "/notes", "mode": "rw"},
        "/bucket": {"bind": "/vault/drive", "mode": "ro"},
    }
    assert found["tmpfs"] == {"/vault/engineering/salaries": "ro,mode=0555"}
    mounts = found["mounts"]
    assert isinstance(mounts, list)
    assert mounts[0] == {
        "target": "/vault/engineering",
        "source": "/shared/engineering",
        "type": "bind",
        "read_only": True,
    }


def test_kasm() -> None:
    found = kasm.as_json(policy_of(POLICY))
    text = json.dumps(found)
    assert "hunter2" not in text
    assert found["group_mappings"] == {
        "engineering": [
            {"provider": "engineering", "target": "/vault/engineering", "read_only": False}
        ],
        "staff": [
            {"provider": "engineering", "target": "/vault/engineering", "read_only": True},
            {"provider": "drive", "target": "/vault/drive", "read_only": True},
        ],
        "none": [{"provider": "hidden", "target": "/vault/hidden", "read_only": False}],
    }
    assert found["user_mappings"] == {
        "ann": [{"provider": "notes", "target": "/notes", "read_only": False}]
    }
    assert found["run_config"] == {"environment": {"CLOUD_MOUNTS": "/vault/drive|s3"}}
    providers = found["storage_providers"]
    assert isinstance(providers, list)
    assert providers[2] == {
        "name": "drive",
        "type": "s3",
        "volume_config": {
            "driver": "rclone",
            "driver_opts": {
                "path": "bucket",
                "uid": "1000",
                "gid": "1000",
                "allow_other": "true",
                "vfs-cache-mode": "off",
                "dir-cache-time": "10s",
                "type": "s3",
                "s3-provider": "<s3-provider>",
                "s3-region": "eu-central-1",
                "s3-access-key-id": "<s3-access-key-id>",
                "s3-secret-access-key": "<s3-secret-access-key>",
            },
        },
        "mount_config": {},
    }
    missing = found["not_expressible"]
    assert isinstance(missing, list)
    assert [(gap["folder"], gap["line"]) for gap in missing] == [
        ("engineering", 3), ("engineering", 7), ("engineering", 9), ("engineering", 8),
    ]  # fmt: skip


def test_kasm_for_some_groups() -> None:
    found = kasm.as_json(policy_of(POLICY), frozenset({"none"}))
    assert found["group_mappings"] == {
        "none": [{"provider": "hidden", "target": "/vault/hidden", "read_only": False}]
    }


BEYOND_KASM = """
    folders:
      - {name: a, path: /a, access: [{groups: [x, y], compound: all, mode: rw}], implies: [b]}
      - name: b
        path: /b
        access:
          - {groups: [x], mode: ro, until: 2027-01-01T00:00Z}
          - groups: [y]
            mode: ro
            windows: [{days: [mon-fri], from: "08:00", until: "18:00", time_zone: UTC}]
      - {name: c, path: /c, access: [{groups: [x], not: {users: [u]}, mode: ro}]}
      - {name: d, path: /d, access: [{any: [k == v], mode: ro}, {groups: [x], mode: rw}]}
      - {name: e, path: /e, access: [{groups: [x], mode: ro}], deny: [{users: [v]}]}
      - {name: f, path: /f, access: [{groups: [x], mode: ro}, {groups: [y], mode: rw}]}
    """


def test_what_kasm_cannot_express() -> None:
    found = kasm.as_json(policy_of(BEYOND_KASM))["not_expressible"]
    assert isinstance(found, list)
    assert [(gap["folder"], gap["reason"].partition(":")[0]) for gap in found] == [
        ("a", "group x and group y"),
        ("a", "implies b"),
        ("b", "limited in time"),
        ("b", "limited in time"),
        ("c", "group x and not (user u)"),
        ("d", "k == v"),
        ("e", "deny"),
        ("f", "two modes for one folder"),
    ]


def test_comparison() -> None:
    policy = policy_of(BEYOND_KASM)
    # Mappings: d, e, f twice; one each for the six groups made for the rest, and two for limited times.
    assert compare.count(policy) == compare.Counts(6, 12, 6, 6 + 12 + 6 + 1, 10)
    assert [(point.name, point.lines) for point in compare.tipping_points(policy)] == [
        ("more than five shared folders with mixed rights", (3, 4, 11, 12, 13, 14)),
        ("one folder at two levels", (14,)),
        ("groups that do not map", (3, 11, 12)),
        ("time-limited access", (7, 8)),
        ("derived access", (3,)),
    ]


def test_a_simple_file_tips_nothing() -> None:
    policy = policy_of("folders: [{name: a, path: /a, access: [{groups: [g], mode: rw}]}]")
    assert compare.tipping_points(policy) == []
    assert compare.count(policy) == compare.Counts(1, 1, 0, 2, 0)


def test_explanation_goes_rule_by_rule() -> None:
    policy = policy_of(
        """
        folders:
          - name: a
            path: /a
            deny: [{any: [clearance == none]}]
            access:
              - {groups: [g], mode: rw}
              - {groups: [h], mode: ro, from: 2027-01-01T00:00Z}
            subfolders: [{path: x, access: [{groups: [z], mode: ro}]}]
          - {name: b, path: /b, access: [{users: [u], mode: rw}], implies: [{folder: a, mode: ro}]}
        """
    )
    found = explain(policy, person("u", "h", clearance="high"), MONDAY_NOON, "a")
    assert found is not None
    assert found.modes == (
        ("", "ro", "access to b includes it (user u)"),
        ("x", "hidden", "no rule matches"),
    )
    assert [(rule.line, rule.answer) for rule in found.rules] == [
        (5, "does not match"),
        (7, "does not match"),
        (8, "does not match: not before 2027-01-01T00:00:00+00:00"),
        (10, "matches"),
        (9, "does not match"),
    ]
    poorer = explain(policy, person("u"), MONDAY_NOON, "a")
    assert poorer is not None
    assert poorer.rules[0].answer == (
        "matches: clearance is not known of the user, which counts as denied"
    )
    unknown = explain(policy, None, MONDAY_NOON, "a")
    assert unknown is not None
    assert unknown.rules[1].answer == "does not match: the user is not known"
    assert explain(policy, None, MONDAY_NOON, "c") is None


def test_differences_say_for_whom() -> None:
    old = policy_of(
        """
        folders:
          - {name: a, path: /a, access: [{groups: [g], mode: rw}, {users: [u], mode: ro}]}
          - {name: gone, path: /gone, access: [{everyone: true, mode: ro}]}
        """
    )
    new = policy_of(
        """
        folders:
          - name: a
            path: /a
            access: [{groups: [g, h], compound: all, mode: rw}, {any: [k == v], mode: ro}]
        """
    )
    changes = {(c.who, c.folder): f"{c.before} {c.after}" for c in diff(old, new, MONDAY_NOON)}
    assert changes == {
        ("somebody unknown", "gone"): "ro hidden",
        ("any other user", "gone"): "ro hidden",
        ("user u", "a"): "ro hidden",
        ("user u", "gone"): "ro hidden",
        ("group g", "a"): "rw hidden",
        ("group g", "gone"): "ro hidden",
        ("group g, group h", "gone"): "ro hidden",
        ("k == v", "a"): "hidden ro",
        ("k == v", "gone"): "ro hidden",
    }
    assert diff(old, old, MONDAY_NOON) == []
