"""The desktop: its bus, GVfs, the file dialogs, and Obsidian's plugin where there is no FUSE."""

from __future__ import annotations

import json
import os

from session_agent.desktop import bus
from session_agent.desktop.obsidian_plugin import ID
from session_agent.doctor.checks import Check, Context, State, ok, warn
from session_agent.errors import UserFileError
from session_agent.fsutil.durable import read_regular
from session_agent.model import printable

_GVFS = ("/usr/libexec/gvfsd", "/usr/lib/gvfs/gvfsd", "/usr/lib64/gvfs/gvfsd")
_EMBLEMS = "Thunar's emblems and notifications come over the session bus; the vault itself does not need it."


def session_bus(context: Context) -> list[Check]:
    """With the user's rights: whether a desktop runs whose bus answers."""
    name = "session-bus"
    desktop = bus.find(context.place.user.uid)
    if desktop is not None:
        return ok(name, f"the desktop is process {desktop.pid}, and its bus answers")
    if context.loaded.environment.bus == "unix:path=/dev/null":
        detail = (
            "DBUS_SESSION_BUS_ADDRESS is unix:path=/dev/null, as on Kubernetes: there is no bus"
        )
        fix = "Have the image's start script run the desktop under dbus-launch or dbus-run-session."
        return warn(name, detail, _EMBLEMS, fix)
    detail = "no desktop of the session user's with a session bus is running"
    return warn(
        name,
        detail,
        _EMBLEMS,
        "Wait for the desktop, then look again; in the image: apt-get install dbus-x11",
    )


def gvfs(_: Context) -> list[Check]:
    """Whether GVfs is installed, which keeps Thunar's emblems."""
    name = "gvfs"
    found = next((path for path in _GVFS if os.path.exists(path)), None)
    if found is not None:
        return ok(name, found)
    return warn(
        name,
        "GVfs is not installed",
        "Thunar shows no emblems, and has no trash.",
        "In the image: apt-get install gvfs gvfs-daemons",
    )


def file_chooser(context: Context) -> list[Check]:
    """Whether file dialogs show the mounts at all."""
    name = "file-chooser"
    if context.loaded.environment.restricted_file_chooser not in ("1", "true"):
        return ok(name, "file dialogs show the whole file system")
    return warn(
        name,
        "KASM_RESTRICTED_FILE_CHOOSER confines file dialogs to ~/Desktop",
        "The vault and its branches cannot be reached from the dialogs of GTK programs.",
        'In the run config: {"environment":{"KASM_RESTRICTED_FILE_CHOOSER":"0"}}',
    )


def obsidian_plugin(context: Context) -> list[Check]:
    """With the user's rights: where there is no FUSE, whether Obsidian may move notes across mounts."""
    name = "obsidian-plugin"
    if context.served:
        return ok(name, "not needed: the vault itself moves across mounts")
    settings = f"{context.place.vault}/.obsidian"
    if not os.path.isfile(f"{settings}/plugins/{ID}/manifest.json"):
        return ok(name, f"{ID} is not installed in {printable(context.place.vault)}")
    try:
        data = read_regular(f"{settings}/community-plugins.json")
        enabled = json.loads(data or b"[]")
    except (UserFileError, ValueError, RecursionError) as error:
        return [
            Check(
                name,
                State.WARN,
                f"community-plugins.json cannot be read: {error}",
                "Whether the plugin is on cannot be told.",
                "Look in Obsidian's settings.",
            )
        ]
    if isinstance(enabled, list) and ID in enabled:
        return ok(name, f"{ID} is switched on")
    return warn(
        name,
        f"{ID} is installed and not switched on",
        "Without FUSE, Obsidian cannot move a note from one mount to another: EXDEV.",
        f"In Obsidian: Settings, Community plugins, Turn on community plugins, then switch on {ID}.",
    )
