"""The last step of a move: remove the source, but only what is still as it was copied.

Whatever has changed since, or has come, is kept where it is: both versions then exist, and the outcome of
the move says so.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from errno import EEXIST, EINVAL
from typing import TYPE_CHECKING

from session_agent.fsutil.at import (
    LISTING,
    fsync_folder,
    open_at,
    remove_tree,
    rename_at,
    stat_at,
)
from session_agent.fsutil.syscalls import RENAME_NOREPLACE
from session_agent.model import printable
from session_agent.moves.data import SourceChangedError
from session_agent.moves.names import RESERVED_PREFIX
from session_agent.moves.plan import Place
from session_agent.moves.snapshot import Copied
from session_agent.moves.verify import verify

if TYPE_CHECKING:
    from session_agent.moves.workers import Workers

log = logging.getLogger(__name__)


def retire(
    source: Place, copied: Copied, grave: bytes, workers: Workers | None, renamed: bool = False
) -> bool:
    """Remove the source durably; False if it, or something in it, had to be kept.

    `renamed`: it has been given the name that `source` says since it was copied.

    A folder is renamed to the reserved name `grave` first, so that it is gone at once. What has to be kept
    of it comes back under the old name, or beside it if that is taken by now.
    """
    try:
        verify(source.folder, source.name, copied, workers, renamed)
    except SourceChangedError:
        return False
    if copied.source.format == stat.S_IFDIR:
        os.rename(source.name, grave, src_dir_fd=source.folder, dst_dir_fd=source.folder)
        if not remove_unchanged(source.folder, grave, copied, workers):
            bring_back(source, grave)
            return False
    else:
        os.unlink(source.name, dir_fd=source.folder)
    fsync_folder(source.folder)
    return True


def remove_unchanged(
    folder: int, name: bytes, copied: Copied, workers: Workers | None = None
) -> bool:
    """Remove `name` as far as it is what was copied; whether it is gone.

    Whatever stands in the way is a reason to keep it, and never to leave it under a reserved name: a file
    that may not be removed, one that has taken a folder's place, one that came at the last moment.
    """
    try:
        if copied.source.format == stat.S_IFDIR:
            return _remove_folder(folder, name, copied, workers)
        if not copied.source.still_holds(stat_at(folder, name), below_renamed=True):
            return False
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True  # somebody else removed it
    except OSError as error:
        log.info("%s: cannot be removed: %s", printable(os.fsdecode(name)), error)
        return False
    return True


def remove_all_unchanged(folder: int, entries: Iterable[tuple[bytes, Copied]]) -> bool:
    """Remove these entries of a folder as far as they are what was copied; whether all are gone."""
    gone = [remove_unchanged(folder, name, copied) for name, copied in entries]
    return all(gone)


def _remove_folder(folder: int, name: bytes, copied: Copied, workers: Workers | None) -> bool:
    below = open_at(folder, name, LISTING)
    try:
        mode = stat.S_IMODE(os.fstat(below).st_mode)
        if (
            mode & 0o700 != 0o700
        ):  # a rename does not need to write into it, so this must not either
            os.fchmod(below, mode | 0o700)
        empty = _remove_entries(below, copied, workers)
        if not empty and mode & 0o700 != 0o700:
            os.fchmod(below, mode)
    finally:
        os.close(below)
    if empty:
        os.rmdir(name, dir_fd=folder)
    return empty


def _remove_entries(below: int, copied: Copied, workers: Workers | None) -> bool:
    with os.scandir(below) as listing:
        names = [os.fsencode(entry.name) for entry in listing]
    known = []
    empty = True
    for name in names:
        entry = copied.entries.get(name)
        if name.startswith(RESERVED_PREFIX):  # left by a move that was killed
            remove_tree(below, name)
        elif entry is None:
            empty = False
        else:
            known.append((name, entry))
    remove = remove_all_unchanged if workers is None else workers.remove
    return remove(below, known) and empty


def bring_back(source: Place, grave: bytes) -> None:
    """Give what is left of a tree its old name again, or one beside it if that is taken by now."""
    for number in range(1000):
        # The name's end gives way where there is no room for more.
        name = source.name[:240] + b" (kept %d)" % number if number else source.name
        try:
            rename_new(source.folder, grave, name)
        except FileExistsError:
            continue
        fsync_folder(source.folder)
        return
    raise OSError(EEXIST, os.strerror(EEXIST), source.label)


def rename_new(folder: int, name: bytes, new_name: bytes) -> None:
    """Rename within a folder to a name that must not exist. FileExistsError if it does."""
    try:
        rename_at(folder, name, folder, new_name, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        # The file system does not know the flag. Looking first leaves a moment for another to come.
        try:
            stat_at(folder, new_name)
        except FileNotFoundError:
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            raise FileExistsError(EEXIST, os.strerror(EEXIST)) from None
