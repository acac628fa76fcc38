"""The overlay in a process of its own, over real storage, without the rest of the agent around it.

`storage` mounts what a test works on, `serve` starts the overlay over some of it. Both end with nothing
mounted and no process left, whatever happened. A warning in the overlay's log that the test did not
announce fails the test (`Vault.watched`), and so does an overlay that does not end cleanly.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.support import storage as mounted

T = TypeVar("T")

_PATIENCE = 20.0  # seconds
_WARNING = re.compile(r"^(WARNING|ERROR|CRITICAL|Traceback|Exception ignored)|Warning: ")

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Storage:
    """What is mounted below `base`, which everybody may enter.

    `alpha`, `beta` and `readonly` are separate mounts of one ext4 file system, so rename(2) between them
    fails with EXDEV; so does one from or to `root`, a folder of the same file system's own mount. `gamma`
    is an xfs, `delta` a tmpfs, `tiny` a tmpfs of 1 MiB. `native` is a plain folder of the ext4.
    """

    base: Path

    @property
    def native(self) -> Path:
        return self.base / "ext4/native"

    @property
    def root(self) -> Path:
        return self.base / "ext4/root"

    def branch(self, name: str) -> Path:
        return self.base / "branches" / name


BRANCHES = ("alpha", "beta", "gamma", "delta", "tiny", "readonly")


@contextlib.contextmanager
def storage() -> Iterator[Storage]:
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(_folder()))
        images = stack.enter_context(mounted.tmpfs(base / "images", size="1g"))
        # Without a journal, so that a thousand fsyncs cost little; with inodes large enough for
        # nanoseconds, which small file systems do not get by default.
        ext4 = base / "ext4"
        options = ["-I", "256", "-O", "^has_journal", "-N", "60000"]
        stack.enter_context(_image(images / "ext4", ext4, "ext4", "400M", options))
        gamma = base / "branches/gamma"
        stack.enter_context(_image(images / "xfs", gamma, "xfs", "320M", []))
        stack.enter_context(mounted.tmpfs(base / "branches/delta", size="256m"))
        stack.enter_context(mounted.tmpfs(base / "branches/tiny", size="1m"))
        for name in ("native", "root", "alpha", "beta", "readonly"):
            (ext4 / name).mkdir()
        (ext4 / "readonly/file").write_bytes(b"fixed")
        (ext4 / "readonly/folder").mkdir()
        for name in ("alpha", "beta", "readonly"):
            branch = base / "branches" / name
            stack.enter_context(mounted.bind(ext4 / name, branch, read_only=name == "readonly"))
        for name in ("delta", "tiny"):
            (base / "branches" / name).chmod(0o755)
        yield Storage(base)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    # Not pytest's: users other than root are to get in.
    base = tempfile.mkdtemp(prefix="session-agent-test-")
    os.chmod(base, 0o755)
    try:
        yield base
    finally:
        if not _mounts_below(base):  # never delete what is in a mount that is still there
            subprocess.run(["rm", "-rf", "--one-file-system", base], check=True)


def _mounts_below(base: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [path for line in lines if (path := line.split()[4]).startswith(base + "/")]


@contextlib.contextmanager
def _image(image: Path, path: Path, fstype: str, size: str, options: list[str]) -> Iterator[None]:
    path.mkdir(parents=True)
    _run("truncate", "--size", size, str(image))
    _run(f"mkfs.{fstype}", "-q", *options, str(image))
    _run("mount", "-o", "loop", str(image), str(path))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, timeout=_PATIENCE, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@dataclass
class Vault:
    """A served overlay."""

    path: Path
    root: Path
    branches: dict[str, Path]
    pid: int
    log: Path
    state: Path = Path()
    _read: int = 0
    _expected: list[str] = field(default_factory=list)

    def backing(self, name: str) -> Path:
        """The folder behind the branch `name`, "" for the root branch."""
        return self.branches[name] if name else self.root

    @contextlib.contextmanager
    def held_at(self, point: str) -> Iterator[None]:
        """Moves wait at this failpoint until the block ends."""
        hold = self.state / f"hold-{point}"
        self._reached(point).unlink(missing_ok=True)
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    def has_reached(self, point: str) -> bool:
        """Whether a move waits there since `held_at`."""
        return self._reached(point).exists()

    def _reached(self, point: str) -> Path:
        return self.state / f"reached-{point}"

    def restrict(self, limits: Mapping[str, object]) -> None:
        """Let these limits hold; returns when they do, and the kernel has forgotten what it knew."""
        file = self.state / "limits"
        file.write_text(json.dumps(limits), encoding="utf-8")
        os.kill(self.pid, signal.SIGUSR1)
        deadline = time.monotonic() + _PATIENCE
        while file.exists():
            assert time.monotonic() < deadline, "the overlay does not take its limits"
            time.sleep(0.002)

    def expect(self, pattern: str) -> None:
        """The running test makes the overlay warn of this, at least once."""
        self._expected.append(pattern)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Fail unless the log gets exactly the warnings that are expected."""
        self._expected.clear()
        self.new_warnings()
        yield
        warnings = self.new_warnings()
        patterns = [re.compile(pattern) for pattern in self._expected]
        surprising = [w for w in warnings if not any(p.search(w) for p in patterns)]
        assert not surprising, "the overlay's log:\n" + "\n".join(surprising)
        missing = [p.pattern for p in patterns if not any(p.search(w) for w in warnings)]
        assert not missing, f"the overlay did not warn of {missing}"

    def new_warnings(self) -> list[str]:
        """The warnings since the last call, each with the lines that belong to it."""
        text = self.log.read_bytes()[self._read :].decode(errors="replace")
        self._read += len(text.encode())
        return [
            entry.rstrip()
            for entry in re.split(r"^(?=[A-Z]{4,} |Traceback)", text, flags=re.MULTILINE)
            if _WARNING.search(entry)
        ]

    def open_files(self) -> int:
        """How many descriptors the overlay holds."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextlib.contextmanager
def serve(
    place: Storage,
    branches: Mapping[str, Path] | None = None,
    *,
    cache_seconds: float = 1.0,
    folder_limit: int = 4096,
    inline_bytes: int | None = None,
    in_one_step: bool = False,
    foreign_events: bool = True,
    watches: int | None = None,
    pending: int | None = None,
    remote_polls: int = 60,
    state: Path | None = None,
    limits: Mapping[str, object] | None = None,
) -> Iterator[Vault]:
    """The overlay over the storage's branches, or over `branches`: name in the vault -> folder.

    With `inline_bytes` it keeps a journal in `state`, or beside the vault, and moves what is larger in the
    background. `in_one_step`: it may move by file handle. `limits`: as vault_process reads them.
    `watches`: how many folders may be watched; `pending`: how many changes of a branch may wait.
    `remote_polls`: OverlayOptions.remote_polls_per_minute.
    """
    if branches is None:
        branches = {name: place.branch(name) for name in BRANCHES}
    with tempfile.TemporaryDirectory(prefix="vault-", dir=place.base) as scratch:
        os.chmod(scratch, 0o755)
        path, log = Path(scratch, "vault"), Path(scratch, "log")
        path.mkdir()
        (state := state or Path(scratch, "state")).mkdir(exist_ok=True)
        options = {
            "cache_seconds": cache_seconds,
            "folder_limit": folder_limit,
            "inline_bytes": inline_bytes,
            "in_one_step": in_one_step,
            "foreign_events": foreign_events,
            "watches": watches,
            "pending": pending,
            "remote_polls": remote_polls,
            "limits": limits,
        }
        arguments = [str(path), str(place.root), str(state), json.dumps(options)]
        arguments += [f"{name}={folder}" for name, folder in branches.items()]
        with open(log, "wb") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-X", "dev", "-m", "tests.support.vault_process", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                cwd=Path(__file__).parents[2],
            )
        assert process.stdout is not None
        vault = Vault(path, place.root, dict(branches), process.pid, log, state)
        try:
            assert process.stdout.readline() == b"mounted\n", log.read_text()
            yield vault
        finally:
            clean = _end(process, path)
        said = log.read_text(encoding="utf-8", errors="replace")
        assert clean, f"the overlay did not end as told ({process.returncode}):\n{said}"
        assert not (warnings := vault.new_warnings()), f"while ending: {warnings}"


def _end(process: subprocess.Popen[bytes], path: Path) -> bool:
    """Stop the overlay; whether it went by itself, its mount with it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()  # ends every call into the mount, too
        process.wait(_PATIENCE)
    assert process.stdout is not None
    process.stdout.close()
    still_there = str(path) in _mounts_below(str(path.parent))
    if still_there:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=_PATIENCE)
    return process.returncode == 0 and not still_there


# What a call answers, for comparison


def outcome(step: Callable[[], object]) -> object:
    """The result of `step`, or the name of the errno that it failed with."""
    try:
        return step()
    except OSError as failure:
        return errno.errorcode.get(failure.errno or 0, repr(failure))


def as_person(
    step: Callable[[], T], uid: int, gid: int | None = None, groups: tuple[int, ...] = ()
) -> T:
    """The result of `step` in a child that has these rights only; what it raises is raised here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer: Any = RuntimeError("no answer")
        try:
            os.close(reading)
            os.setgroups(groups)
            os.setgid(uid if gid is None else gid)
            os.setuid(uid)
            answer = (step(), None)
        except BaseException as failure:  # noqa: BLE001 - the child must never return into pytest
            answer = (None, failure)
        finally:
            os.write(writing, pickle.dumps(answer))
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    result, raised = pickle.loads(data)  # noqa: S301 - from our own child
    if raised is not None:
        raise raised
    return result  # type: ignore[no-any-return]  # what `step` returned


def drop_caches() -> bool:
    """Make the kernel forget every name it need not remember; False where that is not allowed."""
    try:
        DROP_CACHES.write_text("2", encoding="ascii")
    except OSError:
        return False
    return True
