"""The last step of a move: remove the source, but only what is still as it was copied.

Whatever has changed since, or has come, is kept where it is: both versions then exist, and the outcome of
the move says so.
"""

from __future__ import annotations

import os
import stat
from errno import EEXIST, EINVAL

from session_agent.fsutil.at import LISTING, fsync_folder, open_at, rename_at, stat_at
from session_agent.fsutil.syscalls import RENAME_NOREPLACE
from session_agent.moves.copy import Copied, SourceChangedError, verify
from session_agent.moves.plan import Place


def retire(source: Place, copied: Copied, grave: bytes, renamed: bool = False) -> bool:
    """Remove the source durably; False if it, or something in it, had to be kept.

    `renamed`: it has been given the name that `source` says since it was copied.

    A folder is renamed to the reserved name `grave` first, so that it is gone at once. What has to be kept
    of it comes back under the old name, or beside it if that is taken by now.
    """
    try:
        verify(source.folder, source.name, copied, renamed)
    except SourceChangedError:
        return False
    if copied.source.format == stat.S_IFDIR:
        os.rename(source.name, grave, src_dir_fd=source.folder, dst_dir_fd=source.folder)
        if not _remove_unchanged(source.folder, grave, copied):
            _bring_back(source, grave)
            return False
    else:
        os.unlink(source.name, dir_fd=source.folder)
    fsync_folder(source.folder)
    return True


def _remove_unchanged(folder: int, name: bytes, copied: Copied) -> bool:
    """Remove `name` as far as it is what was copied; whether nothing is left."""
    below = open_at(folder, name, LISTING)
    try:
        with os.scandir(below) as listing:
            names = [os.fsencode(entry.name) for entry in listing]
        empty = True
        for entry_name in names:
            entry = copied.entries.get(entry_name)
            try:
                if entry is None:
                    empty = False
                elif entry.source.format == stat.S_IFDIR:
                    empty = _remove_unchanged(below, entry_name, entry) and empty
                elif entry.source.still_holds(stat_at(below, entry_name)):
                    os.unlink(entry_name, dir_fd=below)
                else:
                    empty = False
            except FileNotFoundError:
                continue  # somebody else removed it
    finally:
        os.close(below)
    if empty:
        os.rmdir(name, dir_fd=folder)
    return empty


def _bring_back(source: Place, grave: bytes) -> None:
    for number in range(1, 1000):
        name = source.name if number == 1 else source.name + b" (kept %d)" % (number - 1)
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
