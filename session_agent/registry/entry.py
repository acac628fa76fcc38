"""workspace.json, the file of one workspace in a registry, by version 1.0 of Kasm's schema."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass

from session_agent.redaction import redacted
from session_agent.registry import exec_config, run_config
from session_agent.registry.document import Keys, read
from session_agent.registry.findings import Finding, Findings, below
from session_agent.registry.shapes import (
    LIST,
    OBJECT,
    TEXT,
    Shape,
    check_each,
    choice,
    integer,
    matching,
)

_CATEGORIES = 3
_LARGEST_MB = 200_000  # more is a size in KB or bytes
_VERSION = matching(
    r"[0-9]{1,4}\.[0-9]{1,4}\.([0-9]{1,4}|x)", 'a version of Kasm, such as "1.17.x"'
)
_IMAGE = matching(r"[^\s\x00-\x1f]+", 'the image, such as "registry.example/desktop:1.0"')
_ICON = matching(
    r"[^/\\\x00-\x1f]+\.(png|svg)",
    'the name of a .png or .svg file beside this one, such as "icon.svg"',
)
_REQUIRED: dict[str, Shape] = {
    "friendly_name": TEXT,
    "name": _IMAGE,
    "description": TEXT,
    "image_src": _ICON,
    "architecture": LIST,
    "compatibility": LIST,
    "uncompressed_size_mb": integer(1, "2460 for 2.46 GB"),
}
_OPTIONAL: dict[str, Shape] = {
    "categories": LIST,
    "docker_registry": TEXT,
    "run_config": OBJECT,
    "exec_config": OBJECT,
    "notes": TEXT,
    "cores": integer(1, "2"),
    "memory": integer(1, "2768000000"),
    "gpu_count": integer(0, "0"),
    "cpu_allocation_method": choice("Inherit", "Quotas", "Shares"),
}
_SHAPES = {**_REQUIRED, **_OPTIONAL}
_PARTS: dict[str, Shape] = {
    "architecture": choice("amd64", "arm64"),
    "compatibility": _VERSION,
    "categories": TEXT,
}
_CONFIGS = {"run_config": run_config.check, "exec_config": exec_config.check}


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in one file."""

    file: str
    valid: bool
    findings: tuple[Finding, ...]


def check(path: str) -> Checked:
    """Check the entry in `path`. Whatever is in the way is a finding, not an error."""
    findings = Findings()
    entry = read(path, findings)
    if entry is not None:
        _keys(entry, findings)
        _icon(entry, path, findings)
        _limits(entry, findings)
    return Checked(path, findings.valid, tuple(findings.found))


def _keys(entry: Keys, findings: Findings) -> None:
    for name, shape in _REQUIRED.items():
        if name not in entry:
            findings.error(below("", name), "It is missing.", f"Write {shape.expected}.")
    for name, value in entry.items():
        key = below("", name)
        if name in _CONFIGS:
            _CONFIGS[name](value, key, findings)
        elif name in _PARTS:
            _list(name, value, key, findings)
        elif name in _SHAPES:
            _SHAPES[name].check(value, key, findings)
        else:
            close = difflib.get_close_matches(name, _SHAPES, n=1)
            remedy = f"Is {close[0]} meant?" if close else "Remove it."
            findings.warn(key, "Schema 1.0 has no such key, so Kasm ignores it.", remedy)


def _list(name: str, value: object, key: str, findings: Findings) -> None:
    if not isinstance(value, list):
        LIST.check(value, key, findings)  # type: ignore[arg-type]  # tells it
        return
    check_each(value, key, _PARTS[name], findings)
    if not value and name in _REQUIRED:
        findings.error(key, "It is empty.", f"Name one at least: {_PARTS[name].expected}.")
    texts = [one for one in value if isinstance(one, str)]
    if len(set(texts)) < len(texts):
        findings.warn(key, "It names one more than once.", "Keep one of them.")


def _icon(entry: Keys, path: str, findings: Findings) -> None:
    icon = entry.get("image_src")
    if not isinstance(icon, str) or not _ICON.fits(icon):
        return
    if not os.path.lexists(os.path.join(os.path.dirname(path), icon)):
        findings.warn("/image_src", "There is no such file beside this one.", "Put the icon there.")


def _limits(entry: Keys, findings: Findings) -> None:
    categories = entry.get("categories")
    if isinstance(categories, list) and len(categories) > _CATEGORIES:
        findings.error(
            "/categories",
            f"It has {len(categories)} categories.",
            f"Name at most {_CATEGORIES}, the most fitting.",
        )
    size = entry.get("uncompressed_size_mb")
    if isinstance(size, int) and size > _LARGEST_MB:
        findings.error(
            "/uncompressed_size_mb",
            "It is too large for a number of megabytes.",
            "Write megabytes: 2460 for 2.46 GB.",
        )
    registry = entry.get("docker_registry")
    if isinstance(registry, str) and redacted(registry) != registry:
        findings.warn(
            "/docker_registry",
            "It holds credentials, and whoever reads the registry reads them.",
            "Write it without; administrators set them in the workspace.",
        )
