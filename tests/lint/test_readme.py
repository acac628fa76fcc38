"""The README's tables say what the code says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import yaml

from session_agent import errors, settings
from session_agent.settings_types import Settings

ROOT = Path(__file__).parents[2]


def table(heading: str) -> list[list[str]]:
    """The body of the first table under `heading`, cells without backticks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert rows, f"no table under {heading}"
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_exit_codes() -> None:
    codes = {
        name.removeprefix("EXIT_").lower(): str(value)
        for name, value in vars(errors).items()
        if name.startswith("EXIT_")
    }
    assert {name: code for code, name, _ in table("Exit codes")} == codes


def settings_of(struct: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, msgspec.Struct):
            yield from settings_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def test_settings_and_their_defaults() -> None:
    documented = [(key, yaml.safe_load(default)) for key, default, _ in table("Settings")]
    assert documented == list(settings_of(Settings()))


def test_environment_variables() -> None:
    class Recorder(dict[str, str]):
        """An environment that notes what it is asked for."""

        asked: set[str]

        def get(self, key: str, default: object = None) -> str:
            self.asked.add(key)
            return "" if default is None else str(default)

    recorder = Recorder()
    recorder.asked = set()
    settings.load(None, recorder)
    assert {name for name, _ in table("Environment")} == recorder.asked


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
