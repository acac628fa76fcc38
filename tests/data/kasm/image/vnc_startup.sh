#!/bin/bash
# The second: the desktop with its session bus, and custom_startup.sh if there is one.
eval "$(dbus-launch --sh-syntax)"
(exec -a xfce4-session sleep infinity) &
[[ -x $STARTUPDIR/custom_startup.sh ]] && "$STARTUPDIR/custom_startup.sh" &
exec "$@"
