#!/bin/bash
# Does to bookmarks and emblems what the autostart script of Kasm's images does, its faults included,
# as they were seen (docs/desktop.md). Written anew from that description.
bookmarks="$HOME/.config/gtk-3.0/bookmarks"
IFS=',' read -ra entries <<<"${CLOUD_MOUNTS:-}"
for entry in "${entries[@]}"; do
    IFS='|' read -r path type <<<"$entry"
    if [ -d "$path" ] && ! grep -qx "file://$path" "$bookmarks" 2>/dev/null; then
        mkdir -p "${bookmarks%/*}"
        echo "file://$path" >>"$bookmarks"
        gio set -t stringv "$path" metadata::emblems "$type-emblem" 2>/dev/null || true
    fi
done
