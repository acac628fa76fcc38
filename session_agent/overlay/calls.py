"""What the overlay asks of a branch: each function a short run of system calls for one operation.

They may run in a thread, so they take descriptors and plain values and answer plain values; they know no
nodes. In a local branch they run inline. Each works on one name in one folder (see fsutil.at).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import ELOOP, ENOENT, ENOTEMPTY, ESTALE

from session_agent.fsutil.at import (
    FOLDER,
    LISTING,
    REFERENCE,
    Opened,
    by_descriptor,
    open_at,
    remove_tree,
    rename_at,
    stat_at,
)
from session_agent.fsutil.credentials import AGENT, acting_as
from session_agent.fsutil.syscalls import set_times
from session_agent.moves.names import RESERVED_PREFIX


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr is to change; None leaves a value as it is. Times are in nanoseconds."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


def opened(fd: int) -> Opened:
    """`fd` with its status; closes it if the status cannot be had."""
    try:
        return Opened(fd, os.fstat(fd))
    except OSError:
        os.close(fd)
        raise


def open_folders(start: int, names: list[bytes]) -> list[Opened]:
    """Open the folders `names` one below the other, from `start` on: O_PATH descriptors.

    Whether they are the folders that were meant is for the caller to compare.
    """
    found: list[Opened] = []
    folder = start
    try:
        for name in names:
            folder = open_at(folder, name, FOLDER)
            found.append(Opened(folder, os.fstat(folder)))
    except OSError:
        for fd, _ in found:
            os.close(fd)
        raise
    return found


def open_file(folder: int, name: bytes, flags: int, mode: int = 0) -> Opened:
    """Open, or with O_CREAT create, the file `name`. ESTALE for a symbolic link, which is new there."""
    try:
        return opened(open_at(folder, name, flags, mode))
    except OSError as failure:
        if failure.errno == ELOOP:  # the kernel is to look the name up anew, and to follow the link
            raise OSError(ESTALE, os.strerror(ESTALE)) from None
        raise


def open_again(fd: int, flags: int) -> Opened:
    """Open the file behind a descriptor, whatever its name is now."""
    return opened(os.open(by_descriptor(fd), flags | os.O_CLOEXEC))


def open_listing(folder: int) -> Opened:
    """Open a folder to read its entries: not by the name ".", which to look up takes another right."""
    return open_again(folder, os.O_RDONLY | os.O_DIRECTORY)


def reference(folder: int, name: bytes) -> Opened:
    """An O_PATH descriptor of whatever is at `name`."""
    return opened(open_at(folder, name, REFERENCE))


def make_folder(folder: int, name: bytes, mode: int) -> os.stat_result:
    """mkdir."""
    os.mkdir(name, mode, dir_fd=folder)
    return _made(folder, name, stat.S_IFDIR)


def make_node(folder: int, name: bytes, mode: int, device: int) -> os.stat_result:
    """mknod."""
    os.mknod(name, mode, device, dir_fd=folder)
    return _made(folder, name, stat.S_IFMT(mode) or stat.S_IFREG)


def make_symlink(folder: int, name: bytes, target: bytes) -> os.stat_result:
    """symlink. The target is kept to the byte."""
    os.symlink(target, name, dir_fd=folder)
    return _made(folder, name, stat.S_IFLNK)


def _made(folder: int, name: bytes, file_format: int) -> os.stat_result:
    status = stat_at(folder, name)
    if stat.S_IFMT(status.st_mode) != file_format:  # replaced already: the kernel would say EIO
        raise OSError(ENOENT, os.strerror(ENOENT))
    return status


def make_link(source: int, source_name: bytes, folder: int, name: bytes) -> os.stat_result:
    """link: a new name for the file `source_name`."""
    os.link(source_name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
    return stat_at(folder, name)


def make_link_again(fd: int, folder: int, name: bytes) -> os.stat_result:
    """link: a new name for the file behind `fd`. ENOENT if it has none left."""
    os.link(by_descriptor(fd), name, dst_dir_fd=folder)
    return stat_at(folder, name)


def remove(folder: int, name: bytes, remover: Callable[..., None]) -> Opened:
    """Remove `name` with os.unlink or os.rmdir; answers what it was, still reachable by its descriptor."""
    held = reference(folder, name)
    try:
        try:
            remover(name, dir_fd=folder)
        except OSError as error:
            if error.errno != ENOTEMPTY or not _swept(folder, name):
                raise
            remover(name, dir_fd=folder)
    except OSError:
        os.close(held.fd)
        raise
    return held


def _swept(folder: int, name: bytes) -> bool:
    """Remove what bears reserved names in a folder that holds nothing else; False if it holds more."""
    below = open_at(folder, name, LISTING)
    try:
        names = [os.fsencode(entry) for entry in os.listdir(below)]
        if not all(entry.startswith(RESERVED_PREFIX) for entry in names):
            return False
        for entry in names:
            remove_tree(below, entry)
    finally:
        os.close(below)
    return True


@dataclass(frozen=True, slots=True)
class Renamed:
    """What a rename within one branch did."""

    moved: os.stat_result  # what lies at the new name now
    replaced: Opened | None  # what lay there before
    exchanged: os.stat_result | None  # what lies at the old name now, after RENAME_EXCHANGE


def rename(
    source_folder: int, source: bytes, target_folder: int, target: bytes, flags: int
) -> Renamed:
    """renameat2 between two folders of one branch. EXDEV where they lie on different mounts all the same."""
    try:
        replaced = reference(target_folder, target)
    except FileNotFoundError:
        replaced = None
    try:
        rename_at(source_folder, source, target_folder, target, flags)
        moved = stat_at(target_folder, target)
        exchanged = stat_at(source_folder, source) if flags & 2 else None
    except OSError:
        if replaced is not None:
            os.close(replaced.fd)
        raise
    return Renamed(moved, replaced, exchanged)


def change(fd: int, size_fd: int, changes: Changes) -> os.stat_result:
    """Apply `changes` to the file behind `fd`, which may be an O_PATH descriptor.

    `size_fd` is a descriptor open for writing to truncate through, or -1. The size comes first, since it
    changes the times; the mode after the owner, since chown clears set-uid bits.
    """
    path = by_descriptor(fd)
    if changes.size is not None:
        if size_fd >= 0:
            os.ftruncate(size_fd, changes.size)
        else:
            os.truncate(path, changes.size)
    if changes.uid is not None or changes.gid is not None:
        os.chown(
            path,
            -1 if changes.uid is None else changes.uid,
            -1 if changes.gid is None else changes.gid,
        )
    if changes.atime_ns is not None or changes.mtime_ns is not None:
        _change_times(path, changes.atime_ns, changes.mtime_ns)
    if changes.mode is not None:
        _change_mode(fd, stat.S_IMODE(changes.mode))
    return os.fstat(fd)


def _change_mode(fd: int, mode: int) -> None:
    try:
        os.chmod(by_descriptor(fd), mode)
    except PermissionError:
        # Before somebody writes who does not own the file, the kernel itself takes the set-uid bits away.
        present = stat.S_IMODE(os.fstat(fd).st_mode)
        if (mode ^ present) & ~(stat.S_ISUID | stat.S_ISGID):
            raise
        with acting_as(AGENT):
            os.chmod(by_descriptor(fd), mode & present)


def _change_times(path: str, atime_ns: int | None, mtime_ns: int | None) -> None:
    try:
        set_times(path, atime_ns, mtime_ns)
    except PermissionError:
        # FUSE replaces "now" by the time of the request. Whoever may write the file but does not own it
        # may set the times to now only, which the kernel has already checked.
        given = atime_ns if mtime_ns is None else mtime_ns
        if given is None or abs(time.time_ns() - given) > 1_000_000_000:
            raise
        set_times(path, atime_ns, mtime_ns, now=True)


def read_link(folder: int, name: bytes) -> bytes:
    """The target of the symbolic link `name`; with the link's own O_PATH descriptor, of the name b""."""
    return os.readlink(name, dir_fd=folder)


