"""Ways to rename between branches that copy nothing: O(1), atomic, keeping inode and hard links.

rename            both ends lie on one mount after all
rename, covered   a third mount shows both folders: the rename goes through that
handle-rename     one file system under two mounts: the target's folder is opened by its file handle as a
                  file of the source's mount, and the rename is one within that mount
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from errno import EXDEV

from session_agent.fsutil.at import FOLDER, open_at, open_listing, rename_at
from session_agent.fsutil.credentials import AGENT, acting_as, assume
from session_agent.fsutil.syscalls import reopen_on
from session_agent.moves.copiers import Copiers
from session_agent.moves.plan import Request, identity

RENAME = "rename"
COVERED = "rename-covered"
HANDLE = "handle-rename"
CLONE = "clone"
COPY = "copy"


@dataclass(frozen=True, slots=True)
class MountPoint:
    """A mount: where it is, and which folder of which file system ("major:minor") it shows."""

    number: int  # mountinfo's mount ID
    path: str
    root: str
    device: str


def _no_mounts() -> Sequence[MountPoint]:
    return ()


def _nobody() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Options:
    """How moves may be done. `mounts` tells the mounts there are now; `copiers` work on large trees.

    While `others_wait`, they leave a processor free.
    """

    handle_rename: bool = True
    mounts: Callable[[], Sequence[MountPoint]] = field(default=_no_mounts)
    copiers: Copiers | None = None
    others_wait: Callable[[], bool] = field(default=_nobody)


def rename(request: Request, options: Options) -> str | None:
    """Rename in one of these ways; answers which, or None where the move has to be a copy.

    OSError as rename(2) gives it.
    """
    try:
        _rename(request, request.source.folder, request.target.folder)
        return RENAME
    except OSError as error:
        if error.errno != EXDEV:
            raise
    if os.fstat(request.source.folder).st_dev != os.fstat(request.target.folder).st_dev:
        return None
    if _by_cover(request, options.mounts()):
        return COVERED
    if options.handle_rename and _by_handle(request):
        return HANDLE
    return None


def _rename(request: Request, source: int, target: int) -> None:
    with acting_as(request.caller):
        rename_at(source, request.source.name, target, request.target.name, request.flags)


def _by_handle(request: Request) -> bool:
    """Whether it was done. Rights on the folders, and the mounts' being writable, were checked before.

    Opening by handle needs CAP_DAC_READ_SEARCH, and goes round the target mount's own read-only flag.
    """
    assume(AGENT)
    try:
        mount = open_listing(request.source.folder)
    except OSError:
        return False
    try:
        target = reopen_on(mount, request.target.folder, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return False
    finally:
        os.close(mount)
    try:
        return _renamed(request, request.source.folder, target)
    finally:
        os.close(target)


def _renamed(request: Request, source: int, target: int) -> bool:
    """Rename between these descriptors of the two folders, if they are those and on one mount."""
    for fd, place in ((source, request.source), (target, request.target)):
        if identity(os.fstat(fd)) != identity(os.fstat(place.folder)):
            return False
    try:
        _rename(request, source, target)
    except OSError as error:
        if error.errno != EXDEV:
            raise
        return False
    return True


def _by_cover(request: Request, mounts: Sequence[MountPoint]) -> bool:
    """Whether it was done through a mount that shows both folders."""
    by_number = {mount.number: mount for mount in mounts}
    ways = [_on_file_system(place.folder, by_number) for place in (request.source, request.target)]
    if None in ways:
        return False
    (device, source), (other_device, target) = ways  # type: ignore[misc]  # None was handled
    if device != other_device:
        return False
    for mount in mounts:
        steps = [_below(path, mount.root) for path in (source, target)]
        if mount.device != device or None in steps:
            continue
        for folders in _opened(request, mount, steps):  # type: ignore[arg-type]  # None was handled
            if _renamed(request, *folders):
                return True
    return False


def _on_file_system(folder: int, mounts: dict[int, MountPoint]) -> tuple[str, str] | None:
    """The device of a folder's file system, and the folder's path on it."""
    with open(f"/proc/self/fdinfo/{folder}", encoding="ascii") as lines:
        number = next((int(line[7:]) for line in lines if line.startswith("mnt_id:")), -1)
    mount = mounts.get(number)
    if mount is None:
        return None
    below = _below(os.readlink(f"/proc/self/fd/{folder}"), mount.path)
    if below is None:
        return None
    return mount.device, os.path.normpath("/".join((mount.root, *below)))


def _below(path: str, top: str) -> list[str] | None:
    """The steps from `top` down to `path`; None if it lies elsewhere."""
    steps, above = ([part for part in one.split("/") if part] for one in (path, top))
    return steps[len(above) :] if steps[: len(above)] == above else None


def _opened(
    request: Request, mount: MountPoint, steps: Sequence[list[str]]
) -> Iterator[tuple[int, int]]:
    """Both folders as that mount shows them, if the caller can reach them there. Nothing is followed."""
    top = [part for part in mount.path.split("/") if part]
    fds: list[int] = []
    try:
        with acting_as(request.caller):
            for below in steps:
                fds.append(os.open("/", FOLDER))
                for name in (*top, *below):
                    step = open_at(fds[-1], os.fsencode(name), FOLDER)
                    os.close(fds[-1])
                    fds[-1] = step
    except OSError:
        for fd in fds:
            os.close(fd)
        return
    try:
        yield fds[0], fds[1]
    finally:
        for fd in fds:
            os.close(fd)
