"""The icons of the emblems, installed where the image does not bring them.

They are part of the package (`icons/`), drawn for it, and work under the names that Kasm's images
use as well as under the agent's own. An icon that any hicolor folder has already is left alone.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources

from session_agent.desktop.changes import Change, attempt, unless_changed, write
from session_agent.desktop.dry_run import is_dry, planned
from session_agent.errors import UserFileError
from session_agent.fsutil import durable
from session_agent.model import printable

WHAT = "emblem icons"
SYSTEM = "/usr/share/icons/hicolor"
_FOLDER = "scalable/emblems"
_SEARCHED = (SYSTEM, "/usr/local/share/icons/hicolor")
_CACHE_SECONDS = 1.5

# What a file manager shows for the emblem, by icon.
NAMES = {
    "s3-emblem": "S3",
    "nextcloud-emblem": "Nextcloud",
    "onedrive-emblem": "OneDrive",
    "gdrive-emblem": "Google Drive",
    "dropbox-emblem": "Dropbox",
    "kasm-emblem": "Kasm",
    "session-agent-storage": "Storage",
    "session-agent-read-only": "Read-only",
    "session-agent-unavailable": "Unavailable",
}


def missing(themes: Sequence[str]) -> list[str]:
    """The icons that none of the hicolor folders `themes` has as an emblem, at any size."""
    present: set[str] = set()
    for theme in themes:
        with suppress(OSError):
            for size in os.listdir(theme):
                with suppress(OSError):
                    files = os.listdir(os.path.join(theme, size, "emblems"))
                    present.update(name.rpartition(".")[0] for name in files if name[:1] != ".")
    return [name for name in NAMES if name not in present]


def images() -> dict[str, bytes]:
    """The icons by name, as SVG. The session user may not be able to read them where they are kept."""
    folder = resources.files(__package__).joinpath("icons")
    return {name: folder.joinpath(f"{name}.svg").read_bytes() for name in NAMES}


def description(name: str) -> bytes:
    """The `.icon` file beside the icon: what its emblem is called."""
    return f"[Icon Data]\nDisplayName={NAMES[name]}\n".encode()


def apply(theme: str, pictures: Mapping[str, bytes], searched: Sequence[str] = _SEARCHED) -> Change:
    """Install into the hicolor folder `theme` what neither it nor those in `searched` have.

    `pictures` are those of `images`.

    Expected failures are the change's `problem`.
    """

    def step() -> Change:
        if os.geteuid() == 0:
            _refuse_others_folder(theme)
        if not any(map(os.path.isdir, (*searched, theme))):
            return Change(WHAT, theme, False, "no icon theme is installed")
        names = missing((*searched, theme))
        folder = os.path.join(theme, _FOLDER)
        for name in names:
            for path, data in (
                (os.path.join(folder, f"{name}.icon"), description(name)),
                (os.path.join(folder, f"{name}.svg"), pictures[name]),
            ):
                if not planned(path, f"new file {printable(path)}"):
                    write(path, data, durable.read_regular(path))
        if names and not is_dry():
            _refresh(theme)
        return Change(WHAT, folder, bool(names), f"{len(names)} installed")

    return attempt(WHAT, theme, lambda: unless_changed(step))


def _refuse_others_folder(theme: str) -> None:
    """As root, write nowhere that anybody else could lead elsewhere."""
    folder = theme
    while True:
        with suppress(FileNotFoundError):
            status = os.lstat(folder)
            # In a sticky folder above it nobody else replaces what is root's.
            sticky = folder != theme and status.st_mode & stat.S_ISVTX
            shared = status.st_mode & 0o022 and not sticky
            if status.st_uid != 0 or shared or not stat.S_ISDIR(status.st_mode):
                raise UserFileError(f"{printable(folder)} is not root's alone.")
        if folder == "/":
            return
        folder = os.path.dirname(folder)


def _refresh(theme: str) -> None:
    """Have the icons seen: programs compare the folder's time with the cache's, and with their own."""
    os.utime(theme)
    cache, program = os.path.join(theme, "icon-theme.cache"), shutil.which("gtk-update-icon-cache")
    if program is None or not os.path.exists(cache):
        return  # without a cache, or with one older than the folder, the folders are read
    with suppress(subprocess.SubprocessError):
        subprocess.run(
            [program, "--force", "--quiet", theme],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_CACHE_SECONDS,
        )
