r"""/proc/self/mountinfo: a pure parser. Format: proc_pid_mountinfo(5), fs/proc_namespace.c.

    98 78 254:0 /srv/my\040drive /vault/wiki ro,relatime master:2 - ext4 /dev/vda rw,discard
    id parent device root path options optional… - fstype source superblock-options

Fields are separated by one space each and may be empty (a mount made with an empty source).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_SEPARATOR = b"-"
_FIXED_FIELDS = 6  # before the optional ones


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line. Text is decoded as file names are (`os.fsdecode`), escapes are undone."""

    mount_id: int
    parent_id: int
    device: str  # "major:minor"
    root: str  # the folder of the file system that is mounted
    path: str  # where
    options: tuple[str, ...]  # of this mount
    optional: tuple[str, ...]  # "shared:1", "master:2", …
    fstype: str
    source: str
    super_options: tuple[str, ...]  # of the file system

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written here: the mount or its file system is read-only.

        The kernel puts "ro" or "rw" first. Further on, "ro" can be a file system's own option.
        """
        return "ro" in (*self.options[:1], *self.super_options[:1])


def read() -> list[MountEntry]:
    """The mounts of this process's namespace. Raises OSError where there is no /proc."""
    return parse(Path("/proc/self/mountinfo").read_bytes())


def parse(text: bytes | Iterable[bytes]) -> list[MountEntry]:
    """Every line that is understood, in order. Others are left out, for none can be acted on."""
    lines = text.split(b"\n") if isinstance(text, bytes) else text
    return [entry for line in lines if (entry := _parse_line(line.rstrip(b"\n"))) is not None]


def _parse_line(line: bytes) -> MountEntry | None:
    fields = line.split(b" ")
    try:
        end = fields.index(_SEPARATOR, _FIXED_FIELDS)
        mount_id, parent_id = int(fields[0]), int(fields[1])
        fstype, source = fields[end + 1 : end + 3]
    except ValueError:
        return None
    device, root, path, options = fields[2:_FIXED_FIELDS]
    if not path.startswith(b"/") or not fstype:
        return None
    super_options = fields[end + 3] if len(fields) > end + 3 else b""
    return MountEntry(
        mount_id=mount_id,
        parent_id=parent_id,
        device=_text(device),
        root=_text(root),
        path=_text(path),
        options=_list(options),
        optional=tuple(_text(field) for field in fields[_FIXED_FIELDS:end]),
        fstype=_text(fstype),
        source=_text(source),
        super_options=_list(super_options),
    )


def _list(options: bytes) -> tuple[str, ...]:
    return tuple(_text(option) for option in options.split(b",") if option)


def _text(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
