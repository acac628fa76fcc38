#!/bin/sh
# What image/Dockerfile runs, as root, in the base image.
#
#   install.sh environment   in the stage that builds: make /opt/session-agent
#   install.sh packages      in the image itself: the Debian packages that running it takes
#   install.sh finish        in the image itself, when /opt/session-agent is there
set -eu

readonly target=/opt/session-agent
readonly wheels=image/wheels

say() { printf 'session-agent: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# missing PACKAGE... prints those that are not installed.
missing() {
    for package in "$@"; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || printf '%s ' "$package"
    done
}

# install PACKAGE...: no network is needed if all are there.
install() {
    packages=$(missing "$@")
    [ -n "$packages" ] || return 0
    command -v apt-get >/dev/null || fail "the base image is neither Debian nor Ubuntu; it lacks: $packages"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Unquoted on purpose: names are separate arguments.
    # shellcheck disable=SC2086
    apt-get install -qq -y --no-install-recommends $packages >/dev/null
    # Not every base cleans up by itself; Ubuntu's caches are larger than the agent.
    apt-get clean
    rm -rf /var/lib/apt/lists/*
}

# find_python prints the name of a Python of 3.11 or newer, as a package and a command.
find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    # Ubuntu 22.04 has 3.11 beside its own 3.10, other releases a python3 that is new enough.
    if [ "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" = jammy ]; then
        echo python3.11
    else
        echo python3
    fi
}

has_wheels() { ls "$wheels"/session_agent-*.whl >/dev/null 2>&1; }

environment() {
    python=$(find_python)
    if has_wheels; then
        install "$python" "$python-venv"
        set -- --no-index --find-links "$wheels" session-agent
    else
        install "$python" "$python-venv" "$python-dev" gcc libc6-dev pkg-config libfuse3-dev
        # Its versions are those the agent is tested with.
        set -- -r requirements/runtime.lock .
    fi
    "$python" -m venv "$target"
    "$target/bin/python" -m pip install --no-cache-dir --quiet --disable-pip-version-check "$@"
    "$target/bin/session-agent" --version
    # Nothing that installs or builds is left.
    "$target/bin/python" -m pip uninstall --quiet --yes pip setuptools wheel 2>/dev/null || true
    rm -rf "$target"/lib/python3*/site-packages/pip "$target"/include
}

packages() {
    # The interpreter that the environment's links lead to, and fusermount3, for sessions that run as the user.
    install "$(find_python)" fuse3
}

finish() {
    "$target/bin/session-agent" --version >/dev/null || fail "$target does not work in this image"
    ln -sf "$target/bin/session-agent" /usr/local/bin/session-agent
    chmod 755 /usr/local/bin/session-agent-entrypoint
    # So that the vault can be seen by other users than the one that runs the agent, root among them.
    grep -qs '^user_allow_other' /etc/fuse.conf || echo user_allow_other >>/etc/fuse.conf
    # Where the vault is; docker puts the folders that are mounted into it there.
    mkdir -p /vault
    chown 1000:0 /vault
    "$target/bin/python" - <<'PYTHON'
from session_agent.desktop import icons
change = icons.apply(icons.SYSTEM, icons.images())
print("session-agent: emblem icons:", change.problem or change.detail)
PYTHON
    say "added: $(du -sm "$target" | cut -f1) MB in $target"
}

case ${1:-} in
    environment) environment ;;
    packages) packages ;;
    finish) finish ;;
    *) fail "one of environment, packages and finish is expected" ;;
esac
