"""Discovery on captures. No path of them is touched, for each has a known state."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from session_agent.model import Mode, Mount, MountKind, MountState
from session_agent.mounts.discover import Discovery, discover
from session_agent.mounts.mountinfo import MountEntry, parse

CAPTURES = Path(__file__).parents[2] / "data/mountinfo"
CONTAINER = parse((CAPTURES / "container.txt").read_bytes())
HOST = parse((CAPTURES / "host.txt").read_bytes())


def _discover(
    entries: list[MountEntry],
    cloud_mounts: str = "",
    *,
    known: Mapping[str, MountState] | None = None,
    vault: str = "/vault",
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> Discovery:
    alive = {entry.path: MountState.ALIVE for entry in entries}
    return discover(
        entries,
        cloud_mounts=cloud_mounts,
        vault=vault,
        home="/home/kasm-user",
        include=include,
        exclude=exclude,
        time_limit=5.0,
        known_states={**alive, **(known or {})},
    )


def _with(*lines: str) -> list[MountEntry]:
    return [*CONTAINER, *parse("\n".join(lines).encode())]


def _by_name(discovery: Discovery) -> dict[str, Mount]:
    return {mount.name: mount for mount in discovery.mounts}


def test_the_container() -> None:
    found = _discover(CONTAINER, "/nextcloud|Nextcloud")
    assert [(m.name, m.path, m.kind, m.mode, m.cloud_type) for m in found.mounts] == [
        ("B\u00fcro\ttab", "/vault/B\u00fcro\ttab", MountKind.LOCAL, Mode.RW, ""),
        ("My Drive", "/vault/My Drive", MountKind.LOCAL, Mode.RW, ""),
        ("engineering", "/vault/engineering", MountKind.LOCAL, Mode.RW, ""),
        ("nextcloud", "/nextcloud", MountKind.RCLONE, Mode.RW, "nextcloud"),
        ("scratch", "/scratch", MountKind.LOCAL, Mode.RW, ""),
        ("wiki", "/vault/wiki", MountKind.LOCAL, Mode.RO, ""),
        ("wiki/nested", "/vault/wiki/nested", MountKind.LOCAL, Mode.RW, ""),
    ]
    assert (found.warnings, found.notes) == ((), ())


def test_one_folder_mounted_twice_is_two_mounts() -> None:
    found = _by_name(_discover(CONTAINER))
    assert found["engineering"].root == found["wiki/nested"].root == "/srv/shared/engineering"
    assert found["engineering"].device == found["wiki/nested"].device == "254:0"


def test_a_machine_without_storage() -> None:
    assert _discover(HOST) == Discovery(())


def test_the_order_of_the_list_does_not_matter() -> None:
    entries = _with(
        "200 78 0:60 / /mnt/drive rw - ext4 none rw", "201 78 0:61 / /srv/drive rw - ext4 none rw"
    )
    expected = _discover(entries, "/scratch|s3")
    assert {"drive", "drive-2"} < set(_by_name(expected))
    shuffler = random.Random(1)
    for _ in range(20):
        shuffler.shuffle(entries)
        assert _discover(entries, "/scratch|s3") == expected


def test_a_running_overlay_covers_nothing() -> None:
    overlay = "300 78 0:70 / /vault rw - fuse.session-agent session-agent rw"
    assert _discover(_with(overlay)) == _discover(CONTAINER)


def test_known_states_are_taken_over() -> None:
    known = {"/nextcloud": MountState.HUNG, "/scratch": MountState.DEAD}
    found = _by_name(_discover(CONTAINER, known=known))
    assert found["nextcloud"].state is MountState.HUNG
    assert found["scratch"].state is MountState.DEAD
    assert found["wiki"].state is MountState.ALIVE


def test_include_and_exclude() -> None:
    found = _by_name(_discover(CONTAINER, include=("/dev/shm",), exclude=("/vault/*", "/scratch")))
    assert set(found) == {"nextcloud", "shm", "wiki/nested"}


def test_a_mount_that_holds_the_vault_is_a_warning() -> None:
    entries = _with(
        "200 78 0:60 / /data rw - ext4 none rw", "201 200 0:61 / /data/vault/a rw - ext4 none rw"
    )
    found = _discover(entries, vault="/data/vault")
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("/data holds the vault")
    assert "/data" not in {mount.path for mount in found.mounts}
    assert _by_name(found)["a"].path == "/data/vault/a"


def test_a_mount_at_the_vault_is_named_by_a_dot() -> None:
    found = _by_name(_discover(_with("200 78 0:60 / /vault rw - ext4 none rw")))
    assert found["."].path == "/vault"


def test_a_volume_and_its_kind() -> None:
    entries = _with("200 78 0:60 /var/lib/docker/volumes/n/_data /v rw - ext4 none ro")
    mount = _by_name(_discover(entries))["v"]
    assert (mount.kind, mount.mode) == (MountKind.VOLUME, Mode.RO)


def test_the_home_cannot_be_made_a_branch_by_cloud_mounts() -> None:
    found = _discover(CONTAINER, "/home/kasm-user|kasm")
    assert "/home/kasm-user" not in {mount.path for mount in found.mounts}
    assert found.warnings == ()
    assert len(found.notes) == 1


def test_a_folder_of_cloud_mounts_takes_after_the_mount_it_lies_in(tmp_path: Path) -> None:
    drive = tmp_path / "My Drive"
    drive.mkdir()
    (tmp_path / "link").symlink_to(drive)
    (tmp_path / "file").touch()
    value = ",".join(f"{tmp_path}/{name}" for name in ("link|gdrive", "gone|s3", "file|s3"))
    found = _discover(CONTAINER, value)
    assert _by_name(found)["My Drive-2"] == Mount(
        name="My Drive-2",
        path=str(drive),
        source="overlay",
        fstype="overlay",
        kind=MountKind.LOCAL,
        mode=Mode.RW,
        state=MountState.ALIVE,
        cloud_type="gdrive",
        root=str(drive),
        device="0:41",
    )
    assert len(found.mounts) == len(_discover(CONTAINER).mounts) + 1
    assert found.warnings == ()
    assert len(found.notes) == 2

    remote = _with(f"200 78 0:60 /sub {tmp_path} ro - fuse.rclone cloud: rw")
    mount = _by_name(_discover(remote, f"{drive}|gdrive"))["My Drive-2"]
    assert (mount.kind, mount.mode, mount.root) == (MountKind.RCLONE, Mode.RO, "/sub/My Drive")


def test_a_link_to_a_mount_gives_it_its_type(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    entries = _with(f"200 78 0:60 / {folder} rw - ext4 none rw")
    found = _discover(entries, f"{tmp_path}/link|dropbox")
    assert _by_name(found)["mounted"].cloud_type == "dropbox"
    assert len(found.mounts) == len(_discover(entries).mounts)


def test_folders_of_cloud_mounts_that_cannot_be_branches(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    (tmp_path / "excluded").mkdir()
    value = f"{vault}|s3,{tmp_path}|s3,{tmp_path}/excluded|s3"
    found = _discover(CONTAINER, value, vault=str(vault), exclude=(f"{tmp_path}/ex*",))
    assert {mount.path for mount in found.mounts} == {m.path for m in _discover(CONTAINER).mounts}
    assert len(found.notes) == 3


def test_bad_entries_of_cloud_mounts_are_warnings() -> None:
    found = _discover(CONTAINER, "nowhere|s3, /scratch|floppy")
    assert len(found.warnings) == 2
    assert _by_name(found)["scratch"].cloud_type == ""


@pytest.mark.parametrize("entries", [[], CONTAINER[1:]])
def test_a_list_without_a_root(entries: list[MountEntry], tmp_path: Path) -> None:
    mount = _by_name(_discover(entries, f"{tmp_path}|s3"))[tmp_path.name]
    assert (mount.kind, mount.fstype, mount.cloud_type) == (MountKind.LOCAL, "", "s3")
