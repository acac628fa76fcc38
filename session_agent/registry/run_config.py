"""`run_config`: what is merged into the arguments of the Docker SDK's `containers.run`.

Whoever installs a workspace is warned by Kasm of `privileged`, of a `user` other than 1000, and, by its
name, of any other property that is not known to be harmless.
"""

from __future__ import annotations

import difflib

from session_agent.redaction import is_secret_name, redacted
from session_agent.registry.document import Json, Keys
from session_agent.registry.findings import Findings, below
from session_agent.registry.shapes import (
    BOOLEAN,
    ENVIRONMENT,
    INTEGER,
    LIST,
    OBJECT,
    TEXT,
    TEXTS,
    Shape,
    check_each,
    choice,
    either,
    integer,
    kind,
    matching,
)

UNFLAGGED = ("hostname", "environment", "entrypoint")
_KASM_USER = ("1000", 1000)

_CAPABILITY = matching(
    r"(?i:cap_)?[A-Za-z][A-Za-z_]*", 'the name of a capability, such as "SYS_ADMIN"'
)
_DEVICE = matching(
    r"/[^:]+(:/[^:]+)?(:[rwm]{1,3})?", "host path, path and rights, such as /dev/fuse:/dev/fuse:rwm"
)
_SIZE = either(
    matching(r"[0-9]+[bkmgBKMG]?", 'a size such as "512m"'), integer(0, "536870912 (bytes)")
)
_LISTS: dict[str, Shape] = {"cap_add": _CAPABILITY, "cap_drop": _CAPABILITY, "devices": _DEVICE}
_SHAPES: dict[str, Shape] = {
    "entrypoint": either(TEXT, TEXTS),
    "environment": ENVIRONMENT,
    "hostname": TEXT,
    "device_requests": LIST,
    "dns": TEXTS,
    "extra_hosts": either(OBJECT, TEXTS),
    "group_add": LIST,
    "init": BOOLEAN,
    "ipc_mode": TEXT,
    "mem_limit": _SIZE,
    "network": TEXT,
    "network_mode": TEXT,
    "pid_mode": TEXT,
    "pids_limit": INTEGER,
    "privileged": BOOLEAN,
    "read_only": BOOLEAN,
    "runtime": TEXT,
    "security_opt": TEXTS,
    "shm_size": _SIZE,
    "sysctls": OBJECT,
    "tmpfs": OBJECT,
    "userns_mode": TEXT,
    "user": either(TEXT, integer(0, "1000")),
}
_VOLUME: dict[str, Shape] = {
    "bind": matching(r"/.*", 'the absolute path in the container, such as "/vault/wiki"'),
    "mode": choice("rw", "ro"),
    "uid": integer(0, "1000"),
    "gid": integer(0, "1000"),
    "required": BOOLEAN,
    "skip_check": BOOLEAN,
}
KNOWN = (*_SHAPES, *_LISTS, "volumes")

# What a property lets the container do. Others are told without.
_MEANING = {
    "cap_add": "capabilities that Docker withholds are given to root's programs in the container",
    "devices": "devices of the host can be opened in the container",
    "group_add": "its programs are in more groups",
    "ipc_mode": "it may share memory with others",
    "network": "it is in another network than Kasm's own",
    "network_mode": "it may share the network of the host",
    "pid_mode": "it may see and signal processes outside of it",
    "security_opt": "confinement by AppArmor, seccomp or the like is changed, mostly switched off",
    "sysctls": "parameters of the kernel are changed for it",
    "userns_mode": "its users may be those of the host",
    "volumes": "folders of the host are mounted in the container",
}
_CAPABILITIES = {
    "ALL": "every one, which is nearly as much as `privileged`",
    "DAC_READ_SEARCH": "opens any file of a mounted file system, by its handle",
    "SYS_ADMIN": "mounts file systems, and much else",
    "SYS_PTRACE": "reads and changes other programs",
}


