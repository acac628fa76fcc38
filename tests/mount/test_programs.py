"""Programs that demand much of a file system, at work in the vault: git, SQLite, Electron, installers."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.trees import content, differences, needs, run
from tests.support.vault import Storage, Vault, drop_caches

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

# The root branch and a bind mount on ext4, an xfs, a tmpfs.
BRANCHES = ("", "alpha", "gamma", "delta")
SCRIPTS = Path(__file__).parent / "scripts"


def remove(path: Path) -> None:
    run("rm", "-rf", "--", path)


# git


def git(folder: Path, *arguments: str | Path) -> str:
    person = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Somebody"), ("EMAIL", "somebody@example.org"))
    }
    settings = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    return run("git", "-C", folder, *arguments, env=person | settings)


@pytest.fixture(scope="module")
def origin(place: Storage) -> Path:
    """A repository with 240 files, two lines of history, a symbolic link and an executable."""
    top = place.native / "origin"
    git(place.native, "init", "-q", "--initial-branch=main", top)
    for number in range(240):
        note = top / f"folder {number % 12}" / f"note {number}.md"
        note.parent.mkdir(exist_ok=True)
        note.write_bytes(content(number, 100 + number * 41))
    (top / "link").symlink_to("folder 1/note 1.md")
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o755)
    git(top, "add", ".")
    git(top, "commit", "-qm", "first")
    git(top, "checkout", "-qb", "other")
    remove(top / "folder 3")
    (top / "folder 4").rename(top / "renamed")
    (top / "folder 5/note 5.md").write_text("other\n")
    git(top, "add", "-A")
    git(top, "commit", "-qm", "on the other line")
    git(top, "checkout", "-q", "main")
    return top


def check_repository(folder: Path, branch: str, origin: Path) -> None:
    """Everything in it is sound, and nothing seems changed."""
    run_fsck(folder)
    assert git(folder, "status", "--porcelain") == ""
    assert git(folder, "rev-parse", "HEAD") == git(origin, "rev-parse", branch)


def run_fsck(folder: Path) -> None:
    said = git(folder, "fsck", "--strict", "--full", "--no-dangling", "--no-progress")
    assert said == "", said


def work_in(clone: Path) -> None:
    git(clone, "checkout", "-q", "other")
    git(clone, "checkout", "-q", "main")
    (clone / "folder 1/note 1.md").write_text("changed\n")
    (clone / "new").write_text("new\n")
    git(clone, "mv", "folder 2", "moved")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "work")
    git(clone, "merge", "-q", "-m", "both", "origin/other")
    git(clone, "stash", "list")
    git(clone, "gc", "--quiet", "--prune=now", "--aggressive")


@needs("git")
@pytest.mark.parametrize("branch", BRANCHES)
def test_git(vault: Vault, place: Storage, origin: Path, branch: str) -> None:
    clone, plain = vault.path / branch / "clone", place.native / "clone"
    for folder in (clone, plain):
        git(place.native, "clone", "-q", "--no-local", origin, folder)
        check_repository(folder, "main", origin)
        work_in(folder)
        run_fsck(folder)
    assert git(clone, "rev-parse", "HEAD^{tree}") == git(plain, "rev-parse", "HEAD^{tree}")
    assert run("diff", "-r", "--no-dereference", "--exclude=.git", clone, plain) == ""
    assert git(clone, "status", "--porcelain") == ""
    # What the index knows of inode numbers and times holds after the kernel has forgotten the files,
    # and git need not read them again.
    drop_caches()
    assert git(clone, "diff-files") == ""
    git(clone, "push", "-q", "origin", f"HEAD:from-{branch}")
    run_fsck(origin)
    run_fsck(vault.backing(branch) / "clone")
    remove(clone)
    remove(plain)


@needs("git")
def test_a_moved_repository_is_whole(vault: Vault, place: Storage, origin: Path) -> None:
    clone = vault.path / "alpha/clone"
    git(place.native, "clone", "-q", "--no-local", origin, clone)
    for step, branch in enumerate(("gamma", "delta", "", "beta")):
        target = vault.path / branch / f"clone {step}"
        clone.rename(target)
        clone = target
        check_repository(clone, "main", origin)
        git(clone, "checkout", "-q", "other")
        check_repository(clone, "other", origin)
        git(clone, "checkout", "-q", "main")
        if step % 2:
            git(clone, "gc", "--quiet")
    work_in(clone)
    run_fsck(clone)
    remove(clone)


# SQLite


def make_database(path: Path, journal: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.executescript(
            "CREATE TABLE notes (who, number, data, digest, PRIMARY KEY (who, number));"
            "CREATE TABLE totals (notes, bytes);"
            "INSERT INTO totals VALUES (0, 0);"
        )


def ask(path: Path, question: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        return connection.execute(question).fetchall()


def sqlite_client(path: Path, journal: str, name: str, count: int) -> subprocess.Popen[str]:
    command: list[str | Path] = [
        sys.executable,
        SCRIPTS / "sqlite_client.py",
        path,
        journal,
        name,
        str(count),
    ]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@needs("sqlite3")
@pytest.mark.parametrize("journal", ["wal", "delete", "persist"])
@pytest.mark.parametrize("branch", ["alpha", "gamma", "delta"])
def test_sqlite_with_two_programs(vault: Vault, branch: str, journal: str) -> None:
    path = vault.path / branch / "notes.db"
    make_database(path, journal)
    count = 120
    clients = [sqlite_client(path, journal, name, count) for name in ("one", "two")]
    for client in clients:
        said, _ = client.communicate(timeout=100)
        assert client.returncode == 0, said
    kept = [number for number in range(count) if number % 10 != 9]
    for database in (path, vault.backing(branch) / "notes.db"):  # in the vault, and behind it
        assert ask(database, "PRAGMA integrity_check") == [("ok",)]
        for name in ("one", "two"):
            question = f"SELECT number FROM notes WHERE who = '{name}' ORDER BY number"
            assert ask(database, question) == [(number,) for number in kept]
    assert (
        run("sqlite3", path, "VACUUM; PRAGMA integrity_check; SELECT notes FROM totals")
        == "ok\n216\n"
    )
    for left in path.parent.glob("notes.db*"):
        left.unlink()


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_after_a_program_was_killed(vault: Vault, journal: str) -> None:
    """Each time the next program finds what was committed, and nothing else."""
    path = vault.path / "alpha/killed.db"
    make_database(path, journal)
    before = 0
    for attempt in range(4):
        client = sqlite_client(path, journal, f"client {attempt}", 100_000)
        deadline = time.monotonic() + 30
        while ask(path, "SELECT notes FROM totals")[0][0] < before + 20:  # type: ignore[operator]
            assert time.monotonic() < deadline
            assert client.poll() is None, client.communicate()[0]
            time.sleep(0.01 * attempt)
        client.send_signal(signal.SIGKILL)
        client.communicate(timeout=20)
        assert ask(path, "PRAGMA integrity_check") == [("ok",)]
        ((before, data),) = ask(path, "SELECT notes, bytes FROM totals")  # type: ignore[assignment]
        assert ask(path, "SELECT count(*), sum(length(data)) FROM notes") == [(before, data)]
    for left in path.parent.glob("killed.db*"):
        left.unlink()


# Electron


@needs("node")
@pytest.mark.parametrize("part", ["renames", "watching", "copies", "theRest", "saving"])
def test_electron(vault: Vault, part: str) -> None:
    run("node", SCRIPTS / "electron.mjs", vault.path, part)


# Installers


def test_python_environment(vault: Vault) -> None:
    """pip installs itself and a package, an archive is imported from, and all is removed again."""
    top = vault.path / "gamma/python"
    python = top / "bin/python"
    run(sys.executable, "-m", "venv", "--symlinks", top, time_limit=100)
    wheel = top / "vaulted-1.0-py3-none-any.whl"
    about = "vaulted-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vaulted/__init__.py", "def main(): print('from the vault')\n")
        for number in range(100):
            archive.writestr(f"vaulted/part{number}.py", f"value = {number}\n")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: vaulted\nVersion: 1.0\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr(f"{about}/entry_points.txt", "[console_scripts]\nvaulted = vaulted:main\n")
        archive.writestr(f"{about}/RECORD", "")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-cache-dir")
    run(*pip, "install", "--no-index", "--no-deps", wheel, time_limit=100)
    assert run(top / "bin/vaulted") == "from the vault\n"
    assert run(python, "-c", "import vaulted.part7 as p; print(p.value)") == "7\n"
    code = "import vaulted.part8 as p; print(p.__file__)"
    assert run(python, "-c", code, env={"PYTHONPATH": str(wheel)}).startswith(f"{wheel}/")
    run(*pip, "uninstall", "-q", "-y", "vaulted")
    assert [path for path in top.rglob("vaulted*") if path != wheel] == []
    remove(top)


PACKAGE = """\
Package: vaulted
Version: {version}
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: a package to be installed in a vault
"""


def build_package(folder: Path, version: int) -> Path:
    top = folder / f"package {version}"
    shared = top / "usr/share/vaulted"
    (top / "DEBIAN").mkdir(parents=True)
    (top / "DEBIAN").chmod(0o755)
    (top / "DEBIAN/control").write_text(PACKAGE.format(version=version))
    for number in range(150 + version * 10):
        if number % 7 == version:
            continue  # the versions have not the same files
        file = shared / f"{number % 9}/file {number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(number + version, number * 50))
    os.link(shared / "5/file 14", shared / "5/linked")
    (shared / "link").symlink_to("1")
    (shared / "run").write_text("#!/bin/sh\n")
    (shared / "run").chmod(0o4755)
    run("dpkg-deb", "--build", "--root-owner-group", top, folder / f"vaulted_{version}.deb")
    return folder / f"vaulted_{version}.deb"


@needs("dpkg")
@pytest.mark.parametrize("branch", BRANCHES)
def test_debian_packages(vault: Vault, place: Storage, branch: str) -> None:
    """Build, unpack, install, upgrade and remove: dpkg links, syncs and renames each file."""
    folder, plain = vault.path / branch / "debian", place.native / "debian"
    for top in (folder, plain):
        top.mkdir()
        packages = [build_package(top, version) for version in (1, 2)]
        run("dpkg-deb", "-x", packages[0], top / "unpacked")
        (top / "system/var/lib/dpkg/updates").mkdir(parents=True)
        (top / "system/var/lib/dpkg/info").mkdir()
        (top / "system/var/lib/dpkg/status").touch()
        for package in packages:
            dpkg(top / "system", "--install", package)
            assert dpkg(top / "system", "--verify", "vaulted") == ""
    for part in ("unpacked", "system/usr"):
        assert without_times(differences(folder / part, plain / part)) == []
    dpkg(folder / "system", "--purge", "vaulted")
    assert not list((folder / "system").rglob("*vaulted*"))
    remove(folder)
    remove(plain)


def dpkg(root: Path, *arguments: str | Path) -> str:
    return run("dpkg", f"--root={root}", "--log=/dev/null", *arguments)


def without_times(found: list[str]) -> list[str]:
    """The packages were built one after the other."""
    return [text for text in found if ": mtime " not in text]
