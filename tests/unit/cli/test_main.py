"""The command line: exit codes, error messages, help, and what is imported when."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from session_agent import settings
from session_agent.cli import main as cli
from session_agent.cli.main import main
from session_agent.cli.output import shown
from session_agent.errors import SettingsError
from session_agent.lifecycle.report import Report, StepReport, StepState
from tests.support.schemas import schema

ROOT = Path(__file__).parents[3]
VERBS = [
    "first-launch",
    "doctor",
    "mounts",
    "status",
    "moves",
    "stop",
    "recover",
    "serve",
    "plan",
    "policy",
    "registry",
    "schema",
]
GROUPS = {"policy": ["check", "explain", "diff", "test"], "registry": ["check"]}
# What is typed for each command: a verb, or a verb and what it is a group of.
COMMANDS = [
    [verb, *below]
    for verb in VERBS
    for below in ([[name] for name in GROUPS.get(verb, [])] or [[]])
]


@pytest.fixture
def status_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `status` fail in a certain way."""

    def arrange(error: BaseException) -> None:
        def fail(_config: str | None) -> None:
            raise error

        monkeypatch.setattr("session_agent.cli.status.settings", fail)

    return arrange


def test_every_verb_is_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in overview
    for command in COMMANDS:
        assert main([*command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "Exit codes:" in text
        for option in ("--config", "--debug", "--json"):
            assert option in text
    assert "Exit codes" in overview


def test_help_texts_fit_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["policy"], *COMMANDS):
        main([*words, "--help"])
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


@pytest.mark.parametrize("words", [["nonsense"], ["status", "--nonsense"], ["mounts", "extra"]])
def test_wrong_usage_is_no_degraded_session(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "Usage:" in error
    assert "Traceback" not in error


def test_an_expected_error_is_message_and_hint(
    status_raises: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    status_raises(SettingsError("Wrong.", "Right it."))
    assert main(["status"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "session-agent: Wrong.\n  Right it.\n"
    assert captured.out == ""


def test_an_unexpected_one_is_a_line_unless_debugged(
    status_raises: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    status_raises(KeyError("x"))
    assert main(["status"]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[0] == "session-agent: Unexpected error: KeyError: 'x'"
    assert "--debug" in error
    assert "Traceback" not in error
    assert main(["status", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interruption(status_raises: Callable[[BaseException], None]) -> None:
    status_raises(KeyboardInterrupt())
    assert main(["status"]) == 130


@pytest.mark.parametrize("words", [["--nonsense"], ["--config", "/nonexistent.yaml"]])
def test_exit_zero_holds_whatever_is_wrong(words: list[str]) -> None:
    assert main(["first-launch", *words]) == 1
    assert main(["first-launch", *words, "--exit-zero"]) == 0


@pytest.mark.parametrize("words", [["--config", "{}", "status"], ["status", "--config", "{}"]])
def test_config_may_stand_on_either_side(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("vault: 7\n")
    assert main([word.format(file) for word in words]) == 1
    assert f"{file}, line 1: vault:" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{sys.executable} -m session_agent --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in {"0", "1"}
    assert done.stderr == ""


def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "session_agent", "--help"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr


@pytest.mark.parametrize("verb", ["status", "stop", "mounts"])
def test_small_verbs_load_no_large_library(verb: str) -> None:
    program = (
        "import sys; from session_agent.cli.main import main\n"
        f"main(['{verb}', '--config', '/nonexistent.yaml'])\n"
        "print(sorted({'pyfuse3', 'trio', 'rich', 'watchdog'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
    assert "does not exist" in done.stderr


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "session_agent", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("session-agent, version ")


def test_text_cannot_control_the_terminal() -> None:
    assert shown("a\x1b[31mb\nc\u202ed\udcff") == r"a\x1b[31mb\nc\u202ed\xff"
    assert shown("Übersicht 東京") == "Übersicht 東京"


class TestSummary:
    """What first-launch prints."""

    REPORT = Report(
        "/vault",
        (
            StepReport("mounts", StepState.OK, False, "2 mounts"),
            StepReport("vault", StepState.DEGRADED, False, "There is no /dev/fuse.", "Add it."),
            StepReport("bookmarks", StepState.OK, True, "3 places", path="/h/bookmarks"),
        ),
        ("Something \x1b odd.",),
        1.25,
    )

    @pytest.fixture
    def launched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = importlib.import_module("session_agent.lifecycle.first_launch")
        monkeypatch.setattr(module, "first_launch", lambda _loaded: self.REPORT)
        monkeypatch.setattr(
            "session_agent.cli.first_launch.settings", lambda _config: settings.Loaded()
        )

    @pytest.mark.usefixtures("launched")
    def test_for_people(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["first-launch"]) == 2
        assert capsys.readouterr().out.splitlines() == [
            "ok        mounts: 2 mounts",
            "degraded  vault: There is no /dev/fuse.",
            "          -> Add it.",
            "ok        bookmarks: changed, 3 places (/h/bookmarks)",
            r"warning   Something \x1b odd.",
            "Degraded: something is missing, see above and `session-agent doctor`. (1.2 s)",
        ]

    @pytest.mark.usefixtures("launched")
    def test_for_programs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["first-launch", "--json", "--exit-zero"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["state"], told["changed"], told["vault"]) == ("degraded", True, "/vault")
        assert told["steps"][1] == {
            "name": "vault",
            "state": "degraded",
            "changed": False,
            "detail": "There is no /dev/fuse.",
            "hint": "Add it.",
            "path": "",
        }


def test_the_verbs_are_what_the_modules_call_themselves() -> None:
    for verb in VERBS:
        command = importlib.import_module(f"session_agent.cli.{verb.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        assert command.name == verb
    assert tuple(VERBS) == cli._VERBS


@pytest.mark.parametrize("name", ["rooms", "config", "policy"])
def test_the_schemas_are_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", name]) == 0
    assert json.loads(capsys.readouterr().out) == schema(name)
    assert main(["schema", "nonsense"]) == 1
