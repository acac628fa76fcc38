"""Copies of what is neither a folder nor a regular file, and of a file's further links."""

from __future__ import annotations

import os
import stat
from errno import EIO, ENOSYS, ENOTSUP, EPERM
from typing import TYPE_CHECKING

from session_agent.fsutil.at import FOLDER, open_at
from session_agent.moves.attributes import copy_attributes
from session_agent.moves.plan import failed, identity
from session_agent.moves.snapshot import Copied, Snapshot

if TYPE_CHECKING:
    from session_agent.moves.copy import Staging


def copy_special(
    staging: Staging,
    folder: int,
    name: bytes,
    to_folder: int,
    to_name: bytes,
    status: os.stat_result,
) -> Copied:
    """A symbolic link, FIFO, socket or device. ENOTSUP where the target cannot hold it."""
    leads_to = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(status.st_mode) else b""
    try:
        if stat.S_ISLNK(status.st_mode):
            os.symlink(leads_to, to_name, dir_fd=to_folder)
        else:
            os.mknod(to_name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=to_folder)
    except OSError as error:
        if error.errno in (EIO, ENOSYS, EPERM):  # what rclone and others say for "not here"
            raise failed(ENOTSUP, os.fsdecode(name)) from error
        raise
    source_fd = open_at(folder, name, os.O_PATH)
    try:
        copy_fd = open_at(to_folder, to_name, os.O_PATH)
        try:
            if stat.S_IFMT(os.fstat(copy_fd).st_mode) != stat.S_IFMT(status.st_mode):
                raise failed(ENOTSUP, os.fsdecode(name))  # rclone makes an empty file of a FIFO
            made = copy_attributes(staging.losses, source_fd, copy_fd, status)
            copy = identity(made)
        finally:
            os.close(copy_fd)
    finally:
        os.close(source_fd)
    staging.progress.add(files=1)
    return Copied(Snapshot.of(status), copy)


def link(staging: Staging, known: tuple[bytes, ...], to_folder: int, to_name: bytes) -> bool:
    """Link `to_name` to the copy made before; False where the target knows no links."""
    folder = open_at(staging.target.folder, staging.stage, FOLDER)
    try:
        for step in known[:-1]:
            below = open_at(folder, step, FOLDER)
            os.close(folder)
            folder = below
        os.link(known[-1], to_name, src_dir_fd=folder, dst_dir_fd=to_folder, follow_symlinks=False)
    except OSError:
        staging.losses.add("hard link")
        return False
    finally:
        os.close(folder)
    return True
