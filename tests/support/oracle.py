"""The two trees of the property test: the operations on them, and what may differ between them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.cases import rename
from tests.support.remove import remove_tree
from tests.support.vault import outcome

BRANCHES = ("alpha", "beta", "gamma")

Operation = tuple[object, ...]


class Side:
    """The operations on one of the two trees. Each method answers what is to agree."""

    def __init__(self, base: Path) -> None:
        self.base = str(base)
        self.slots: dict[int, int] = {}

    def path(self, path: str) -> str:
        return f"{self.base}/{path}"

    def prepare(self) -> None:
        """Something of every kind, so that no sequence has to begin by making it."""
        for branch in BRANCHES:
            Path(self.path(branch)).mkdir(exist_ok=True)
        for folder in ("alpha/", "gamma/"):
            os.makedirs(self.path(folder + "d/e"))
            for name in ("x", "d/x", "d/e/x"):
                self.create(folder + name, (folder + name).encode(), 0, 0o644)
        os.link(self.path("alpha/d/x"), self.path("alpha/y"))

    def clear(self) -> None:
        for fd in self.slots.values():
            os.close(fd)
        self.slots.clear()
        for folder in ("", *BRANCHES):
            with os.scandir(self.path(folder)) as entries:
                listed = list(entries)
            for entry in listed:
                if not folder and entry.name in BRANCHES:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    os.unlink(entry.path)

    # Names

    def rename(self, source: str, target: str, flags: int) -> None:
        rename(self.path(source), self.path(target), flags)

    def link(self, source: str, target: str) -> None:
        os.link(self.path(source), self.path(target), follow_symlinks=False)

    def symlink(self, text: str, path: str) -> None:
        os.symlink(text, self.path(path))

    def readlink(self, path: str) -> object:
        return os.readlink(self.path(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.path(path))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.path(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.path(path))

    def list(self, path: str) -> object:
        return sorted(os.listdir(self.path(path)))

    # Content

    def _through(
        self, path: str, flags: int, step: Callable[[int], object], mode: int = 0
    ) -> object:
        fd = os.open(self.path(path), flags, mode)
        try:
            return step(fd)
        finally:
            os.close(fd)

    def create(self, path: str, data: bytes, flags: int, mode: int) -> object:
        flags |= os.O_WRONLY | os.O_CREAT
        return self._through(path, flags, lambda fd: os.write(fd, data), mode)

    def append(self, path: str, data: bytes) -> object:
        return self._through(path, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, data))

    def overwrite(self, path: str, offset: int, data: bytes) -> object:
        return self._through(path, os.O_RDWR, lambda fd: os.pwrite(fd, data, offset))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.path(path), size)

    def read(self, path: str) -> object:
        return self._through(path, os.O_RDONLY, lambda fd: os.read(fd, 1 << 20))

    # Attributes

    def status(self, path: str, follow: bool) -> object:
        return shown(os.stat(self.path(path), follow_symlinks=follow))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.path(path), mode)

    def utime(self, path: str, accessed: int, modified: int, follow: bool) -> None:
        os.utime(self.path(path), ns=(accessed, modified), follow_symlinks=follow)

    def set_attribute(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.path(path), name, value, flags)

    def get_attribute(self, path: str, name: str) -> object:
        return os.getxattr(self.path(path), name)

    def remove_attribute(self, path: str, name: str) -> None:
        os.removexattr(self.path(path), name)

    def list_attributes(self, path: str) -> object:
        return sorted(os.listxattr(self.path(path), follow_symlinks=False))

    # Open handles

    def open(self, slot: int, path: str, flags: int) -> object:
        fd = os.open(self.path(path), flags, 0o640)
        self.close(slot)
        self.slots[slot] = fd
        return "opened"

    def close(self, slot: int) -> object:
        if slot in self.slots:
            os.close(self.slots.pop(slot))
        return None

    def handle_read(self, slot: int, offset: int) -> object:
        return os.pread(self.slots[slot], 300_000, offset)

    def handle_write(self, slot: int, offset: int, data: bytes) -> object:
        # At the end, if the handle is an appending one.
        return os.pwrite(self.slots[slot], data, offset)

    def handle_status(self, slot: int) -> object:
        return shown(os.fstat(self.slots[slot]))

    def handle_truncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.slots[slot], size)

    def handle_chmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.slots[slot], mode)

    def handle_utime(self, slot: int, modified: int) -> None:
        os.utime(self.slots[slot], ns=(modified, modified))

    def handle_attribute(self, slot: int, name: str, value: bytes) -> object:
        os.setxattr(self.slots[slot], name, value)
        return sorted(os.listxattr(self.slots[slot])), os.getxattr(self.slots[slot], name)

    def handle_list(self, slot: int) -> object:
        return sorted(os.listdir(self.slots[slot]))

    def handle_sync(self, slot: int) -> None:
        os.fsync(self.slots[slot])


class Oracle(Side):
    """The plain folder, with what a vault of several file systems does otherwise."""

    def __init__(self, base: Path, cached: bool) -> None:
        super().__init__(base)
        self.cached = cached

    def branch(self, path: str) -> str:
        """The branch that the entry `path` lies in, symbolic links on the way to it followed."""
        folder = os.path.realpath(os.path.dirname(self.path(path)))
        first = os.path.relpath(folder, self.base).split("/")[0]
        return first if first in BRANCHES else ""

    def link(self, source: str, target: str) -> None:
        folder = os.path.dirname(self.path(target))
        before = outcome(lambda: os.stat(folder))
        super().link(source, target)
        if self.branch(source) == self.branch(target):
            return
        # The kernel refuses for every other reason before the overlay is asked: the plain folder has
        # just done so too. What it has done instead is undone.
        os.unlink(self.path(target))
        assert isinstance(before, os.stat_result)
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
        raise OSError(18, "EXDEV")

    def rename(self, source: str, target: str, flags: int) -> None:
        across = self.branch(source) != self.branch(target)
        super().rename(source, target, flags)
        if across:
            self._split_links()

    def _split_links(self) -> None:
        """Where one file has names in two branches, those that stayed behind become a file of their own.

        The moved ones keep the inode, since open handles go with them. `note_homes` knows the others.
        """
        for names in self._linked():
            by_branch = defaultdict(list)
            for name in names:
                by_branch[self.branch(name)].append(name)
            if len(by_branch) > 1:
                stayed = self._home[os.lstat(self.path(names[0])).st_ino]
                self._separate(by_branch[stayed])

    def _linked(self) -> Iterator[list[str]]:
        """The names of every file that has several."""
        found = defaultdict(list)
        for folder, folders, files in os.walk(self.base):
            for name in (*files, *folders):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                    found[status.st_ino].append(os.path.relpath(path, self.base))
        yield from found.values()

    def note_homes(self) -> None:
        """Remember which branch each file with several links is in, before a rename."""
        self._home = {
            os.lstat(self.path(names[0])).st_ino: self.branch(names[0]) for names in self._linked()
        }

    def _separate(self, names: list[str]) -> None:
        """Make these names links of a copy."""
        first = self.path(names[0])
        new = self.base + "-copy"
        shutil.copy2(first, new, follow_symlinks=False)
        for name in names:
            folder = os.path.dirname(self.path(name))
            times = os.stat(folder)
            os.unlink(self.path(name))
            os.link(new, self.path(name), follow_symlinks=False)
            os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
        os.unlink(new)

    def undefined(self, operation: Operation) -> bool:
        """Whether the vault may do either of two things.

        A folder moves to another branch, a file below it has another link outside, and is open: the
        handle goes with the folder or stays with the other link, whichever name the overlay met last.

        An open file moves and a link of it stays, made in the second in which the kernel may answer from
        what it was told: until then the name that stays may lead to the moved file.

        truncate(2) to the size that the file has counts as a modification on ext4, and not on xfs.
        """
        if operation[0] == "truncate":
            _, path, size = operation
            with contextlib.suppress(OSError):
                return os.stat(self.path(str(path))).st_size == size
        if operation[0] != "rename":
            return False
        self.note_homes()
        _, *ends, _ = operation
        if len({self.branch(str(end)) for end in ends}) == 1:
            return False
        tops = [self._real(str(end)) for end in ends if os.path.isdir(self.path(str(end)))]
        opened = {os.fstat(fd).st_ino for fd in self.slots.values()}
        for names in self._linked():
            if os.lstat(self.path(names[0])).st_ino in opened:
                below = {
                    any(f"{self.base}/{name}".startswith(top + "/") for top in tops)
                    for name in names
                }
                moves = any(
                    f"{self.base}/{name}" in map(self._real, map(str, ends)) for name in names
                )
                if len(below) == 2 or (moves and self.cached):
                    return True
        return False

    def _real(self, path: str) -> str:
        folder, name = os.path.split(self.path(path))
        return os.path.join(os.path.realpath(folder), name)


def shown(status: os.stat_result) -> dict[str, object]:
    """What two file systems agree on. The number of links and size of a folder is each one's affair."""
    told: dict[str, object] = {
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "modified": status.st_mtime_ns if status.st_mtime_ns <= 10**18 + 3 else "lately",
    }
    if not stat.S_ISDIR(status.st_mode):
        told |= {"size": status.st_size, "links": status.st_nlink}
    return told


