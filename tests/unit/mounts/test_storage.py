from __future__ import annotations

from collections.abc import Sequence

import pytest

from session_agent.mounts.mountinfo import parse
from session_agent.mounts.storage import StorageRules


def _is_storage(
    path: str,
    fstype: str = "ext4",
    *,
    wanted: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    vault: str = "/vault",
) -> bool:
    (entry,) = parse(f"1 0 0:1 / {path} rw - {fstype} none rw".encode())
    rules = StorageRules(vault=vault, home="/home/u", include=include, exclude=exclude)
    return rules.is_storage(entry, wanted=wanted)


@pytest.mark.parametrize(
    ("path", "fstype"),
    [
        ("/vault", "ext4"),
        ("/vault/a", "tmpfs"),
        ("/s3", "fuse.rclone"),
        ("/scratch", "tmpfs"),
        ("/tmp/x", "ext4"),
        ("/home/u/drive", "ext4"),
        ("/home/other", "ext4"),
        ("/etcetera", "ext4"),
        ("/mnt/share", "cifs"),
        ("/mnt/data", "fuse"),
        ("/srv/overlay", "overlay"),
    ],
)
def test_storage(path: str, fstype: str) -> None:
    assert _is_storage(path, fstype)


_OWN = [
    ("/home/u", "ext4"),
    ("/home/u/.local/share/session-agent/root", "ext4"),
    ("/home/u/.local/state/session-agent", "ext4"),
    ("/tmp", "tmpfs"),
    ("/tmp/.X11-unix", "ext4"),
    ("/dev/shm", "tmpfs"),
    ("/etc/hosts", "ext4"),
    ("/etc/hostname", "ext4"),
    ("/etc/resolv.conf", "ext4"),
    ("/run", "tmpfs"),
    ("/run/secrets/token", "tmpfs"),
    ("/proc/acpi", "tmpfs"),
    ("/sys/firmware", "tmpfs"),
    ("/usr/lib/modules", "ext4"),
    ("/home/u/.cache/gvfs", "fuse.gvfsd-fuse"),
    ("/mnt/doc", "fuse.portal"),
    ("/var/lib/lxcfs", "fuse.lxcfs"),
]


@pytest.mark.parametrize(("path", "fstype"), _OWN)
def test_the_containers_own(path: str, fstype: str) -> None:
    assert not _is_storage(path, fstype)
    assert _is_storage(path, fstype, include=[path])
    assert _is_storage(path, fstype, wanted=True) == (path != "/home/u")


@pytest.mark.parametrize(
    ("path", "fstype"),
    [
        ("/", "overlay"),
        ("/x", "proc"),
        ("/x", "cgroup2"),
        ("/x", "fusectl"),
        ("/vault/x", "sysfs"),
    ],
)
def test_what_nothing_brings_in(path: str, fstype: str) -> None:
    assert not _is_storage(path, fstype, wanted=True, include=["/**", "/"])


def test_whatever_lies_in_the_vault() -> None:
    assert _is_storage("/run/vault/x", vault="/run/vault")
    assert _is_storage("/run/vault", vault="/run/vault")


def test_exclude_wins() -> None:
    assert not _is_storage("/s3", exclude=["/s3"])
    assert not _is_storage("/s3", exclude=["/s3"], include=["/s3"], wanted=True)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/mnt/*", "/mnt/a", True),
        ("/mnt/*", "/mnt/a/b", False),
        ("/mnt/**", "/mnt/a/b", True),
        ("/mnt/**", "/mnt", False),
        ("/mnt", "/mnt/a", False),
        ("/m?t", "/mnt", True),
        ("/m?t", "/m/t", False),
        ("/a.b[c]", "/a.b[c]", True),
        ("/a.b", "/aXb", False),
        ("/x*", "/x", True),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    assert _is_storage(path, exclude=[pattern]) == (not matches)


def test_what_the_vault_lies_in() -> None:
    rules = StorageRules(vault="/a/b", home="/home/u")
    assert [rules.holds_vault(path) for path in ("/", "/a", "/a/b", "/a/b/c", "/ab")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert rules.is_vault_or_above("/a/b")
