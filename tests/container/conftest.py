"""One engine and one image for all tests of containers."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import engine as engines
from tests.support.engine import ROOT, Engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Running, with the base image."""
    reason = engines.why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="engine-", dir="/var/tmp") as folder:
        made = Engine(Path(folder))
        with ExitStack() as stack:
            try:
                stack.enter_context(made.running())
                made.make_base()
            except OSError as error:
                pytest.skip(str(error))
            yield made


@dataclass(frozen=True)
class Built:
    """The engine once it has the image; `said` is what the build has printed."""

    engine: Engine
    said: str


@pytest.fixture(scope="session")
def built(engine: Engine) -> Built:
    """With the image that image/Dockerfile makes, from wheels."""
    subprocess.run([ROOT / "dev", "wheels"], check=True, stdin=subprocess.DEVNULL, timeout=300)
    return Built(engine, engine.build())


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Folders of the host that containers mount."""
    return with_folders(tmp_path)


def with_folders(host: Path) -> Path:
    """Make `engineering`, `marketing` and `wiki` in it, for user 1000."""
    host.chmod(0o755)
    for name in ("engineering", "wiki", "marketing"):
        folder = host / name
        folder.mkdir()
        os.chown(folder, 1000, 1000)
    (host / "wiki/page.md").write_text("the page")
    return host


def mounts(host: Path) -> tuple[str, ...]:
    """Options that mount them into the vault."""
    return (
        *("--volume", f"{host}/engineering:/vault/engineering"),
        *("--volume", f"{host}/marketing:/vault/marketing"),
        *("--volume", f"{host}/wiki:/vault/wiki:ro"),
    )
