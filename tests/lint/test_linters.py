"""The linters, run as tests, and the rules of CONTRIBUTING.md that no linter knows."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE_LINES = 400
TEST_MODULE_LINES = 750  # a table of conditions is read line by line, not as a whole
FUNCTION_LINES = 60

LINTERS = {
    "ruff check": ["-m", "ruff", "check"],
    "ruff format": ["-m", "ruff", "format", "--check"],
    "mypy": ["-m", "mypy"],
    "import-linter": [
        "-c",
        "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])",
    ],
}


def tracked_files() -> list[Path]:
    """What git tracks or would track: the repository's files but the ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def shell_scripts() -> list[Path]:
    return [path for path in tracked_files() if path.read_bytes()[:64].startswith(SHELLS)]


SHELLS = (b"#!/bin/sh", b"#!/bin/bash", b"#!/usr/bin/env bash", b"#!/usr/bin/env sh")


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("linter", LINTERS)
def test_linter(linter: str) -> None:
    run([sys.executable, *LINTERS[linter]])


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    scripts = shell_scripts()
    assert {ROOT / "dev", ROOT / ".ci/run"} <= set(scripts)
    run(["shellcheck", *map(str, scripts)])


def test_modules_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("session_agent", "tests", "demo", "bench")
        for path in python_files(folder)
    }
    long = {
        path: lines
        for path, lines in lengths.items()
        if lines > (TEST_MODULE_LINES if path.startswith("tests/") else MODULE_LINES)
    }
    assert long == {}


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": lines
        for folder in ("session_agent", "tests", "demo", "bench")
        for path in python_files(folder)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    }
    assert long == {}


def environment_uses(source: str) -> Iterator[int]:
    """The lines that read or change the environment. Another process's is `process.environ()`."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    nodes = list(ast.walk(ast.parse(source)))
    others = [
        node.func
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "process.environ"
    ]
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in names and node not in others:
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and names & {alias.name for alias in node.names}:
            yield node.lineno


def test_environment_uses_are_seen() -> None:
    source = (
        "import os\nos.environ['A']\nfrom os import getenv\nos.environ_of_mine\nprocess.environ()\n"
    )
    assert list(environment_uses(source)) == [3, 2]


def test_only_settings_reads_the_environment() -> None:
    uses = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in python_files("session_agent")
        if path.name != "settings.py"
        for line in environment_uses(path.read_text(encoding="utf-8"))
    ]
    assert uses == []


def test_rich_is_imported_only_where_it_prints() -> None:
    """Importing rich costs tens of milliseconds, which first-launch and `--json` do not pay."""
    imports = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files("session_agent")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and re.search(r"\brich\b", ast.unparse(node))
    ]
    assert imports == []


# Parts are joined here so that this file does not hold what it looks for.
FOREIGN = re.compile(
    "|".join(
        [
            r"index" + r"-url",
            r"py" + r"pi\.",
            r"files\.python" + r"hosted",
            r"registry" + r"\.npm",
            r"(?<![\w.])/work" + r"/",
            r"(?<![\w.])/root" + r"/",
            r"\.py" + r"env",
            r"/opt" + r"/(?:wheels|py" + r"pi)",
        ]
    )
)


def test_no_machine_of_ours_is_named() -> None:
    """No package index address and no path of one developer's machine: a clone works anywhere."""
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked_files()
        if "tests/data" not in str(path)
        for match in FOREIGN.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []


def test_locks_pin_every_dependency() -> None:
    pins = [
        line
        for lock in ("runtime", "dev")
        for line in (ROOT / f"requirements/{lock}.lock").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in pins}
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.")[0]
    wanted = {name.lower() for name in re.findall(r'^    "([\w-]+)', metadata, re.MULTILINE)}
    assert len(wanted) > 10
    assert wanted - pinned == set()
