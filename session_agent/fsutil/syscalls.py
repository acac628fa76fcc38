"""System calls that the standard library lacks, each a thin typed function that raises OSError.

File names are bytes and directories are file descriptors, so that no call here resolves more than one
path component.
"""

from __future__ import annotations

import ctypes
import os

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
MS_NOSUID = 2
MS_NODEV = 4

SYNC_FILE_RANGE_WRITE = 2

_PR_SET_PDEATHSIG = 1
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_HANDLE_BYTES = 128  # MAX_HANDLE_SZ
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
_STATX_BTIME = 0x800
_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_SYS_SETGROUPS = {"x86_64": 116, "aarch64": 159}.get(os.uname().machine, -1)

_libc = ctypes.CDLL(None, use_errno=True)
# Calls that cannot block keep the interpreter lock: that halves their cost.
_libc_fast = ctypes.PyDLL(None, use_errno=True)

_renameat2 = _libc.renameat2
_renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_syncfs = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_name_to_handle_at = _libc.name_to_handle_at
_name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
)
_open_by_handle_at = _libc.open_by_handle_at
_open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_utimensat = _libc_fast.utimensat
_utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
_utimensat_slow = _libc.utimensat  # lets others run, as one of them may have to answer it
_utimensat_slow.argtypes = _utimensat.argtypes
_futimens = _libc.futimens  # likewise
_futimens.argtypes = (ctypes.c_int, ctypes.c_void_p)
_statx = _libc_fast.statx
_statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_void_p,
)
_fstatfs = _libc_fast.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_umount2 = _libc.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_unshare = _libc.unshare
_unshare.argtypes = (ctypes.c_int,)
_mount = _libc.mount
_mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_setfsuid = _libc_fast.setfsuid
_setfsuid.argtypes = (ctypes.c_uint32,)
_setfsuid.restype = ctypes.c_uint32  # the former id, which need not fit an int
_setfsgid = _libc_fast.setfsgid
_setfsgid.argtypes = (ctypes.c_uint32,)
_setfsgid.restype = ctypes.c_uint32
_syscall = _libc_fast.syscall


def _raise(*names: bytes) -> None:
    number = ctypes.get_errno()
    shown = [os.fsdecode(name) for name in names]
    raise OSError(number, os.strerror(number), *shown[:1])


def renameat2(
    source_folder: int, source: bytes, target_folder: int, target: bytes, flags: int
) -> None:
    """renameat2(2). EINVAL where the file system does not know `flags`."""
    if _renameat2(source_folder, source, target_folder, target, flags):
        _raise(source)


def syncfs(fd: int) -> None:
    """syncfs(2): write out the whole file system that `fd` lies on. Not to be used on an O_PATH fd."""
    if _syncfs(fd):
        _raise()


def start_writing(fd: int, offset: int, count: int) -> None:
    """sync_file_range(2): let the disk begin with these bytes. A hint: nothing is durable by it."""
    if _sync_file_range(fd, offset, count, SYNC_FILE_RANGE_WRITE):
        _raise()


