"""What is special about branches: their roots, links between them, full and read-only ones, hidden names."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.support.cases import Closing, rename
from tests.support.vault import Storage, Vault, outcome, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

BRANCHES = ("", "alpha", "gamma", "delta")
NOREPLACE, EXCHANGE = 1, 2


def test_a_branch_is_as_busy_as_a_mount_point(vault: Vault, place: Storage) -> None:
    def tried(base: Path) -> object:
        branch, other = base / "alpha", base / "beta"
        folder = branch / "folder"
        folder.mkdir()
        answers = [
            outcome(lambda: os.rmdir(branch)),
            outcome(lambda: os.unlink(branch)),
            outcome(lambda: os.mkdir(branch)),
            outcome(lambda: os.symlink("x", branch)),
            outcome(lambda: os.rename(branch, other)),
            outcome(lambda: os.rename(branch, base / "new")),
            outcome(lambda: rename(branch, other, EXCHANGE)),
            outcome(lambda: rename(branch, other, NOREPLACE)),
            outcome(lambda: os.close(os.open(branch, os.O_WRONLY))),
            sorted(os.listdir(branch)),
        ]
        folder.rmdir()
        return answers

    assert tried(vault.path) == tried(place.base / "branches")


def test_nothing_replaces_a_branch(vault: Vault) -> None:
    # Natively that is EXDEV: a mount point's parent is another mount than what is to replace it.
    for source in ("file", "beta/file", "folder", "beta/folder"):
        path = vault.path / source
        path.mkdir() if source.endswith("folder") else path.write_bytes(b"")
        for flags in (0, EXCHANGE):
            done = outcome(lambda: rename(path, vault.path / "alpha", flags))  # noqa: B023
            assert done in ("EBUSY", "EISDIR")
            assert done == "EBUSY" or not source.endswith("folder")
        path.rmdir() if source.endswith("folder") else path.unlink()


def test_a_hard_link_to_another_branch(vault: Vault) -> None:
    (vault.path / "alpha/x").write_bytes(b"1")
    (vault.path / "beta/taken").write_bytes(b"2")
    for folder in ("", "beta", "gamma"):
        new = vault.path / folder / "new"
        assert outcome(lambda: os.link(vault.path / "alpha/x", new)) == "EXDEV"  # noqa: B023
        assert not new.exists()
    taken = vault.path / "beta/taken"
    assert outcome(lambda: os.link(vault.path / "alpha/x", taken)) == "EEXIST"
    (vault.path / "alpha/x").unlink()
    taken.unlink()


@pytest.fixture
def read_only(vault: Vault, place: Storage) -> tuple[Path, Path]:
    return place.branch("readonly"), vault.path / "readonly"


def test_a_read_only_branch(read_only: tuple[Path, Path]) -> None:
    """Names that are not there are left out: natively EROFS comes before ENOENT, here after the lookup."""

    def tried(base: Path) -> list[object]:
        file, folder, new = base / "file", base / "folder", base / "new"
        return [
            outcome(step)
            for step in (
                lambda: os.close(os.open(file, os.O_WRONLY)),
                lambda: os.close(os.open(file, os.O_RDWR)),
                lambda: os.close(os.open(file, os.O_RDONLY | os.O_TRUNC)),
                lambda: os.close(os.open(new, os.O_WRONLY | os.O_CREAT)),
                lambda: os.close(os.open(new, os.O_RDONLY | os.O_CREAT | os.O_EXCL)),
                lambda: os.truncate(file, 0),
                lambda: os.mkdir(new),
                lambda: os.mkdir(folder),
                lambda: os.symlink("x", new),
                lambda: os.mkfifo(new),
                lambda: os.link(file, new),
                lambda: os.unlink(file),
                lambda: os.rmdir(folder),
                lambda: os.rename(file, new),
                lambda: os.rename(folder, new),
                lambda: os.chmod(file, 0o600),
                lambda: os.chown(file, 5, 5),
                lambda: os.utime(file, (1, 1)),
                lambda: os.utime(file),
                lambda: os.setxattr(file, "user.a", b"1"),
                lambda: os.removexattr(file, "user.none"),
                file.read_bytes,
                lambda: sorted(os.listdir(base)),
            )
        ]

    plain, served = read_only
    expected = tried(plain)
    assert expected.count("EROFS") > 15
    assert tried(served) == expected


def test_a_full_branch(vault: Vault, place: Storage) -> None:
    def tried(base: Path) -> list[object]:
        big = base / "big"
        fd = os.open(big, os.O_WRONLY | os.O_CREAT)
        chunk = b"x" * 65536
        with Closing(fd):
            answers: list[object] = [outcome(lambda: os.write(fd, chunk)) for _ in range(20)]
            answers.append(os.fstat(fd).st_size)
        answers.append(outcome(lambda: (base / "more").write_bytes(b"x" * 9000)))
        with open(big, "r+b") as over:  # what is there
            answers.append(outcome(lambda: os.pwrite(over.fileno(), b"y", 0)))
        big.unlink()
        (base / "more").unlink()
        answers.append(outcome(lambda: (base / "again").write_bytes(b"x" * 9000)))
        (base / "again").unlink()
        return answers

    expected = tried(place.branch("tiny"))
    assert "ENOSPC" in expected
    assert tried(vault.path / "tiny") == expected


# Reserved names


def test_reserved_names_are_not_there(vault: Vault) -> None:
    for branch in BRANCHES:
        name = ".~session-agent-0123456789abcdef"
        hidden = vault.backing(branch) / name
        hidden.mkdir()
        (hidden / "below").write_bytes(b"")
        folder = vault.path / branch
        path = folder / name
        assert name not in os.listdir(folder)
        assert not path.exists()
        assert not (path / "below").exists()
        assert outcome(lambda: os.listdir(path)) == "ENOENT"  # noqa: B023
        assert outcome(lambda: os.unlink(path)) == "ENOENT"  # noqa: B023
        assert outcome(lambda: os.rmdir(path)) == "ENOENT"  # noqa: B023
        assert outcome(lambda: os.rename(path, folder / "new")) == "ENOENT"  # noqa: B023
        assert outcome(lambda: os.mkdir(path)) == "EPERM"  # noqa: B023
        assert outcome(lambda: os.symlink("x", path)) == "EPERM"  # noqa: B023
        assert outcome(lambda: path.write_bytes(b"")) == "EPERM"  # noqa: B023
        assert outcome(lambda: os.mkfifo(path)) == "EPERM"  # noqa: B023
        (folder / "file").write_bytes(b"")
        for step in (os.rename, os.link):
            assert outcome(lambda: step(folder / "file", path)) == "EPERM"  # noqa: B023
        (folder / "file").unlink()
        (hidden / "below").unlink()
        hidden.rmdir()


# Figures


def test_figures_of_the_file_systems(vault: Vault, place: Storage) -> None:
    """Each file system counts once: alpha, beta, readonly and the root branch are one."""
    served = os.statvfs(vault.path / "gamma")
    behind = [
        os.statvfs(path) for path in (place.root, *map(place.branch, ("gamma", "delta", "tiny")))
    ]
    assert served.f_namemax == 255
    total = sum(one.f_blocks * one.f_frsize for one in behind)
    assert abs(served.f_blocks * served.f_frsize - total) < 16384
    free = sum(one.f_bavail * one.f_frsize for one in behind)
    assert abs(served.f_bavail * served.f_frsize - free) < (1 << 20)
    assert served.f_files == sum(one.f_files for one in behind)


def test_moves_between_branches_whose_names_are_no_text(place: Storage) -> None:
    """A move in the background is written down: so are the branches' names, whatever is in them."""
    names = ("caf\udce9", "50%20/deep")
    branches = dict(zip(names, (place.branch("alpha"), place.branch("delta")), strict=True))
    with serve(place, branches, inline_bytes=100) as vault:
        for name in ("small", "large"):
            old, new = (vault.path / branch / name for branch in names)
            old.write_bytes(b"x" * (10 if name == "small" else 1000))
            old.rename(new)
            until_moved = vault.backing(names[1]) / name
            deadline = time.monotonic() + 10
            while not until_moved.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not old.exists()
            new.unlink()
