"""Secrets are planted wherever the agent looks, and looked for in all that it says."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import storage
from tests.support.kasm_api import kasm_api
from tests.support.session import KasmSession, kasm_session

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

_ENVIRONMENT = {
    "KASM_API_JWT": "eyJhbGciOiJSUzI1NiJ9.eyJwbGFudGVkLTEiOjF9.cGxhbnRlZC0x",
    "SESSION_AGENT_IDENTITY_TOKEN": "planted-2-identity",
    "RCLONE_CONFIG_DRIVE_PASS": "planted-3-rclone",
    "AWS_SECRET_ACCESS_KEY": "planted-4-aws",
    "VNC_PW": "planted-5-vnc",
}
_SOURCES = {
    "dav": "https://ann:planted-6-url@cloud.example/dav",
    "sftp": ":sftp,host=h,user=ann,pass=planted-7-options:dir",
    "token": 'drive,token={"access_token":"planted-8-token","expiry":"2030"}:',
}
_SECRETS = ("planted-", *_ENVIRONMENT.values())


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        yield made


def assert_clean(what: str, text: str) -> None:
    for secret in _SECRETS:
        assert secret not in text, f"{what} holds {secret}"


def files_of(session: KasmSession) -> list[Path]:
    """What the agent has written: the home, and the audit trail."""
    written = [path for path in session.home.rglob("*") if path.is_file()]
    return [*written, *session.base.glob("audit*")]


def test_nothing_that_is_said_or_written_holds_a_secret(
    session: KasmSession, tmp_path: Path
) -> None:
    session.environment |= _ENVIRONMENT
    session.settings["log"] = {"level": "debug"}
    for name, source in _SOURCES.items():
        path = session.vault / name
        path.mkdir()
        storage.run("mount", "-t", "tmpfs", source, str(path))
        session._stack.callback(storage.run, "umount", "--lazy", str(path))
        os.chown(path, 1000, 1000)
    with kasm_api(tmp_path) as api:
        session.environment |= {"KASM_API_HOST": "127.0.0.1", "KASM_API_PORT": str(api.port)}
        session.settings["log"]["kasm_ca_file"] = str(api.certificate)
        session.first_launch(0)
        for name in _SOURCES:
            (session.vault / "engineering" / f"{name}.md").write_text("x")
            os.rename(session.vault / "engineering" / f"{name}.md", session.vault / name / "n.md")
        for words in ("first-launch", "status", "mounts", "moves", "doctor"):
            for form in ((), ("--json",)):
                done = session.run(words, *form)
                assert done.stdout
                assert_clean(f"{words} {form}", done.stdout + done.stderr)
        bundle = session.base / "bundle.tar.gz"
        agent_log = session.state_dir / "agent.log"
        logged = agent_log.read_bytes()
        with agent_log.open("a") as noise:  # what any library may write to standard error
            noise.write("\n".join([*_ENVIRONMENT.values(), *_SOURCES.values()]))
        session.run("doctor", "--bundle", str(bundle))
        agent_log.write_bytes(logged)
        with tarfile.open(bundle) as archive:
            for member in archive.getmembers():
                content = archive.extractfile(member)
                assert content is not None
                assert_clean(member.name, content.read().decode())
        entry = api.wait_for("is ready")
        assert entry["levelname"] == "INFO"
        session.run("stop")
        messages = [one["message"] for _, batch in api.requests for one in batch]
    assert_clean("Kasm's log", "\n".join(messages))
    assert (session.state_dir / "agent.log").stat().st_size
    for file in files_of(session):
        assert_clean(str(file), file.read_text(errors="replace"))
    # They are known, so a message that holds one all the same is not told as it is.
    failed = session.run("first-launch", "--config", f"/{_ENVIRONMENT['VNC_PW']}")
    assert failed.returncode == 1
    assert_clean("an error", failed.stderr)
    session.settings["user"] = _ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]
    wrong = session.run("status")
    assert wrong.returncode == 1
    assert_clean("an error", wrong.stderr)


def test_the_audit_trail_and_what_is_said_of_a_token_that_is_not_believed(
    session: KasmSession,
) -> None:
    session.environment |= _ENVIRONMENT
    keys, policy = session.base / "keys.pem", session.base / "policy.yaml"
    keys.write_text("-----BEGIN PUBLIC KEY-----\nplanted-9-key\n-----END PUBLIC KEY-----\n")
    policy.write_text(
        "version: 1\nfolders:\n"
        f"  - {{name: wiki, path: /srv/wiki, target: {session.vault}/wiki,"
        " access: [{users: [ann, planted-2-identity], mode: ro}]}\n"
    )
    trail = session.base / "audit.jsonl"
    session.settings["policy"] = {
        "file": str(policy),
        "jwt_keys": str(keys),
        "audit_file": str(trail),
    }
    for words in ("first-launch", "status", "doctor"):
        done = session.run(words)
        assert done.stdout
        assert_clean(words, done.stdout + done.stderr)
    assert '"problem"' in trail.read_text()
    for file in files_of(session):
        assert_clean(str(file), file.read_text(errors="replace"))
