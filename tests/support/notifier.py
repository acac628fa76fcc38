"""A notification service on the session bus, run by Debian's Python: notes what it is to show."""

from __future__ import annotations

import sys

from gi.repository import Gio, GLib  # type: ignore[import-not-found]

_INTERFACE = """<node><interface name='org.freedesktop.Notifications'><method name='Notify'>
<arg type='s' direction='in'/><arg type='u' direction='in'/><arg type='s' direction='in'/>
<arg type='s' direction='in'/><arg type='s' direction='in'/><arg type='as' direction='in'/>
<arg type='a{sv}' direction='in'/><arg type='i' direction='in'/><arg type='u' direction='out'/>
</method></interface></node>"""


def main(path: str) -> None:
    shown = 0

    def note(line: str) -> None:
        with open(path, "a", encoding="utf-8") as log:
            log.write(line + "\n")

    def on_call(*call: object) -> None:
        nonlocal shown
        parameters, invocation = call[5], call[6]
        _, replaces, _, summary, body, *_ = parameters.unpack()  # type: ignore[attr-defined]
        shown += 1
        number = replaces or shown
        note(f"{number} {replaces} {summary}|{body}".replace("\n", " "))
        invocation.return_value(GLib.Variant("(u)", (number,)))  # type: ignore[attr-defined]

    connection = Gio.bus_get_sync(Gio.BusType.SESSION)
    interface = Gio.DBusNodeInfo.new_for_xml(_INTERFACE).interfaces[0]
    connection.register_object("/org/freedesktop/Notifications", interface, on_call, None, None)
    Gio.bus_own_name_on_connection(
        connection,
        "org.freedesktop.Notifications",
        Gio.BusNameOwnerFlags.NONE,
        lambda *_: note("ready"),
        None,
    )
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(sys.argv[1])
