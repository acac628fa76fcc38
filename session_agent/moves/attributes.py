"""What a copy gets of its source besides the content."""

from __future__ import annotations

import contextlib
import os
import stat
from errno import ENODATA, ENOENT, ENOTSUP

from session_agent.fsutil.at import by_descriptor
from session_agent.fsutil.syscalls import set_times

_XFS_ACL = "trusted.SGI_ACL_"  # how xfs shows root its own form of an ACL, a second time


def copy_attributes(
    losses: set[str], source: int, copy: int, status: os.stat_result, *, inherited: bool = True
) -> os.stat_result:
    """Owner, mode, extended attributes with the ACLs, times; in the order in which none undoes another.

    Both are descriptors, O_PATH ones only of what is neither file nor folder; `status` is the source's. What
    cannot be kept is added to `losses`. `inherited`: the copy may have got ACLs of its folder's default.
    Answers the copy's status.
    """
    kind = stat.S_IFMT(status.st_mode)
    plain = kind in (stat.S_IFREG, stat.S_IFDIR)  # what can be open: quicker than by a path
    path: int | str = copy if plain else by_descriptor(copy)
    mode = stat.S_IMODE(status.st_mode)
    now = os.fstat(copy)
    if not _same_owner(now, status):
        with contextlib.suppress(OSError):
            os.chown(path, status.st_uid, status.st_gid)
        now = os.fstat(copy)
        if not _same_owner(now, status):  # rclone says it has done it
            losses.add("owner")
            mode &= ~(stat.S_ISUID | stat.S_ISGID)  # not with another owner's rights
    if kind != stat.S_IFLNK:
        if inherited:
            _drop_inherited_acls(path)
        if inherited or stat.S_IMODE(now.st_mode) != mode:
            try:
                os.chmod(path, mode)
            except OSError:
                losses.add("mode")
    _copy_xattrs(losses, source if plain else by_descriptor(source), path)
    try:
        _set_times(path, status)
    except OSError:
        losses.add("times")
    now = os.fstat(copy)
    if kind != stat.S_IFLNK and stat.S_IMODE(now.st_mode) != mode:
        losses.add("mode")
    return now


def inherits_acls(folder: int) -> bool:
    """Whether what is made in the folder gets ACLs from it. True where that cannot be told."""
    try:
        os.getxattr(by_descriptor(folder), "system.posix_acl_default")
    except OSError as error:
        return error.errno not in (ENODATA, ENOTSUP)
    return True


def _set_times(path: int | str, status: os.stat_result) -> None:
    if isinstance(path, int):
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        set_times(path, status.st_atime_ns, status.st_mtime_ns)


def _same_owner(now: os.stat_result, status: os.stat_result) -> bool:
    return (now.st_uid, now.st_gid) == (status.st_uid, status.st_gid)


def _drop_inherited_acls(copy: int | str) -> None:
    """What is made in a folder gets the folder's default ACL; a rename gives nobody new rights."""
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        with contextlib.suppress(OSError):  # none there, which is the rule
            os.removexattr(copy, name)


def _copy_xattrs(losses: set[str], source: int | str, copy: int | str) -> None:
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
