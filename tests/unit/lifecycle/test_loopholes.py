"""Whether a policy binds is said honestly."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from session_agent.lifecycle import loopholes as module
from session_agent.lifecycle.loopholes import loopholes
from session_agent.model import Mode, Mount, MountKind, MountState, Session, SessionUser
from tests.support.as_user import NOBODY
from tests.support.vault import as_person


def session(*paths: str, uid: int = 1000, groups: tuple[int, ...] = ()) -> Session:
    mounts = tuple(
        Mount(path, path, "s", "ext4", MountKind.LOCAL, Mode.RW, MountState.ALIVE) for path in paths
    )
    user = SessionUser("ann", uid, uid, groups, "/home/ann")
    return Session(user, "/vault", "/root-branch", "/state", mounts)


@pytest.mark.needs_root
class TestAsRoot:
    def test_everything_below_the_vault(self) -> None:
        assert loopholes(session("/vault/a", "/vault/b/c")) == ()

    def test_a_mount_elsewhere(self) -> None:
        (told,) = loopholes(session("/vault/a", "/s3", "/vaulted"))
        assert "walked around at /s3, /vaulted:" in told

    def test_a_user_who_may_become_root(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sudo = tmp_path / "sudo"
        sudo.touch()
        monkeypatch.setattr(module, "_SUDO", (str(sudo),))
        group = grp.getgrnam("sudo").gr_gid
        assert loopholes(session(groups=(group,))) == ()
        os.chmod(sudo, 0o4755)
        assert loopholes(session(groups=(1000,))) == ()
        assert "may become root" in loopholes(session(groups=(group,)))[0]
        assert "may become root" in loopholes(session(uid=0))[0]


@pytest.mark.needs_root
def test_an_agent_that_is_the_user() -> None:
    (told,) = as_person(lambda: loopholes(session("/vault/a")), NOBODY)
    assert "the agent runs as the user" in told
