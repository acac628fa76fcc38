"""File systems in images, and a vault over chosen branches: for what is no row of the table."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.contenders import ENVIRONMENT
from bench.failure import Failure

_PATIENCE = 120.0  # seconds for one program
_READY = 20.0  # seconds for the vault to appear, and to end


def run(*command: str) -> None:
    """Failure unless the program ends well."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=_PATIENCE, env=ENVIRONMENT
    )
    if done.returncode:
        raise Failure(f"{' '.join(command)}: {done.stderr.strip()}")


def image(undo: ExitStack, kind: str, path: Path, size: int) -> None:
    """A file system of its own at `path`, in a sparse file beside it."""
    file = path.with_name(f"{path.name}.image")
    with open(file, "wb") as empty:
        empty.truncate(size)
    run(f"mkfs.{kind}", "-q", "-F" if kind == "ext4" else "-f", str(file))
    path.mkdir()
    run("mount", "-o", "loop", str(file), str(path))
    undo.callback(run, "umount", str(path))


class Server:
    """A vault that is served by `process`. Memory in KiB."""

    def __init__(self, vault: Path, process: subprocess.Popen[str]) -> None:
        self.vault = vault
        self._process = process

    def counts(self) -> dict[str, int]:
        """Its ForeignCounts by now."""
        self._process.send_signal(signal.SIGUSR1)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failure("the vault's server has ended")
        counts: dict[str, int] = json.loads(line)
        return counts

    def resident(self) -> int:
        """What it has in memory now."""
        return self._status("VmRSS")

    def most_resident(self) -> int:
        """The most that it had in memory since `forget_most`."""
        return self._status("VmHWM")

    def forget_most(self) -> None:
        """From now on counts what is in memory from now on (proc_pid_clear_refs(5))."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5\n", encoding="ascii")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        if found is None:
            raise Failure("the vault's server has ended")
        return int(found[1])


@contextmanager
def served(folder: Path, branches: Mapping[str, Path], *options: str) -> Iterator[Server]:
    """The vault over these branches, at `folder`/vault. `options` are those of vault_server.py."""
    vault, root, state = (folder / name for name in ("vault", "root", "state"))
    for path in (vault, root, state):
        path.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bench.vault_server", "--state", str(state), *options]
    command += [str(vault), str(root), *(f"{name}={path}" for name, path in branches.items())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + _READY
        while not os.path.ismount(vault):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure("the vault does not start")
            time.sleep(0.02)
        yield Server(vault, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_READY)
        finally:
            assert process.stdout is not None
            process.stdout.close()
