"""Shows the GTK 3 file dialog until it is killed; run by Debian's Python."""

from __future__ import annotations

import gi  # type: ignore[import-not-found]

gi.require_version("Gtk", "3.0")
from gi.repository import Gtk  # type: ignore[import-not-found]  # noqa: E402

dialog = Gtk.FileChooserDialog(title="Open a note", action=Gtk.FileChooserAction.OPEN)
dialog.add_buttons("Open", Gtk.ResponseType.OK)
dialog.set_default_size(900, 560)
dialog.show_all()
Gtk.main()
