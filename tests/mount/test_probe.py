"""The probe on real mounts: alive, dead and hung."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from session_agent.model import Mode, MountKind, MountState
from session_agent.mounts import mountinfo
from session_agent.mounts.discover import Discovery, discover
from session_agent.mounts.probe import Sight, look, probe
from tests.support import storage

LIMIT = 2.0  # seconds, the default


def test_places_without_mounts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    names = ("file", "link", "loop", "absent", "file/below")
    sights = look([str(tmp_path), *(str(tmp_path / name) for name in names)], LIMIT)
    file = Sight(MountState.ALIVE, directory=False, real_path=str(tmp_path / "file"))
    absent = Sight(MountState.ALIVE, exists=False)
    assert list(sights.values()) == [
        Sight(MountState.ALIVE, real_path=str(tmp_path)),
        file,
        file,
        absent,
        absent,
        absent,
    ]
    assert probe([str(tmp_path / "absent")], LIMIT) == {str(tmp_path / "absent"): MountState.DEAD}


@pytest.mark.needs_root
def test_an_fd_reaches_what_is_covered(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = os.open(tmp_path, os.O_PATH)
    file = os.open(tmp_path / "file", os.O_PATH)
    try:
        with storage.tmpfs(tmp_path):
            assert probe([folder, file], LIMIT) == dict.fromkeys([folder, file], MountState.ALIVE)
            sights = look([folder, file], LIMIT)
            assert [sights[fd].directory for fd in (folder, file)] == [True, False]
    finally:
        os.close(folder)
        os.close(file)


@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.needs_rclone
def test_alive_hung_and_dead_together_in_one_time_limit(tmp_path: Path) -> None:
    with (
        storage.tmpfs(tmp_path / "tmpfs"),
        storage.bind(tmp_path / "tmpfs", tmp_path / "bind", read_only=True),
        storage.rclone(tmp_path / "a", tmp_path / "alive"),
        storage.rclone(tmp_path / "b", tmp_path / "dead") as dead,
        storage.rclone(tmp_path / "c", tmp_path / "hung") as hung,
        storage.rclone(tmp_path / "d", tmp_path / "hung too") as hung_too,
    ):
        names = ("tmpfs", "bind", "alive", "dead", "hung", "hung too")
        paths = [str(tmp_path / name) for name in names]
        assert set(probe(paths, LIMIT).values()) == {MountState.ALIVE}
        dead.kill()
        hung.stop()
        hung_too.stop()
        start = time.monotonic()
        states = probe(paths, LIMIT)
        assert LIMIT <= time.monotonic() - start < LIMIT + 1
        assert list(states.values()) == [
            MountState.ALIVE,
            MountState.ALIVE,
            MountState.ALIVE,
            MountState.DEAD,
            MountState.HUNG,
            MountState.HUNG,
        ]
        hung.resume()
        assert probe([paths[4]], LIMIT) == {paths[4]: MountState.ALIVE}


@pytest.mark.needs_root
@pytest.mark.needs_fuse
@pytest.mark.needs_rclone
def test_discovery_of_real_storage(tmp_path: Path) -> None:
    """The kernel's own list, with names that need escapes, stacks, a file, and a hung mount."""
    vault, home = tmp_path / "vault", tmp_path / "home"
    file = tmp_path / "a file"
    file.write_text("x")

    def found() -> Discovery:
        return discover(
            mountinfo.read(),
            cloud_mounts=f"{tmp_path}/cloud|NextCloud,{tmp_path}/plain|s3,{tmp_path}/gone|s3",
            vault=str(vault),
            home=str(home),
            include=[],
            exclude=[f"{tmp_path}/excluded"],
            time_limit=LIMIT,
        )

    (tmp_path / "plain").mkdir()
    odd = "B\u00fcro \t\n\\040"
    with (
        storage.tmpfs(home),
        storage.tmpfs(home / "drive"),
        storage.tmpfs(vault / "stacked"),
        storage.tmpfs(vault / "stacked"),
        storage.bind(home / "drive", vault / odd, read_only=True),
        storage.bind(file, vault / "a file"),
        storage.tmpfs(tmp_path / "excluded"),
        storage.rclone(tmp_path / "behind", tmp_path / "cloud") as cloud,
    ):
        before = found()
        ours = [mount for mount in before.mounts if mount.path.startswith(str(tmp_path))]
        assert [(m.name, m.path, m.kind, m.mode, m.cloud_type) for m in ours] == [
            (odd, str(vault / odd), MountKind.LOCAL, Mode.RO, ""),
            ("cloud", str(tmp_path / "cloud"), MountKind.RCLONE, Mode.RW, "nextcloud"),
            ("drive", str(home / "drive"), MountKind.LOCAL, Mode.RW, ""),
            ("plain", str(tmp_path / "plain"), MountKind.LOCAL, Mode.RW, "s3"),
            ("stacked", str(vault / "stacked"), MountKind.LOCAL, Mode.RW, ""),
        ]
        assert {mount.state for mount in ours} == {MountState.ALIVE}
        assert before.warnings == ()

        cloud.stop()
        start = time.monotonic()
        after = found()
        assert time.monotonic() - start < LIMIT + 1
        states = {mount.name: mount.state for mount in after.mounts}
        assert states.pop("cloud") is MountState.HUNG
        assert set(states.values()) == {MountState.ALIVE}
