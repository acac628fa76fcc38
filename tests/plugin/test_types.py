"""The Obsidian plugin against Obsidian's own type definitions, by the TypeScript compiler."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache/npm"
PLUGIN = HERE.parents[1] / "session_agent/desktop/plugin/main.js"
PATIENCE = 60.0  # seconds for npm

# What npm says where the registry cannot be reached, or has not got a version.
UNREACHABLE = re.compile(
    r"code (E(?:NOTFOUND|AI_AGAIN|CONN\w+|TIMEDOUT|NETUNREACH|HOSTUNREACH|NOTCACHED)|ETARGET|E\d{3})"
)


@pytest.fixture(scope="module")
def compiler() -> Path:
    """A folder with what package-lock.json names, installed once for each state of that file."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    lock = (HERE / "package-lock.json").read_bytes()
    folder = CACHE / hashlib.sha256(lock).hexdigest()[:16]
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as made:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, made)
        install(Path(made))
        os.chmod(made, 0o755)
        if not folder.is_dir():  # another run may have been quicker
            shutil.copytree(made, folder.with_suffix(".new"), symlinks=True, dirs_exist_ok=True)
            folder.with_suffix(".new").rename(folder)
    return folder


def install(folder: Path) -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0"]
    try:
        done = subprocess.run(
            command, cwd=folder, check=False, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the npm registry has not answered for {PATIENCE:.0f} s")
    if done.returncode and (found := UNREACHABLE.search(done.stderr)):
        pytest.skip(f"the npm registry cannot be reached, or lacks a package: {found[1]}")
    assert done.returncode == 0, done.stderr


def check(compiler: Path, source: str, tmp_path: Path) -> str:
    """What the compiler has against `source`; "" for nothing."""
    (tmp_path / "main.js").write_text(source, encoding="utf-8")
    shutil.copy(HERE / "tsconfig.json", tmp_path)
    (tmp_path / "node_modules").symlink_to(compiler / "node_modules")
    program = compiler / "node_modules/typescript/bin/tsc"
    done = subprocess.run(
        ["node", str(program), "-p", str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert (done.returncode != 0) == bool(done.stdout), done.stderr
    return done.stdout


def test_the_plugin(compiler: Path, tmp_path: Path) -> None:
    assert check(compiler, PLUGIN.read_text(encoding="utf-8"), tmp_path) == ""


def test_a_mistake_is_found(compiler: Path, tmp_path: Path) -> None:
    source = PLUGIN.read_text(encoding="utf-8").replace(".setMessage(", ".setMesage(")
    assert "setMesage" in check(compiler, source, tmp_path)


def test_no_registry_is_named() -> None:
    lock = (HERE / "package-lock.json").read_text(encoding="utf-8")
    assert "resolved" not in lock
    assert "://registry" not in lock