def write(fd: int, data: bytes, offset: int, append: bool) -> int:
    """Write all of `data`, at the file's end if `append`; less only if an error came after a part."""
    flags = os.RWF_APPEND if append else 0
    written = os.pwritev(fd, (data,), offset, flags)
    while written < len(data):  # no disk file system does this without an error to follow
        try:
            part = os.pwritev(fd, (memoryview(data)[written:],), offset + written, flags)
        except OSError:
            break
        written += part
    return written


def take(entries: Iterator[os.DirEntry[str]], count: int) -> list[bytes]:
    """The next `count` names of a folder."""
    names = []
    for entry in entries:
        names.append(os.fsencode(entry.name))
        if len(names) == count:
            break
    return names


def everything_in(folder: int) -> dict[bytes, os.stat_result]:
    """The status of each entry that the vault shows, by name."""
    with os.scandir(by_descriptor(folder)) as entries:
        names = [os.fsencode(entry.name) for entry in entries]
    names = [name for name in names if not name.startswith(RESERVED_PREFIX)]
    return {
        name: status
        for name, status in zip(names, stat_all(folder, names), strict=True)
        if status is not None
    }


def stat_all(folder: int, names: list[bytes]) -> list[os.stat_result | None]:
    """The status of each name; None for one that is gone."""
    found: list[os.stat_result | None] = []
    for name in names:
        try:
            found.append(stat_at(folder, name))
        except OSError as error:
            if error.errno != ENOENT:
                raise
            found.append(None)
    return found


def find_below(
    folder: int, wanted: set[tuple[int, int]]
) -> list[list[tuple[bytes, os.stat_result]]]:
    """The way to every name, in the folder and all below it, of the files with these devices and numbers."""
    found: list[list[tuple[bytes, os.stat_result]]] = []
    for name in os.listdir(by_descriptor(folder)):
        step = os.fsencode(name)
        try:
            status = stat_at(folder, step)
            if (status.st_dev, status.st_ino) in wanted:
                found.append([(step, status)])
            elif stat.S_ISDIR(status.st_mode):
                below = open_at(folder, step, FOLDER)
                try:
                    found += [[(step, status), *way] for way in find_below(below, wanted)]
                finally:
                    os.close(below)
        except FileNotFoundError:
            continue  # it has just gone
    return found


def close_twin(fd: int) -> int:
    """Close a duplicate of `fd`: network file systems and rclone report a failed save only at close.

    Answers the size of what was saved.
    """
    os.close(os.dup(fd))
    return os.fstat(fd).st_size


def xattr_path(folder: int, name: bytes) -> bytes:
    """A path to `name` for the xattr calls, which take no folder. Not to be followed at the end."""
    return b"/proc/self/fd/%d/%b" % (folder, name)