class _Status(ctypes.Structure):
    """struct statx (include/uapi/linux/stat.h), as far as it is used here."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("before", ctypes.c_ubyte * 76),
        ("born_seconds", ctypes.c_int64),
        ("born_ns", ctypes.c_uint32),
        ("behind", ctypes.c_ubyte * 164),
    )


def born_at(folder: int, name: bytes) -> int:
    """When the file `name` was made, in ns; 0 where the file system does not keep that. statx(2).

    Without a name it is what the descriptor leads to.
    """
    status = _Status()
    flags = _AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH
    if _statx(folder, name, flags, _STATX_BTIME, ctypes.byref(status)):
        _raise(name)
    if not status.mask & _STATX_BTIME:
        return 0
    return int(status.born_seconds) * 1_000_000_000 + int(status.born_ns)


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _HANDLE_BYTES),
    )


def reopen_on(mount: int, fd: int, flags: int) -> int:
    """Open what `fd` leads to once more, as a file of the mount that `mount` lies on: open_by_handle_at(2).

    `fd` may be an O_PATH descriptor, `mount` not. EPERM without CAP_DAC_READ_SEARCH; EOPNOTSUPP from file
    systems without handles; ESTALE where both do not lie on one file system.
    """
    handle = _FileHandle(_HANDLE_BYTES)
    mount_id = ctypes.c_int()
    if _name_to_handle_at(fd, b"", ctypes.byref(handle), ctypes.byref(mount_id), _AT_EMPTY_PATH):
        _raise()
    opened = _open_by_handle_at(mount, ctypes.byref(handle), flags | os.O_CLOEXEC)
    if opened < 0:
        _raise()
    return int(opened)


def set_times(path: str, atime_ns: int | None, mtime_ns: int | None, *, now: bool = False) -> None:
    """utimensat(2) in nanoseconds; None leaves a time as it is, `now` makes those given the present.

    The present may be set by whoever can write the file, other times by its owner only.
    """
    times = (ctypes.c_long * 4)()
    for index, value in enumerate((atime_ns, mtime_ns)):
        if value is None:
            times[2 * index + 1] = _UTIME_OMIT
        elif now:
            times[2 * index + 1] = _UTIME_NOW
        else:
            times[2 * index], times[2 * index + 1] = divmod(value, 1_000_000_000)
    encoded = os.fsencode(path)
    if _utimensat(_AT_FDCWD, encoded, times, 0):
        _raise(encoded)


def filesystem_type(fd: int) -> int:
    """The magic number of the file system that `fd` leads to: f_type of fstatfs(2)."""
    figures = (ctypes.c_ulong * 32)()
    if _fstatfs(fd, figures):
        _raise(b"fstatfs")
    return int(figures[0]) & 0xFFFFFFFF


def touch_at(folder: int, name: bytes | None, *, modified: bool) -> None:
    """utimensat(2): the modification time becomes the present, or with not `modified` both times do.

    To those who watch the file the first is a modification, the second a change of its attributes. With no
    `name` it is the file that `folder` itself is a descriptor of.
    """
    times = (ctypes.c_long * 4)()
    times[1], times[3] = (_UTIME_OMIT if modified else _UTIME_NOW), _UTIME_NOW
    if name is None:
        failed = _futimens(folder, times)
    else:
        failed = _utimensat_slow(folder, name, times, _AT_SYMLINK_NOFOLLOW)
    if failed:
        _raise(name or b"")


def mount(source: str, path: str, fstype: str, flags: int, data: str) -> None:
    """mount(2)."""
    encoded = os.fsencode(path)
    if _mount(os.fsencode(source), encoded, fstype.encode(), flags, data.encode()):
        _raise(encoded)


def unmount(path: str, flags: int = 0) -> None:
    """umount2(2). EBUSY while a file in it is open, unless `flags` holds MNT_DETACH."""
    encoded = os.fsencode(path)
    if _umount2(encoded, flags):
        _raise(encoded)


def die_with_parent(parent: int) -> bool:
    """prctl(2), PR_SET_PDEATHSIG: get SIGKILL when the thread that forked this process ends.

    False if `parent`, whose process it was, has ended already.
    """
    if _prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0):
        _raise()
    return os.getppid() == parent


def try_to_mount() -> None:
    """Mount an empty tmpfs where nobody else sees it: this process leaves its mount namespace for good."""
    if _unshare(_CLONE_NEWNS):
        _raise()
    if _mount(b"none", b"/", None, _MS_REC_PRIVATE, None):
        _raise()
    # Over the root folder, which hides nothing from a process whose root it is already.
    if _mount(b"none", b"/", b"tmpfs", 0, None):
        _raise()


def set_fs_identity(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Make this thread's file-system identity `uid`, `gid` and `groups`; the other threads keep theirs.

    The raw setgroups system call is used because the C library's changes every thread. setfsuid and
    setfsgid report no error, so the result is read back: PermissionError when it did not take.
    """
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _syscall(_SYS_SETGROUPS, len(groups), array):
        _raise()
    _setfsgid(gid)
    _setfsuid(uid)
    # An invalid id changes nothing and answers the present one: the way to read it.
    if _setfsuid(0xFFFFFFFF) != uid or _setfsgid(0xFFFFFFFF) != gid:
        raise PermissionError(1, "setfsuid or setfsgid was refused")
