"""The verbs `plan` and `policy` as administrators use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from session_agent.cli.main import main

POLICY = """\
folders:
  - name: wiki
    path: /shared/wiki
    access:
      - {groups: [staff], mode: ro}
      - {any: [role == editor], mode: rw, until: 2026-12-01T00:00Z}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vault-permissions.yaml"
    path.write_text(POLICY)
    return path


def out(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    assert main([*map(str, words)]) == code
    captured = capsys.readouterr()
    return captured.out if code != 1 else captured.out + captured.err


class TestPlan:
    def test_json(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("plan", "--policy", file, "--user", "ann", "--groups", "x, staff")
        expected = {
            "folders": [
                {
                    "name": "wiki",
                    "path": "/shared/wiki",
                    "target": "/vault/wiki",
                    "mode": "ro",
                    "because": "group staff",
                }
            ]
        }
        assert json.loads(out(capsys, *words, "--format", "json")) == expected
        assert json.loads(out(capsys, *words, "--json")) == expected

    def test_attributes_and_instants(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("plan", "--policy", file, "--user", "ann", "--attr", "role=editor", "--json")
        early = json.loads(out(capsys, *words, "--at", "2026-11-30T23:59:59Z"))
        assert [folder["mode"] for folder in early["folders"]] == ["rw"]
        assert json.loads(out(capsys, *words, "--at", "2026-12-01T00:00Z")) == {"folders": []}

    def test_table(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = out(capsys, "plan", "--policy", file, "--user", "ann", "--groups", "staff")
        assert text.split() == [
            *("name", "mode", "path", "target", "because"),
            *("wiki", "ro", "/shared/wiki", "/vault/wiki", "group", "staff"),
        ]
        assert out(capsys, "plan", "--policy", file, "--user", "ann") == "ann sees no folder.\n"

    def test_docker_and_kasm(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("plan", "--policy", file, "--user", "ann", "--groups", "staff", "--format")
        assert json.loads(out(capsys, *words, "docker"))["run"] == [
            "--mount",
            "type=bind,source=/shared/wiki,target=/vault/wiki,readonly",
        ]
        assert json.loads(out(capsys, "plan", "--policy", file, "--format", "kasm"))[
            "group_mappings"
        ] == {"staff": [{"provider": "wiki", "target": "/vault/wiki", "read_only": True}]}

    def test_comparison(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = out(capsys, "plan", "--policy", file, "--compare")
        assert "1 folders, 1 groups" in text
        assert "time-limited access (line 6)" in text
        found = json.loads(out(capsys, "plan", "--policy", file, "--compare", "--json"))
        assert found["lines"] == 6
        assert found["kasm"]["mappings"] == 2

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ((), "--user is missing"),
            (("--attr", "a=b"), "--user-id and --attr need --user"),
            (("--user", "u", "--attr", "a"), "--attr a: expected key=value"),
            (("--user", "u", "--at", "noon"), "--at noon: expected an instant"),
            (("--user", "u", "--at", "2026-01-01"), "says no time zone"),
        ],
    )
    def test_wrong_use(
        self, file: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
    ) -> None:
        assert told in out(capsys, "plan", "--policy", file, *words, code=1)


class TestCheck:
    def test_a_good_file(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        at = ("--at", "2026-11-27T00:00Z")
        assert out(capsys, "policy", "check", file, *at).endswith("1 folders, nothing is wrong.\n")

    def test_a_rule_that_is_over_is_a_warning(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = out(capsys, "policy", "check", file, "--at", "2026-12-02T00:00Z", code=2)
        assert text == (
            f"{file}:6:9: warning: folders[0].access[1]: is over since 2026-12-01T00:00:00+00:00\n"
        )

    def test_a_broken_one(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file.write_text(POLICY.replace("groups", "grops"))
        text = out(capsys, "policy", "check", file, code=1)
        assert f"{file}:5:10: error: folders[0].access[0].grops: there is no such key" in text
        assert main(["policy", "check", str(file), "--json"]) == 1
        found = json.loads(capsys.readouterr().out)["problems"][0]
        assert (found["line"], found["column"], found["severity"]) == (5, 9, "error")

    def test_a_broken_one_plans_nothing(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.write_text(POLICY.replace("groups", "grops"))
        assert main(["plan", "--policy", str(file), "--user", "ann", "--json"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Nothing that this file governs is shown until it is corrected." in captured.err


def test_explain(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("policy", "explain", "--policy", file, "wiki")
    text = out(capsys, *words, "--user", "ann", "--groups", "staff")
    assert "wiki: ro, because: group staff" in text
    assert (
        "line 6: gives rw to role == editor: does not match: role is not known of the user" in text
    )
    found = json.loads(out(capsys, *words, "--json"))
    assert found["grants"] == [{"part": "", "mode": "hidden", "because": "no rule matches"}]
    assert "The policy has no folder wikis" in out(capsys, *words[:-1], "wikis", code=1)


def test_diff(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(POLICY.replace("mode: ro", "mode: rw"))
    text = out(capsys, "policy", "diff", file, new, "--at", "2026-11-27T00:00Z")
    assert text.split() == [
        *("who", "folder", "change", "because"),
        *("group", "staff", "wiki", "ro", "→", "rw", "group", "staff"),
    ]
    assert out(capsys, "policy", "diff", file, file) == "Nothing changes for anybody.\n"
    changes = json.loads(out(capsys, "policy", "diff", file, new, "--json"))["changes"]
    assert changes[0]["who"] == "group staff"


class TestTables:
    TABLE = """\
tests:
  - name: staff read
    user: ann
    groups: [staff]
    expect: {wiki: ro}
  - name: editors write
    user: ann
    attributes: {role: [editor, admin]}
    at: 2026-11-27T00:00Z
    expect: {wiki: rw}
  - name: others see nothing
    user: bob
    others: hidden
    expect: {}
  - name: somebody unknown
    expect: {wiki: hidden}
"""

    @pytest.fixture
    def table(self, file: Path, tmp_path: Path) -> Path:
        path = tmp_path / "tests.yaml"
        path.write_text(self.TABLE)
        return path

    def test_all_pass(self, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert out(capsys, "policy", "test", table) == "4 tests, 0 failed.\n"

    def test_failures_say_what_and_why(
        self, table: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table.write_text(
            self.TABLE.replace("{wiki: ro}", "{wiki: rw}").replace(
                "bob", "bob\n    groups: [staff]"
            )
        )
        text = out(capsys, "policy", "test", table, code=1)
        assert text.splitlines() == [
            f"{table}:2: staff read: wiki is ro, expected rw (group staff)",
            f"{table}:11: others see nothing: wiki is ro, expected hidden (group staff)",
            "4 tests, 2 failed.",
        ]

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ("{wiki: ro}", "{wikis: ro}", ":2:5: error: expect: the policy has no folder wikis"),
            ("{wiki: ro}", "{wiki: rx}", "expect.wiki: expected hidden, ro or rw, not rx"),
            ("user: bob", "usr: bob", "tests[2].usr: there is no such key; did you mean user?"),
            ("user: bob", "groups: [x]", "groups: needs `user`"),
            ("at: 2026-11-27T00:00Z", "at: noon", "tests[1].at: expected an instant"),
            ("tests:", "policy: none.yaml\ntests:", "none.yaml cannot be read"),
            (TABLE, "tests: []\n", "tests: there is no test"),
        ],
    )
    def test_mistakes(
        self,
        table: Path,
        capsys: pytest.CaptureFixture[str],
        old: str,
        new: str,
        told: str,
    ) -> None:
        table.write_text(self.TABLE.replace(old, new, 1))
        assert told in out(capsys, "policy", "test", table, code=1)
