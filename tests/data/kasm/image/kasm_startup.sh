#!/bin/bash
# The last: waits as long as the session lasts.
touch "$HOME/started"
[[ ${1:-} == --wait ]] && wait
exec sleep infinity
