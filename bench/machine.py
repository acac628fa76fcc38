"""Where the figures come from: what a reader needs to judge or repeat them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from bench.contenders import PEERS

_PACKAGES = {"mergerfs": "mergerfs", "bindfs": "bindfs", "unionfs": "unionfs-fuse"}


def describe(folder: Path) -> dict[str, str]:
    """Facts by name. `folder` is where the backing directory lies."""
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": f"{platform.system()} {platform.release()}",
        "processor": f"{len(os.sched_getaffinity(0))} x {_processor()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "file system": _output("findmnt", "-n", "-o", "FSTYPE", "-T", str(folder)),
        "load at the start": f"{os.getloadavg()[0]:.1f}",  # above 1, others are at work
        "python": platform.python_version(),
        "pyfuse3": _python_package("pyfuse3"),
        "trio": _python_package("trio"),
    }
    for peer, options in PEERS.items():
        version = _output("dpkg-query", "-W", "-f", "${Version}", _PACKAGES[peer])
        facts[peer] = f"{version or 'unknown'}, -o {options}"
    return facts


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _python_package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()
