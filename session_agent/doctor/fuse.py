"""What FUSE needs of the container."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from session_agent.doctor.checks import Check, Context, State, fail, ok, warn
from session_agent.fsutil import syscalls
from session_agent.lifecycle.privileges import RUN_CONFIG

_DEVICE = "/dev/fuse"
_NUMBER = (10, 229)  # Documentation/admin-guide/devices.txt
_NO_VAULT = "Without it no vault can be mounted: the mounts stay apart, and no rename crosses them."
_IN_RUN_CONFIG = f"In the workspace's run config: {RUN_CONFIG}"
_WITH_DOCKER = (
    "docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined"
)
_FIX = f"{_IN_RUN_CONFIG} (docker: {_WITH_DOCKER})"
_FUSE_CONF = "/etc/fuse.conf"
_TIMEOUTS = "/proc/sys/fs/fuse"
# capabilities(7): number, name, what it is for
_NEEDED = (
    (21, "SYS_ADMIN", "mount the vault"),
    (6, "SETGID", "act as the session user"),
    (7, "SETUID", "act as the session user"),
)
_READ_SEARCH = 2
_ALWAYS_ALLOWED = 60  # seconds; a shorter limit of the kernel's ends the vault when a drive is slow


def examine(context: Context) -> list[Check]:
    """All of them. Where the vault is mounted, what this caller may not do is no failure."""
    if not context.loaded.settings.overlay.enabled:
        return ok("fuse", "not needed: overlay.enabled is false")
    found = [
        *device(context),
        *capabilities(context),
        *fusermount(context),
        *allow_other(context),
        *confinement(context),
        *timeouts(context),
    ]
    if not context.served:
        return found
    return [
        Check(one.name, State.OK, f"{one.detail}; the vault is mounted all the same")
        if one.state is State.FAIL
        else one
        for one in found
    ]


def device(_: Context) -> list[Check]:
    """/dev/fuse is there, is the right device, and opens."""
    name = "fuse-device"
    try:
        found = os.stat(_DEVICE)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(*_NUMBER):
            return fail(name, f"{_DEVICE} is not the FUSE device", _NO_VAULT, _FIX)
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return fail(name, f"there is no {_DEVICE}", _NO_VAULT, _FIX)
    except PermissionError as error:
        # EACCES: the node's mode. EPERM: the container's device rules, whatever the mode.
        mode = stat.S_IMODE(os.stat(_DEVICE).st_mode)
        if error.errno == 13:
            detail = f"{_DEVICE} (mode {mode:o}) is not open to this user"
            return fail(
                name, detail, _NO_VAULT, f"As root: chmod 666 {_DEVICE}; or run the agent as root."
            )
        return fail(name, f"the container may not use {_DEVICE}", _NO_VAULT, _FIX)
    except OSError as error:
        fix = "On the host, as root: modprobe fuse"
        return fail(name, f"{_DEVICE} cannot be opened: {error.strerror}", _NO_VAULT, fix)
    return ok(name, f"{_DEVICE} opens")


def capabilities(context: Context) -> list[Check]:
    """As root: what the agent needs of root's power."""
    name = "capabilities"
    if not context.root:
        return ok(name, "none are needed: the agent runs as the user, through fusermount3")
    effective = _status("CapEff", 16)
    missing = [one for one in _NEEDED if not effective >> one[0] & 1]
    if missing:
        detail = "; ".join(f"CAP_{word} is missing, to {purpose}" for _, word, purpose in missing)
        words = ", ".join(f'"{word}"' for _, word, _ in missing)
        return fail(name, detail, _NO_VAULT, f'In the run config: {{"cap_add":[{words}]}}')
    if not effective >> _READ_SEARCH & 1 and context.loaded.settings.moves.handle_rename:
        return warn(
            name,
            "CAP_DAC_READ_SEARCH is missing",
            "Moves between two mounts of one file system copy the files, instead of taking no time.",
            'In the run config: {"cap_add":["SYS_ADMIN","DAC_READ_SEARCH"]};'
            " or set moves.handle_rename to false.",
        )
    return ok(name, "root has those that the agent needs")


