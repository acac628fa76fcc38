"""What the system allows: watches, open files, room, and its clock."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import session_agent
from session_agent.doctor.checks import Check, Context, State, fail, ok, warn
from session_agent.lifecycle import state
from session_agent.model import printable
from session_agent.mounts import mountinfo
from session_agent.mounts.kinds import kind_of

_INOTIFY = "/proc/sys/fs/inotify"
_COUNT_SECONDS = 2.0  # for counting folders; what is not counted by then is not counted
_COUNT_LIMIT = 1_000_000
_WATCHES = 65_536  # that a desktop should have room for, whatever the vault holds
_INSTANCES = 128
_FILES = 4096  # open files that a vault in use may need
_ROOM = 100 << 20  # bytes below which there is a warning
_NO_ROOM = 4 << 20  # bytes below which not even journals can be counted on
_FEW_NAMES = 1000  # inodes
_DAY = 86400.0


def inotify(context: Context) -> list[Check]:
    """Whether Obsidian, which watches each folder, can watch this vault."""
    name = "inotify"
    watches, instances = _number("max_user_watches"), _number("max_user_instances")
    if watches is None or instances is None:
        return ok(name, "the kernel tells no limits")
    remote = {entry.path for entry in mountinfo.read() if kind_of(entry).remote}
    folders, all_of_them = _count_folders(context.place.vault, remote - {context.place.vault})
    shown = f"{watches} watches, {instances} instances; the vault has {'' if all_of_them else 'at least '}"
    shown += "1 folder" if folders == 1 else f"{folders} folders"
    why = "Obsidian and Thunar watch folders; past the limit they do not see what others change there."
    wanted = max(_WATCHES, 1 << (2 * folders).bit_length())
    if 1.2 * folders > watches or watches < _WATCHES // 8:
        fix = f"On the host, as root: sysctl -w fs.inotify.max_user_watches={wanted}"
        return warn(name, shown, why, fix)
    if instances < _INSTANCES:
        fix = f"On the host, as root: sysctl -w fs.inotify.max_user_instances={4 * _INSTANCES}"
        return warn(name, shown, why, fix)
    return ok(name, shown)


def open_files(_: Context) -> list[Check]:
    """The agent takes the hard limit for itself."""
    name = "open-files"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= _FILES:
        shown = "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"
        return ok(name, shown)
    return warn(
        name,
        f"a process may have {hard} files open",
        "Each file that is open in the vault is one of the agent's too; past the limit opening fails.",
        'In the run config: {"ulimits":[{"Name":"nofile","Soft":65536,"Hard":65536}]}'
        " (docker: --ulimit nofile=65536)",
    )


def space(context: Context) -> list[Check]:
    """Room where the agent and the vault's top level keep their files. With the user's rights."""
    found: list[Check] = []
    seen = set()
    settings = context.loaded.settings
    root = settings.root_branch or f"{context.place.user.home}/.local/share/session-agent/root"
    for path in (context.place.state_dir, root, "/tmp"):  # noqa: S108 - looked at, not used
        place = _existing(path)
        device = os.stat(place).st_dev
        if device in seen:
            continue
        seen.add(device)
        room = os.statvfs(place)
        free, names = room.f_bavail * room.f_frsize, room.f_favail
        shown = f"{printable(place)}: {free // (1 << 20)} MiB free"
        why = "The journal of moves and the agent's memory are written there, and notes at the vault's top."
        fix = "Free some room there, or set `state_dir` and `root_branch` to a larger file system."
        if room.f_blocks and free < _NO_ROOM:
            found.append(Check("space", State.FAIL, shown, why, fix))
        elif room.f_blocks and free < _ROOM:
            found.append(Check("space", State.WARN, shown, why, fix))
        elif room.f_files and names < _FEW_NAMES:
            shown += f", {names} more files possible"
            found.append(Check("space", State.WARN, shown, why, fix))
        else:
            found.append(Check("space", State.OK, shown))
    return found


def clock(context: Context) -> list[Check]:
    """Whether the time can be right: no earlier than the program's files, nor than those it has written."""
    name = "clock"
    now = time.time()
    newest = 0.0
    written = (os.path.join(context.place.state_dir, name) for name in (state.LOG, state.LOCK))
    for path in (session_agent.__file__, *written):
        try:
            newest = max(newest, os.stat(path, follow_symlinks=False).st_mtime)
        except OSError:
            continue
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if newest > now + _DAY:
        later = time.strftime("%Y-%m-%d", time.gmtime(newest))
        return fail(
            name,
            f"it is {shown}, but there are files of {later}",
            "Tokens, times in the permission policy, and which note is newer depend on the clock.",
            "Set the host's clock: timedatectl set-ntp true; or touch the files if they are wrong.",
        )
    return ok(name, shown)


def _number(name: str) -> int | None:
    try:
        return int(Path(_INOTIFY, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _count_folders(top: str, left_out: set[str]) -> tuple[int, bool]:
    """How many folders there are, and whether all were counted. Links are not followed.

    `left_out` are those that may hang.
    """
    deadline = time.monotonic() + _COUNT_SECONDS
    count, pending = 0, [top]
    while pending:
        if time.monotonic() > deadline or count >= _COUNT_LIMIT:
            return count, False
        try:
            with os.scandir(pending.pop()) as entries:
                count += 1
                pending += [
                    entry.path
                    for entry in entries
                    if entry.path not in left_out and entry.is_dir(follow_symlinks=False)
                ]
        except OSError:
            continue
    return count, True


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