def check(value: Json, key: str, findings: Findings) -> None:
    """Tell what does not fit, and what Kasm will warn of."""
    if not OBJECT.check(value, key, findings):
        return
    assert isinstance(value, Keys)
    for name, one in value.items():
        at = below(key, name)
        if _shaped(name, one, at, findings):
            _flag(name, one, at, findings)


def check_environment(value: Json, key: str, findings: Findings) -> None:
    """Tell variables that hold a secret."""
    pairs: list[tuple[str | int, str, Json]] = []
    if isinstance(value, Keys):
        pairs = [(name, name, one) for name, one in value.items()]
    elif isinstance(value, list):
        for n, one in enumerate(value):
            name, _, text = str(one).partition("=")
            pairs.append((n, name, text))
    for place, name, one in pairs:
        if one and is_secret_name(name):
            findings.warn(
                below(key, place),
                "It is a secret by its name, and whoever reads the registry reads it.",
                "Let each administrator set it in the workspace, after installing.",
            )


def _shaped(name: str, value: Json, key: str, findings: Findings) -> bool:
    if name == "volumes":
        return _volumes(value, key, findings)
    if name in _LISTS:
        return check_each(value, key, _LISTS[name], findings)
    if name in _SHAPES:
        return _SHAPES[name].check(value, key, findings)
    return True


def _volumes(value: Json, key: str, findings: Findings) -> bool:
    if not OBJECT.check(value, key, findings):
        return False
    assert isinstance(value, Keys)
    fits = [_volume(one, below(key, path), findings) for path, one in value.items()]
    return all(fits)


def _volume(value: Json, key: str, findings: Findings) -> bool:
    if not isinstance(value, Keys) or "bind" not in value:
        what = "it has no `bind`" if isinstance(value, Keys) else f"it is {kind(value)}"
        example = '{"bind": "/vault/wiki", "mode": "ro"}'
        findings.error(key, f"Not a volume: {what}.", f"Write an object such as {example}.")
        return False
    fits = True
    for name, one in value.items():
        if name in _VOLUME:
            fits &= _VOLUME[name].check(one, below(key, name), findings)
        else:
            known = ", ".join(_VOLUME)
            findings.warn(below(key, name), "Kasm knows no such key here.", f"It knows {known}.")
    return fits


def _flag(name: str, value: Json, key: str, findings: Findings) -> None:
    """What Kasm will show of a property whose shape is right."""
    if name == "environment":
        check_environment(value, key, findings)
    elif name == "privileged":
        findings.kasm(
            key,
            "Kasm warns that the container is privileged: root in it is as good as root on the host."
            if value
            else "Kasm warns of `privileged`, though it is off here.",
            "For FUSE `devices`, `cap_add` and `security_opt` do; remove it."
            if value
            else "Remove it.",
        )
    elif name == "user":
        if value not in _KASM_USER:
            findings.kasm(
                key,
                "Kasm warns that the container does not run as user 1000.",
                "Remove it, and let a hook in exec_config run as root what needs to.",
            )
    elif name not in UNFLAGGED:
        _flag_by_name(name, value, key, findings)


def _flag_by_name(name: str, value: Json, key: str, findings: Findings) -> None:
    close = [] if name in KNOWN else difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.8)
    if name in KNOWN:
        remedy = "Say in `notes` what it is for, or remove it."
    elif close:
        remedy = f"Is {close[0]} meant?"
    else:
        remedy = (
            "It is not known here: see that it is an argument of `containers.run`, or remove it."
        )
    meaning = f": {_MEANING[name]}" if name in _MEANING else ""
    if name == "cap_add" and isinstance(value, list):
        names = [str(one).upper().removeprefix("CAP_") for one in value]
        told = [f"{one} ({_CAPABILITIES[one]})" if one in _CAPABILITIES else one for one in names]
        meaning += f": {', '.join(told)}"
    elif name in ("devices", "security_opt") and isinstance(value, list):
        meaning += f": {redacted(', '.join(map(str, value)))}"
    findings.kasm(key, f"Kasm warns of {name}{meaning}.", remedy)
