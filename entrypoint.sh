#!/bin/bash
# The entry point of an image with session-agent: makes the vault, then runs the image's own entry point, or
# the command that `docker run` was given, and stays its parent.
#
# It stays because of `docker stop`: that tells the container's first process alone. The signal is passed on,
# so that programs can save what they have open while the vault is there; then the agent completes or suspends
# its moves (moves.grace_seconds) and unmounts. Allow for that: docker run --stop-timeout 30.
set -u

readonly own_entry=/dockerstartup/kasm_default_profile.sh  # of Kasm's images
readonly save_seconds=3                                    # that programs get before the vault goes

say() { printf 'session-agent: %s\n' "$*" >&2; }

child=
stopping=

# shellcheck disable=SC2317  # called by traps
pass_on() {
    stopping=yes
    # A terminal tells all its programs itself.
    [[ -z $child || ($1 == INT && -t 0) ]] || kill -s "$1" "$child" 2>/dev/null
}
# From here on, since a container's first process does not get a signal that it has no trap for.
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'pass_on HUP' HUP
trap 'pass_on QUIT' QUIT

end() {
    session-agent stop >&2 || session-agent stop --force >&2
}

command -v session-agent >/dev/null || {
    say 'session-agent is not on PATH; is this the image that image/Dockerfile makes?'
    exit 127
}
if [[ ! -d ${HOME:-} ]]; then
    home=$(getent passwd "$(id -u)" | cut -d: -f6)
    say "HOME is '${HOME:-}', which is no folder; taking ${home:-/tmp} instead"
    export HOME=${home:-/tmp}
fi
[[ -e /dev/fuse ]] ||
    say 'there is no /dev/fuse, so no vault that moves files: docker run --device /dev/fuse --cap-add SYS_ADMIN'

# Whatever is missing, the session starts; `first-launch` has said what to do.
session-agent first-launch --exit-zero >&2
if [[ -n $stopping ]]; then
    end
    exit 143
fi

if (($# == 0)) || [[ ${1} == -* ]]; then
    if [[ -x $own_entry ]]; then
        set -- "$own_entry" /dockerstartup/vnc_startup.sh /dockerstartup/kasm_startup.sh "${@:---wait}"
    elif (($# == 0)); then
        set -- bash
    else
        say "$1 is no command"
        exit 127
    fi
fi

# In the background, since a shell that waits for a program hears no signal. With the terminal, if there is one,
# and without the ignored signals that a shell gives what it runs there.
(
    trap - INT QUIT
    exec "$@"
) <&0 &
child=$!

code=0
while [[ -z $stopping ]] && kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
done
if [[ -n $stopping ]]; then
    for ((tenth = 0; tenth < 10 * save_seconds; tenth++)); do
        kill -0 "$child" 2>/dev/null || break
        sleep 0.1
    done
fi
end
if [[ -n $stopping ]]; then
    kill -0 "$child" 2>/dev/null && exit 143 # it does not end, but with the container
    wait "$child"
    code=$?
fi
exit "$code"
