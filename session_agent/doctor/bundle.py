"""What a bug report needs, as a tar.gz: no secrets in it, read and written with the rights of the user."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import secrets
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import msgspec

import session_agent
from session_agent.doctor.examine import Findings
from session_agent.errors import AgentError, TimeLimitError, UserFileError
from session_agent.fsutil import bounded
from session_agent.lifecycle import state, status
from session_agent.lifecycle.session import Place
from session_agent.model import SessionUser, printable
from session_agent.mounts import mountinfo
from session_agent.mounts.mountinfo import MountEntry
from session_agent.redaction import STRUCK, redacted, redacted_document
from session_agent.rootfile import changeable_by
from session_agent.settings import Loaded

_FOLDER = "/tmp"  # noqa: S108 - the file's name is not to be guessed, and it is made anew
_LOG_TAIL = 256 << 10  # bytes of each log
_LINE = 2000  # characters of a line
_SECONDS = 3.0
_PACKAGES = ("pyfuse3", "trio", "msgspec", "click", "PyYAML", "PyJWT", "cryptography", "psutil")


def write(findings: Findings, loaded: Loaded, file: str) -> str:
    """Write the bundle to `file`, by default a new one in /tmp; its path. UserFileError if it cannot be.

    The file must not exist; it is open to its owner alone (0600). Where others than root could change the
    folder, root writes with the session user's rights.
    """
    date = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"session-agent-{date}-{secrets.token_hex(4)}"
    path = os.path.abspath(file or f"{_FOLDER}/{name}.tar.gz")
    data = _archive(name, dict(_documents(findings, loaded)))
    owner = findings.place.user if findings.place is not None else None
    if os.geteuid() == 0:
        try:
            changeable = changeable_by(os.path.dirname(path))
        except OSError as error:
            raise _refused(path, error.strerror) from None
        if not changeable:
            owner = None
        elif owner is None:
            raise _refused(path, f"others than root can change {changeable}")
    try:
        bounded.run(lambda: _create(path, data), bool, time_limit=_SECONDS, user=owner)
    except OSError as error:
        raise _refused(path, error.strerror) from None
    except TimeLimitError:
        raise _refused(path, "its folder does not answer") from None
    return path


def _refused(path: str, reason: str | None) -> UserFileError:
    return UserFileError(
        f"The bundle {printable(path)} cannot be written: {reason}.",
        "Name a file that does not exist yet, in a folder that you can write: --bundle FILE",
    )


def _create(path: str, data: bytes) -> bool:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        with open(fd, "wb") as opened:
            opened.write(data)
    except OSError:
        os.unlink(path)
        raise
    return True


def _archive(folder: str, documents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in documents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _documents(findings: Findings, loaded: Loaded) -> Iterator[tuple[str, bytes]]:
    yield "doctor.json", _json(findings.as_json())
    yield "versions.json", _json(_versions())
    yield "settings.json", _json(msgspec.to_builtins(loaded.settings))
    yield "mountinfo.txt", _mounts(mountinfo.read())
    if findings.place is not None:
        yield "status.json", _json(_status(findings.place))
        for name, text in _logs(findings.place).items():
            lines = [redacted(line[:_LINE]) for line in text.split("\n")]
            yield name, "\n".join(lines).encode("utf-8", "backslashreplace")


def _json(value: Any) -> bytes:
    return json.dumps(redacted_document(value), indent=2).encode("ascii") + b"\n"


def _status(place: Place) -> dict[str, Any]:
    try:
        return status.document(place).as_json()
    except AgentError as error:
        return {"error": str(error)}


def _versions() -> dict[str, str]:
    found = {
        "session-agent": session_agent.__version__,
        "python": platform.python_version(),
        "kernel": " ".join((os.uname().release, os.uname().version, os.uname().machine)),
        "system": _system(),
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _mounts(entries: list[MountEntry]) -> bytes:
    """As the kernel lists them. Of the file systems' options only the names: their values may be anything."""
    lines = [
        " ".join(
            (
                f"{entry.mount_id} {entry.parent_id} {entry.device}",
                json.dumps(printable(entry.root)),
                json.dumps(printable(entry.path)),
                ",".join(entry.options),
                *entry.optional,
                "-",
                entry.fstype,
                json.dumps(_without_values(printable(entry.source))),
                ",".join(_without_values(printable(option)) for option in entry.super_options),
            )
        )
        for entry in entries
    ]
    return redacted("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def _without_values(text: str) -> str:
    """`name=value` without the value; so the options in an rclone connection string, too."""
    return ",".join(
        f"{part.partition('=')[0]}={STRUCK}" if "=" in part else part for part in text.split(",")
    )


def _logs(place: Place) -> dict[str, str]:
    """The ends of the logs, read with the user's rights and without following a link."""

    def read() -> dict[str, str]:
        folder = state.find(place.state_dir)
        if folder is None:
            return {}
        found = {}
        for name in (state.LOG, state.OLD_LOG):
            tail = state.tail(folder, name, _LOG_TAIL)
            if tail is not None:
                found[name] = tail.decode("utf-8", "backslashreplace")
        return found

    user: SessionUser = place.user
    try:
        return bounded.run(read, dict[str, str], time_limit=_SECONDS, user=user)
    except (OSError, AgentError) as error:
        return {"logs-not-read.txt": f"{error}\n"}
