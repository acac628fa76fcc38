"""Secrets are struck out, and what is none is left."""

from __future__ import annotations

import pytest

from session_agent import redaction
from session_agent.redaction import redacted, redacted_document
from session_agent.settings import load

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJrYXNtX2lkIjoiNSJ9.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://ann:hunter22@cloud.example/dav", "hunter22"),
        ("https://tok3n-of-ann@cloud.example", "tok3n-of-ann"),
        (f"POST /api?x=1&jwt={JWT}", "eyJ"),
        (f"the token {JWT} is expired", "eyJ"),
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("rw,username=ann,password=hunter22,uid=5", "hunter22"),
        (":sftp,host=h,user=u,pass=hunter22:dir", "hunter22"),
        ('{"client_secret": "hunter 22", "a": 1}', "hunter 22"),
        ("secret_access_key=hunter22 region=x", "hunter22"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOS"),
        ("VNC_PW=hunter22", "hunter22"),
        ("RCLONE_CONFIG_PASS='hunter22 and more'", "more"),
    ],
)
def test_what_looks_like_a_secret(text: str, secret: str) -> None:
    assert secret not in redacted(text)
    assert redaction.STRUCK in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "/vault/team: rclone mount of drive{AbC1}:sub",
        "branch wiki is dead (was alive)",
        "rw,relatime,user_id=0,group_id=0,allow_other",
        "https://cloud.example/dav?path=a@b",
        "the passage to keyhole.md: 3 files",
        "author=ann",
    ],
)
def test_what_is_none(text: str) -> None:
    assert redacted(text) == text


def test_the_environments_secrets_are_known_once_settings_are_read() -> None:
    load(
        None,
        {
            "KASM_API_JWT": "not-like-any-token",
            "MY_TOKEN": "5",
            "X_API_KEY_2": "xyz123",
            "PWD": "/work",
        },
    )
    assert (
        redacted("a not-like-any-token b xyz123 c 5 /work") == "a [redacted] b [redacted] c 5 /work"
    )


def test_a_document() -> None:
    document = {"source": "https://a:b@c", "options": ["pass=x", 5], "token": "t", "jwt_file": "/f"}
    assert redacted_document(document) == {
        "source": "https://[redacted]@c",
        "options": ["pass=[redacted]", 5],
        "token": "[redacted]",
        "jwt_file": "/f",
    }


def test_settings_do_not_show_secrets_when_printed() -> None:
    loaded = load(None, {"KASM_API_JWT": "secret-1", "SESSION_AGENT_IDENTITY_TOKEN": "secret-2"})
    assert loaded.environment.kasm.token == "secret-1"
    assert "secret" not in repr(loaded)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit", ["pass", "-eyJ-aaaaaa", "token ", "://", "password=", '"secret":"']
)
def test_a_hostile_text_takes_no_time_by_its_square(unit: str) -> None:
    redacted(unit * 100_000)
