"""Changes made behind the vault: by another session, the host, the cloud. Seen in a second, never mixed."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.vault import Vault, outcome

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

TIMEOUT = (
    1.0  # seconds that the kernel may answer from what it was told: OverlayOptions.cache_seconds
)
PATIENCE = TIMEOUT + 0.3


@pytest.fixture(params=["alpha", "delta"])
def places(vault: Vault, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """One folder in the vault, and behind it; of another name each time, since the kernel remembers."""
    name = request.node.name.partition("[")[0]
    served, behind = vault.path / request.param / name, vault.backing(request.param) / name
    behind.mkdir()
    assert os.listdir(served) == []
    yield served, behind
    shutil.rmtree(behind)


def within_the_timeout(answer: Callable[[], object], old: object, new: object) -> None:
    """Until the timeout the old answer may come, or the new one; then only the new one."""
    deadline = time.monotonic() + PATIENCE
    while (got := answer()) != new:
        assert got == old
        assert time.monotonic() < deadline, f"still {old!r:.100}"
        time.sleep(0.01)
    for _ in range(5):  # and never the old one again
        assert answer() == new


def seen(path: Path) -> Callable[[], object]:
    """What a program finds there, all that it may compare: by name, then by descriptor."""

    def look() -> object:
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            return error.errno
        try:
            status = os.fstat(fd)
            data = b""
            while part := os.read(fd, 1 << 20):
                data += part
            assert len(data) == status.st_size, (len(data), status.st_size)
            return data
        finally:
            os.close(fd)

    return look


def test_a_file_that_is_replaced(places: tuple[Path, Path]) -> None:
    served, behind = places
    old, new = b"old" * 50_000, b"newer" * 7_000
    (behind / "x").write_bytes(old)
    assert (served / "x").read_bytes() == old
    (behind / "y").write_bytes(new)
    os.rename(behind / "y", behind / "x")
    within_the_timeout(seen(served / "x"), old, new)
    # To a larger one, of the same time.
    larger = b"larger" * 100_000
    (behind / "y").write_bytes(larger)
    os.utime(behind / "y", ns=(1, os.stat(behind / "x").st_mtime_ns))
    os.rename(behind / "y", behind / "x")
    within_the_timeout(seen(served / "x"), new, larger)


def test_a_file_of_the_same_size_written_anew(places: tuple[Path, Path]) -> None:
    """Times have the resolution of a tick, so size and time may both be the same: the timeout holds."""
    served, behind = places
    (behind / "x").write_bytes(b"first!" * 1000)
    assert (served / "x").read_bytes() == b"first!" * 1000
    time.sleep(0.02)
    (behind / "x").write_bytes(b"second" * 1000)
    within_the_timeout(seen(served / "x"), b"first!" * 1000, b"second" * 1000)


def test_a_file_that_grows_and_shrinks_while_open(places: tuple[Path, Path]) -> None:
    served, behind = places
    (behind / "x").write_bytes(b"0123456789")
    with open(served / "x", "rb", buffering=0) as file:
        assert file.read() == b"0123456789"
        with open(behind / "x", "ab") as writer:
            writer.write(b" and more")
        within_the_timeout(lambda: os.fstat(file.fileno()).st_size, 10, 19)
        assert os.pread(file.fileno(), 100, 0) == b"0123456789 and more"
        os.truncate(behind / "x", 4)
        within_the_timeout(lambda: os.fstat(file.fileno()).st_size, 19, 4)
        assert os.pread(file.fileno(), 100, 0) == b"0123"


def test_both_append(places: tuple[Path, Path]) -> None:
    """What this session appends comes after what another one has appended, and overwrites nothing."""
    served, behind = places
    (behind / "log").write_bytes(b"")
    with (
        open(served / "log", "ab", buffering=0) as here,
        open(behind / "log", "ab", buffering=0) as there,
    ):
        for number in range(50):
            here.write(b"here %d\n" % number)
            there.write(b"there %d\n" % number)
    expected = b"".join(b"here %d\nthere %d\n" % (number, number) for number in range(50))
    assert (behind / "log").read_bytes() == expected


def test_a_file_that_is_removed(places: tuple[Path, Path]) -> None:
    served, behind = places
    (behind / "x").write_bytes(b"1")
    os.stat(served / "x")
    (behind / "x").unlink()
    within_the_timeout(lambda: os.path.exists(served / "x"), True, False)
    assert outcome(lambda: os.open(served / "x", os.O_RDONLY)) == "ENOENT"
    (served / "x").write_bytes(b"made anew")
    assert (behind / "x").read_bytes() == b"made anew"


def test_a_file_that_appears(places: tuple[Path, Path]) -> None:
    served, behind = places
    assert not (served / "x").exists()  # the kernel remembers that, too
    (behind / "x").write_bytes(b"1")
    within_the_timeout(seen(served / "x"), 2, b"1")
    assert os.listdir(served) == ["x"]


def test_creating_what_has_just_appeared(places: tuple[Path, Path]) -> None:
    served, behind = places
    assert not (served / "x").exists()
    (behind / "x").write_bytes(b"theirs")
    assert outcome(lambda: os.mkdir(served / "x")) == "EEXIST"
    (behind / "y").write_bytes(b"theirs")
    assert outcome(lambda: os.open(served / "y", os.O_CREAT | os.O_EXCL | os.O_WRONLY)) == "EEXIST"
    assert (behind / "y").read_bytes() == b"theirs"


def test_a_file_that_becomes_a_folder_and_back(places: tuple[Path, Path]) -> None:
    served, behind = places
    (behind / "x").write_bytes(b"1")
    assert (served / "x").read_bytes() == b"1"

    def look() -> object:
        return outcome(lambda: stat.S_IFMT(os.stat(served / "x").st_mode))

    (behind / "x").unlink()
    (behind / "x").mkdir()
    (behind / "x/below").write_bytes(b"2")
    within_the_timeout(look, stat.S_IFREG, stat.S_IFDIR)
    assert os.listdir(served / "x") == ["below"]
    assert (served / "x/below").read_bytes() == b"2"
    shutil.rmtree(behind / "x")
    os.symlink("y", behind / "x")
    within_the_timeout(
        lambda: stat.S_IFMT(os.lstat(served / "x").st_mode), stat.S_IFDIR, stat.S_IFLNK
    )
    assert os.readlink(served / "x") == "y"
    (behind / "x").unlink()
    (behind / "x").write_bytes(b"3")
    within_the_timeout(seen(served / "x"), 2, b"3")


def test_numbers_used_again(places: tuple[Path, Path]) -> None:
    """Another file, of another kind, with the number of one that is gone: nothing of the old one shows."""
    served, behind = places
    reused = 0
    numbers: dict[int, int] = {}
    for turn in range(40):
        name = f"{turn}"
        if turn % 3 == 0:
            (behind / name).mkdir()
        elif turn % 3 == 1:
            (behind / name).write_bytes(b"%d" % turn * 100)
        else:
            os.symlink(f"target {turn}", behind / name)
        number = os.lstat(behind / name).st_ino
        reused += numbers.get(number, turn % 3) != turn % 3
        numbers[number] = turn % 3
        status = os.lstat(served / name)
        assert stat.S_IFMT(status.st_mode) == stat.S_IFMT(os.lstat(behind / name).st_mode)
        if turn % 3 == 0:
            assert os.listdir(served / name) == []
            (served / name / "below").write_bytes(b"1")
            (behind / name / "below").unlink()
            (behind / name).rmdir()
        elif turn % 3 == 1:
            assert (served / name).read_bytes() == b"%d" % turn * 100
            (behind / name).unlink()
        else:
            assert os.readlink(served / name) == f"target {turn}"
            (behind / name).unlink()
    if places[0].parent.name == "alpha":
        assert reused > 5, "an ext4 uses numbers again at once: this test has tested nothing"


def test_the_number_used_again_while_open(places: tuple[Path, Path]) -> None:
    """A descriptor stays on the file that it was opened on; a new file of that number is another one."""
    served, behind = places
    for turn in range(10):
        (behind / "x").write_bytes(b"old %d" % turn)
        fd = os.open(served / "x", os.O_RDWR)
        (behind / "x").unlink()
        (behind / "y").write_bytes(b"new")
        assert (served / "y").read_bytes() == b"new"
        os.write(fd, b"OLD")
        assert os.pread(fd, 10, 0) == b"OLD %d" % turn
        assert (served / "y").read_bytes() == b"new"
        os.close(fd)
        (behind / "y").unlink()


def test_a_folder_that_is_renamed(places: tuple[Path, Path]) -> None:
    served, behind = places
    (behind / "a/deep/below").mkdir(parents=True)
    (behind / "a/deep/below/x").write_bytes(b"1")
    assert (served / "a/deep/below/x").read_bytes() == b"1"
    os.rename(behind / "a", behind / "b")
    assert (served / "b/deep/below/x").read_bytes() == b"1"
    within_the_timeout(lambda: os.path.exists(served / "a"), True, False)
    (behind / "a").mkdir()
    within_the_timeout(lambda: os.path.exists(served / "a"), False, True)
    assert os.listdir(served / "a") == []
    (served / "b/deep/new").write_bytes(b"2")
    assert (behind / "b/deep/new").read_bytes() == b"2"


def test_folders_that_change_places(places: tuple[Path, Path]) -> None:
    """No write through the vault lands in the folder that used to have that name, after the timeout."""
    served, behind = places
    for name in ("a", "b"):
        (behind / name).mkdir()
        (behind / name / "who").write_bytes(name.encode())
        assert (served / name / "who").read_bytes() == name.encode()
    os.rename(behind / "a", behind / "c")
    os.rename(behind / "b", behind / "a")
    os.rename(behind / "c", behind / "b")
    within_the_timeout(seen(served / "a/who"), b"a", b"b")
    within_the_timeout(seen(served / "b/who"), b"b", b"a")
    (served / "a/new").write_bytes(b"1")
    assert sorted(os.listdir(behind / "a")) == ["new", "who"]


def test_a_symbolic_link_to_get_out(vault: Vault, places: tuple[Path, Path]) -> None:
    """A folder swapped for a link that leads elsewhere: the overlay does not follow it for anybody."""
    served, behind = places
    outside = vault.backing("beta") / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "x").write_bytes(b"outside")
    (behind / "d").mkdir()
    (behind / "d/x").write_bytes(b"inside")
    fd = os.open(served / "d", os.O_RDONLY | os.O_DIRECTORY)
    assert (served / "d/x").read_bytes() == b"inside"
    shutil.rmtree(behind / "d")
    os.symlink(outside, behind / "d")
    for _ in range(20):
        for step in (
            lambda: os.unlink("x", dir_fd=fd),
            lambda: os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)),
            lambda: os.mkdir("new", dir_fd=fd),
        ):
            assert outcome(step) in ("ENOENT", "ESTALE")
        time.sleep(0.06)
    os.close(fd)
    assert os.listdir(outside) == ["x"]
    shutil.rmtree(outside)


def test_reading_while_it_is_replaced_all_the_time(places: tuple[Path, Path]) -> None:
    """Never the content of one version under the size, or with the end, of another."""
    served, behind = places
    versions = [bytes([65 + number]) * (1000 + 7919 * number) for number in range(8)]
    (behind / "x").write_bytes(versions[0])
    end = time.monotonic() + 2.5
    turn = 0
    found = set()
    look = seen(served / "x")
    while time.monotonic() < end:
        (behind / "new").write_bytes(versions[turn % 8])
        os.rename(behind / "new", behind / "x")
        turn += 1
        for _ in range(5):
            got = look()
            assert got in versions
            found.add(got)
    assert len(found) > 1