def answer(side: Side, operation: Operation) -> object:
    name, *arguments = operation
    if str(name).startswith("handle_") and arguments[0] not in side.slots:
        return "nothing open"
    result = outcome(lambda: getattr(side, str(name))(*arguments))
    # POSIX allows both for a folder that is not empty, and xfs gives the other one for rename.
    return "ENOTEMPTY" if name == "rename" and result == "EEXIST" and not arguments[2] else result


def tree(base: str, folders: dict[str, str]) -> dict[str, object]:
    """All that is below `base`, where the entries `folders` are to be found elsewhere."""
    found: dict[str, object] = {}
    pending = [("", base)]
    while pending:
        shown_as, folder = pending.pop()
        for name in sorted(os.listdir(folder)):
            path = folders.get(shown_as + name, f"{folder}/{name}")
            status = os.lstat(path)
            entry = shown(status)
            if stat.S_ISDIR(status.st_mode):
                pending.append((f"{shown_as}{name}/", path))
            elif stat.S_ISLNK(status.st_mode):
                entry["target"] = os.readlink(path)
            else:
                entry["content"] = Path(path).read_bytes()
            entry["attributes"] = {
                attribute: os.getxattr(path, attribute, follow_symlinks=False)
                for attribute in os.listxattr(path, follow_symlinks=False)
            }
            if shown_as + name in BRANCHES:
                entry = {}  # it is there from the start; its own attributes are the mount's
            found[shown_as + name] = entry
    return found
