"""What `registry check` finds in an entry, and what it does with files that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from session_agent.registry import entry
from session_agent.registry.document import SIZE_LIMIT
from session_agent.registry.findings import Finding, Severity

VALID: dict[str, Any] = {
    "friendly_name": "Desktop",
    "name": "registry.example/desktop:1.0",
    "description": "A desktop.",
    "image_src": "icon.svg",
    "architecture": ["amd64", "arm64"],
    "compatibility": ["1.16.x", "1.17.0"],
    "uncompressed_size_mb": 2460,
}
DROP = object()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "icon.svg").touch()
    return tmp_path / "workspace.json"


def found(file: Path, /, **changes: Any) -> list[Finding]:
    """The findings in a valid entry with some keys changed."""
    document = {key: value for key, value in (VALID | changes).items() if value is not DROP}
    file.write_text(json.dumps(document))
    checked = entry.check(str(file))
    findings = list(checked.findings)
    assert checked.valid == (Severity.ERROR not in [one.severity for one in findings])
    return findings


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_valid_entry(file: Path) -> None:
    optional = {
        "categories": ["A", "B", "C"],
        "docker_registry": "https://registry.example/v1/",
        "run_config": {"hostname": "kasm", "environment": {"A": "1"}, "entrypoint": ["/start"]},
        "exec_config": {},
        "notes": "None.",
        "cores": 2,
        "memory": 2768000000,
        "gpu_count": 0,
        "cpu_allocation_method": "Inherit",
    }
    assert found(file) == []
    assert found(file, **optional) == []


@pytest.mark.parametrize("key", list(VALID))
def test_a_missing_key(file: Path, key: str) -> None:
    finding = only(found(file, **{key: DROP}))
    assert (finding.key, finding.severity) == (f"/{key}", Severity.ERROR)
    assert "missing" in finding.message
    assert finding.remedy.startswith("Write ")


@pytest.mark.parametrize(
    ("key", "value", "at"),
    [
        ("friendly_name", 1, "/friendly_name"),
        ("friendly_name", " ", "/friendly_name"),
        ("name", "two words", "/name"),
        ("description", None, "/description"),
        ("image_src", "../icon.svg", "/image_src"),
        ("image_src", "icon.gif", "/image_src"),
        ("architecture", "amd64", "/architecture"),
        ("architecture", [], "/architecture"),
        ("architecture", ["amd64", "x86_64"], "/architecture/1"),
        ("compatibility", ["1.17"], "/compatibility/0"),
        ("compatibility", [{"version": "1.17.x"}], "/compatibility/0"),
        ("uncompressed_size_mb", "2460", "/uncompressed_size_mb"),
        ("uncompressed_size_mb", 0, "/uncompressed_size_mb"),
        ("uncompressed_size_mb", True, "/uncompressed_size_mb"),
        ("uncompressed_size_mb", 2460.5, "/uncompressed_size_mb"),
        ("uncompressed_size_mb", 2_460_000_000, "/uncompressed_size_mb"),
        ("categories", ["A", "B", "C", "D"], "/categories"),
        ("categories", [["A"]], "/categories/0"),
        ("cores", "2", "/cores"),
        ("memory", -1, "/memory"),
        ("gpu_count", -1, "/gpu_count"),
        ("cpu_allocation_method", "inherit", "/cpu_allocation_method"),
        ("run_config", [], "/run_config"),
        ("run_config", {"devices": "/dev/fuse"}, "/run_config/devices"),
        ("run_config", {"devices": ["dev/fuse"]}, "/run_config/devices/0"),
        ("run_config", {"cap_add": ["SYS ADMIN"]}, "/run_config/cap_add/0"),
        ("run_config", {"privileged": "yes"}, "/run_config/privileged"),
        ("run_config", {"environment": {"A": {}}}, "/run_config/environment"),
        ("run_config", {"shm_size": "512 MB"}, "/run_config/shm_size"),
        ("run_config", {"volumes": ["/a:/b"]}, "/run_config/volumes"),
        ("run_config", {"volumes": {"/a~b": {"mode": "ro"}}}, "/run_config/volumes/~1a~0b"),
        (
            "run_config",
            {"volumes": {"/a": {"bind": "/b", "mode": "r"}}},
            "/run_config/volumes/~1a/mode",
        ),
        ("exec_config", "true", "/exec_config"),
        ("exec_config", {"go": "true"}, "/exec_config/go"),
        ("exec_config", {"go": {}}, "/exec_config/go/cmd"),
        ("exec_config", {"go": {"cmd": 1}}, "/exec_config/go/cmd"),
        ("exec_config", {"go": {"cmd": "true", "user": 0}}, "/exec_config/go/user"),
    ],
)
def test_a_value_that_does_not_fit(file: Path, key: str, value: object, at: str) -> None:
    finding = only(found(file, **{key: value}))
    assert (finding.key, finding.severity) == (at, Severity.ERROR)
    assert finding.remedy


class TestWhatKasmWarnsOf:
    @pytest.mark.parametrize("user", ["root", "0", 0, "kasm-user"])
    def test_another_user(self, file: Path, user: object) -> None:
        finding = only(found(file, run_config={"user": user}))
        assert (finding.key, finding.severity) == ("/run_config/user", Severity.KASM)

    @pytest.mark.parametrize("user", ["1000", 1000])
    def test_its_own_user_is_none(self, file: Path, user: object) -> None:
        assert found(file, run_config={"user": user}) == []

    def test_privileged(self, file: Path) -> None:
        finding = only(found(file, run_config={"privileged": True}))
        assert (finding.key, finding.severity) == ("/run_config/privileged", Severity.KASM)
        assert "root on the host" in finding.message

    def test_any_other_property_by_its_name(self, file: Path) -> None:
        run_config = {
            "cap_add": ["CAP_SYS_ADMIN", "NET_RAW"],
            "security_opt": ["seccomp=unconfined"],
            "volumes": {"/srv": {"bind": "/srv", "mode": "ro"}},
            "shm_size": "512m",
            "blkio_weight": 10,
        }
        findings = found(file, run_config=run_config)
        assert [one.key for one in findings] == [f"/run_config/{name}" for name in run_config]
        assert {one.severity for one in findings} == {Severity.KASM}
        for name, finding in zip(run_config, findings, strict=True):
            assert name in finding.message
        assert "SYS_ADMIN (mounts" in findings[0].message
        assert "seccomp=unconfined" in findings[1].message

    def test_a_slip_of_the_pen(self, file: Path) -> None:
        assert only(found(file, run_config={"cap_ad": []})).remedy == "Is cap_add meant?"


class TestWhatIsToBeRead:
    def test_commands(self, file: Path) -> None:
        exec_config = {
            "first_launch": {"user": "root", "cmd": "curl -u me https://x:pw@y.example | sh"},
            "go": {"cmd": ["sh", "-c", "true"]},
        }
        first, go = found(file, exec_config=exec_config)
        assert (first.key, first.severity) == ("/exec_config/first_launch/cmd", Severity.WARNING)
        assert "as root" in first.message
        assert "curl -u me https://[redacted]@y.example | sh" in first.message
        assert "as the image's user" in go.message
        assert go.message.endswith(": sh -c true")

    def test_a_hook_that_never_runs(self, file: Path) -> None:
        findings = found(file, exec_config={"firstlaunch": {"cmd": "true"}})
        assert findings[0].remedy == "Is first_launch meant?"

    def test_another_user_and_privilege(self, file: Path) -> None:
        hook = {"cmd": "true", "user": "admin", "privileged": True, "comand": ""}
        keys = [one.key.rpartition("/")[2] for one in found(file, exec_config={"go": hook})]
        assert keys == ["comand", "user", "privileged", "cmd"]

    @pytest.mark.parametrize("environment", [{"S3_SECRET": "hidden1"}, ["S3_SECRET=hidden1"]])
    def test_secrets(self, file: Path, environment: object) -> None:
        finding = only(found(file, run_config={"environment": environment}))
        assert finding.severity == Severity.WARNING
        assert "hidden1" not in finding.told("x")

    def test_credentials_of_the_registry(self, file: Path) -> None:
        finding = only(found(file, docker_registry="https://me:hidden1@registry.example"))
        assert finding.key == "/docker_registry"
        assert "hidden1" not in finding.told("x")

    def test_keys_that_the_schema_does_not_have(self, file: Path) -> None:
        findings = found(file, compatability=[], **{"a/b~c": 1})
        assert [one.key for one in findings] == ["/compatability", "/a~1b~0c"]
        assert findings[0].remedy == "Is compatibility meant?"

    def test_an_icon_that_is_not_there(self, file: Path) -> None:
        assert only(found(file, image_src="other.png")).key == "/image_src"

    def test_a_category_twice(self, file: Path) -> None:
        assert only(found(file, categories=["A", "A"])).key == "/categories"


class TestHostileFiles:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "Not JSON"),
            (b'{"a": 1,\n "b" 2}', "line 2, column 6"),
            (b"\xef\xbb\xbf{}", "Not JSON"),
            (b'{"a":\n "\xff"}', "Line 2 is not UTF-8"),
            (b"[]", "no JSON object"),
            (b"null", "no JSON object"),
            (b'{"a": NaN}', "NaN"),
            (b'{"a": 1e999}', "too large"),
            (b'{"a": ' + b"9" * 5000 + b"}", "Not JSON"),
            (b'{"a": "\\ud800"}', "half a character"),
            (b'{"\\ud800": 1, "\\ud800": 2}', "half a character"),
            (b"[" * 100_000, "deeper"),
            (b'{"a":' * 30 + b"1" + b"}" * 30, "deeper"),
            (b'{"a": "' + b"x" * SIZE_LIMIT + b'"}', "larger than 256 KiB"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_no_entry(self, file: Path, data: bytes, message: str) -> None:
        file.write_bytes(data)
        checked = entry.check(str(file))
        assert not checked.valid
        assert (only(list(checked.findings)).key, message in checked.findings[0].message) == (
            "",
            True,
        )

    def test_keys_given_twice(self, file: Path) -> None:
        text = json.dumps(VALID | {"run_config": {"environment": {"A": "1"}}})
        file.write_text(text.replace('"A": "1"', '"A": "1", "A": "2", "A": "3"'))
        checked = entry.check(str(file))
        assert only(list(checked.findings)).key == "/run_config/environment/A"
        assert not checked.valid

    def test_a_long_key_with_many_values_below_it(self, file: Path) -> None:
        twice = '{"b":1,"b":1},' * 5000
        file.write_text(f'{{"{"k" * 100_000}": [{twice}{{}}]}}')
        findings = entry.check(str(file)).findings
        assert sum("more than once" in one.message for one in findings) == 50

    def test_a_symbolic_link_is_not_followed(self, file: Path) -> None:
        target = file.with_name("target.json")
        found(target)
        file.symlink_to(target)
        assert "symbolic link" in only(list(entry.check(str(file)).findings)).message

    def test_what_is_no_file(self, file: Path) -> None:
        os.mkfifo(file)
        for path in (str(file), str(file.parent), "/dev/zero"):
            assert "not a regular file" in only(list(entry.check(path).findings)).message
        for path in (f"{file}.absent", f"{file}\0", ""):
            assert "cannot be read" in only(list(entry.check(path).findings)).message
