"""The sync daemon's rooms of real mounts, as `first-launch` and the running agent write them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support import storage
from tests.support.schemas import validator
from tests.support.session import KasmSession, kasm_session, step

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        yield made


def rooms(session: KasmSession) -> dict[str, str]:
    """Path in the vault to room."""
    file = session.home / ".config/session-agent/rooms.yaml"
    document = yaml.safe_load(file.read_text())
    validator("rooms").validate(document)
    folders: list[dict[str, Any]] = document["sync"]["folders"]
    return {one["path"].removeprefix(f"{session.vault}/"): one["room"] for one in folders}


def test_people_and_folders_are_kept_apart(session: KasmSession) -> None:
    session.mount("personal")
    drive = session.base / "drive"
    session.environment["CLOUD_MOUNTS"] = f"{drive}|gdrive"
    again = storage.bind(session.base / "host/engineering", session.base / "again")
    made = {}
    with storage.tmpfs(drive), again:
        for name in ("", "ann", "bob"):
            session.environment["KASM_USER_NAME"] = name
            report = session.first_launch(0)
            assert ["KASM_USER_NAME" in told for told in report["warnings"]] == [True] * (not name)
            made[name] = rooms(session)
            assert not step(session.first_launch(0), "sync rooms")["changed"]
            session.run("stop")
    shared = {"engineering": "folder-engineering", "wiki": "folder-wiki"}
    assert made.pop("") == shared
    place = "--".join(drive.parts).removeprefix("/")
    for name, found in made.items():
        assert found == shared | {
            "personal": f"user-{name}-personal",
            "drive": f"user-{name}-{place}",
        }