def fusermount(context: Context) -> list[Check]:
    """As the user: the set-uid helper, and that set-uid means anything here."""
    name = "fusermount3"
    if context.root:
        return ok(name, "not needed: root mounts by itself")
    program = shutil.which("fusermount3")
    fix = "In the image: apt-get install fuse3; or run the agent as root."
    if program is None:
        return fail(name, "fusermount3 is not installed", _NO_VAULT, fix)
    found = os.stat(program)
    if not found.st_mode & stat.S_ISUID or found.st_uid != 0:
        fix = f"As root: chown root {program} && chmod u+s {program}; or run the agent as root."
        return fail(name, f"{program} is not set-uid root", _NO_VAULT, fix)
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        fix = "Let the image's file system be mounted without nosuid, or run the agent as root."
        return fail(name, f"{program} lies on a mount with nosuid", _NO_VAULT, fix)
    if _status("NoNewPrivs", 10):
        fix = "Remove no-new-privileges from security_opt in the run config, or run the agent as root."
        return fail(name, "no_new_privs is set, so set-uid has no effect", _NO_VAULT, fix)
    return ok(name, f"{program} is set-uid root")


def allow_other(context: Context) -> list[Check]:
    """As the user: whether others, root included, get to see the vault."""
    name = "user_allow_other"
    if context.root:
        return ok(name, "not needed: root may always let others in")
    try:
        lines = Path(_FUSE_CONF).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        return ok(name, f"it is in {_FUSE_CONF}")
    return warn(
        name,
        f"it is not in {_FUSE_CONF}",
        "Only the session user's own processes see the vault; set-uid programs and root do not.",
        f"In the image: echo user_allow_other >> {_FUSE_CONF}",
    )


def confinement(context: Context) -> list[Check]:
    """AppArmor and seccomp. As root a mount is tried, in a namespace of this child's own."""
    name = "confinement"
    profile = _apparmor()
    shown = f"AppArmor profile {profile}" if profile else "no AppArmor profile"
    shown += ", seccomp filter on" if _status("Seccomp", 10) == 2 else ", no seccomp filter"
    if not context.root:
        if profile.endswith("(enforce)"):
            return warn(
                name,
                shown,
                "The profile may forbid fusermount3 to mount; Docker's does.",
                'In the run config: {"security_opt":["apparmor:unconfined"]}',
            )
        return ok(name, shown)
    if not _status("CapEff", 16) >> 21 & 1:
        return ok(name, f"{shown}; not tried without CAP_SYS_ADMIN")
    try:
        syscalls.try_to_mount()
    except OSError as error:
        what = (
            "AppArmor" if profile.endswith("(enforce)") else "seccomp, or another security module,"
        )
        return fail(
            name,
            f"{what} refuses mounts ({error.strerror}); {shown}",
            _NO_VAULT,
            'In the run config: {"security_opt":["apparmor:unconfined"]}; if that is there already,'
            ' also "seccomp:unconfined".',
        )
    return ok(name, f"mounts are allowed; {shown}")


def timeouts(context: Context) -> list[Check]:
    """The kernel's own limits for FUSE requests: one that is passed ends the whole mount."""
    name = "fuse-timeouts"
    found = []
    for file in ("default_request_timeout", "max_request_timeout"):
        try:
            seconds = int(Path(_TIMEOUTS, file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # kernels before 6.14 have none
            continue
        if seconds:
            found.append((seconds, file))
    if not found:
        return ok(name, "the kernel sets no limit for a request")
    seconds, file = min(found)
    wanted = max(_ALWAYS_ALLOWED, 4 * context.loaded.settings.overlay.remote_seconds)
    if seconds >= wanted:
        return ok(name, f"fs.fuse.{file} is {seconds} s")
    return warn(
        name,
        f"fs.fuse.{file} is {seconds} s",
        "A call that takes longer, into a slow drive say, makes the kernel end the whole vault.",
        f"On the host, as root: sysctl -w fs.fuse.{file}=0",
    )


def _status(field: str, base: int) -> int:
    """A number out of /proc/self/status, proc_pid_status(5); 0 where the kernel does not tell."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{field}:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return int(found[1], base) if found else 0


def _apparmor() -> str:
    """This process's profile and its mode, "" where there is none."""
    for path in ("/proc/self/attr/apparmor/current", "/proc/self/attr/current"):
        try:
            profile = Path(path).read_text(encoding="ascii", errors="replace").strip("\0\n ")
        except OSError:
            continue
        return "" if profile == "unconfined" else profile
    return ""
