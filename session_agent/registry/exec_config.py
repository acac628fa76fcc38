"""`exec_config`: commands that Kasm runs in the session's container with `docker exec`."""

from __future__ import annotations

import difflib

from session_agent.redaction import redacted
from session_agent.registry.document import Json, Keys
from session_agent.registry.findings import Findings, below
from session_agent.registry.run_config import check_environment
from session_agent.registry.shapes import (
    BOOLEAN,
    ENVIRONMENT,
    OBJECT,
    TEXT,
    TEXTS,
    Shape,
    either,
    matching,
)

HOOKS = ("first_launch", "go", "assign")
_SHAPES: dict[str, Shape] = {
    "cmd": either(TEXT, TEXTS),
    "user": TEXT,
    "environment": ENVIRONMENT,
    "workdir": matching(r"/.*", 'an absolute path, such as "/home/kasm-user"'),
    "privileged": BOOLEAN,
}
_USERS = ("root", "kasm-user")


def check(value: Json, key: str, findings: Findings) -> None:
    """Tell what does not fit, and every command that would run."""
    if not OBJECT.check(value, key, findings):
        return
    assert isinstance(value, Keys)
    for name, hook in value.items():
        at = below(key, name)
        if name not in HOOKS:
            findings.warn(at, "There is no such hook, so it never runs.", _meant(name, HOOKS))
        if OBJECT.check(hook, at, findings):
            assert isinstance(hook, Keys)
            _hook(name, hook, at, findings)


def _hook(name: str, hook: Keys, key: str, findings: Findings) -> None:
    if "cmd" not in hook:
        findings.error(
            below(key, "cmd"), "It is missing.", 'A hook is {"cmd": "…"}, with `user` if it must.'
        )
    fits = True
    for part, one in hook.items():
        at = below(key, part)
        if part in _SHAPES:
            fits &= _SHAPES[part].check(one, at, findings)
        else:
            findings.warn(at, "A hook has no such key.", _meant(part, tuple(_SHAPES)))
    if not fits:
        return
    check_environment(hook.get("environment"), below(key, "environment"), findings)
    user = hook.get("user")
    if isinstance(user, str) and user not in _USERS:
        findings.warn(
            below(key, "user"), "Kasm's images have no such user.", f"Write {' or '.join(_USERS)}."
        )
    if hook.get("privileged"):
        findings.warn(
            below(key, "privileged"),
            "The command has every capability.",
            "Remove it, or say in `notes` what it is for.",
        )
    command = hook.get("cmd")
    if command is not None:
        words = " ".join(map(str, command)) if isinstance(command, list) else str(command)
        who = redacted(user) if isinstance(user, str) else "the image's user"
        findings.warn(
            below(key, "cmd"),
            f"{name} runs a command as {who}; read it before you install the workspace:"
            f" {redacted(words)}",
            "",
        )


def _meant(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Is {close[0]} meant?" if close else f"Known are {', '.join(known)}."
