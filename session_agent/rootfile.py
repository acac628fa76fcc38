"""Files that decide what is allowed: nobody but root may be able to change them."""

from __future__ import annotations

import os
import stat

from session_agent.model import printable

_LINK_LIMIT = 40  # what the kernel allows, path_resolution(7)


def changeable_by(path: str) -> str:
    """Walk to `path`, through links; the step that others than root can change, "" if there is none.

    OSError where a step cannot be looked at, ELOOP for a loop of links.
    """
    here = "/"
    pending = [part for part in path.split("/") if part][::-1]
    links = 0
    if _changeable(os.lstat(here)):
        return here
    while pending:
        part = pending.pop()
        if part in (".", ".."):
            here = os.path.dirname(here) if part == ".." else here
            continue
        step = os.path.join(here, part)
        status = os.lstat(step)
        if _changeable(status):
            return printable(step)
        if not stat.S_ISLNK(status.st_mode):
            here = step
            continue
        links += 1
        if links > _LINK_LIMIT:
            raise OSError(40, "it is a loop of symbolic links", path)
        target = os.readlink(step)
        here = "/" if target.startswith("/") else here
        pending.extend([part for part in target.split("/") if part][::-1])
    return ""


def _changeable(status: os.stat_result) -> bool:
    mode = status.st_mode
    # A link has no permissions of its own; in a sticky folder nobody can replace root's entry.
    open_to_others = mode & 0o022 and not stat.S_ISLNK(mode)
    sticky_folder = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
    return status.st_uid != 0 or bool(open_to_others and not sticky_folder)
