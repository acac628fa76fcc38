"""What a copy gets of its source besides the content."""

from __future__ import annotations

import contextlib
import os
import stat
from errno import ENOENT

from session_agent.fsutil.at import by_descriptor
from session_agent.fsutil.syscalls import set_times

_XFS_ACL = "trusted.SGI_ACL_"  # how xfs shows root its own form of an ACL, a second time


def copy_attributes(losses: set[str], source: int, copy: int, status: os.stat_result) -> None:
    """Owner, mode, extended attributes with the ACLs, times; in the order in which none undoes another.

    Both are descriptors, O_PATH will do; `status` is the source's. What cannot be kept is added to `losses`.
    """
    path = by_descriptor(copy)
    mode = stat.S_IMODE(status.st_mode)
    if not _same_owner(copy, status):
        with contextlib.suppress(OSError):
            os.chown(path, status.st_uid, status.st_gid)
        if not _same_owner(copy, status):  # rclone says it has done it
            losses.add("owner")
            mode &= ~(stat.S_ISUID | stat.S_ISGID)  # not with another owner's rights
    if not stat.S_ISLNK(status.st_mode):
        _drop_inherited_acls(path)
        try:
            os.chmod(path, mode)
        except OSError:
            losses.add("mode")
    _copy_xattrs(losses, by_descriptor(source), path)
    try:
        set_times(path, status.st_atime_ns, status.st_mtime_ns)
    except OSError:
        losses.add("times")
    if not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(os.fstat(copy).st_mode) != mode:
        losses.add("mode")


def _same_owner(fd: int, status: os.stat_result) -> bool:
    now = os.fstat(fd)
    return (now.st_uid, now.st_gid) == (status.st_uid, status.st_gid)


def _drop_inherited_acls(copy: str) -> None:
    """What is made in a folder gets the folder's default ACL; a rename gives nobody new rights."""
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        with contextlib.suppress(OSError):  # none there, which is the rule
            os.removexattr(copy, name)


def _copy_xattrs(losses: set[str], source: str, copy: str) -> None:
    try:
        names = os.listxattr(source)
    except OSError:
        return  # it has none that could be read
    for name in names:
        if name.startswith(_XFS_ACL):
            continue
        try:
            os.setxattr(copy, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno != ENOENT:
                losses.add(f"attribute {os.fsencode(name).decode('utf-8', 'backslashreplace')}")
