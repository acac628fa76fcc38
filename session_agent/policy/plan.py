"""A user's plan: the flat list of mounts that give what the policy gives, for programs and for Docker.

A part of a folder is an entry of its own where its mode differs from what it lies in. A part that is hidden
must be covered: an entry with the mode `hidden` says so, and a program that takes it for a mount's mode fails
rather than show it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from session_agent.model import Grant
from session_agent.policy.evaluate import FolderGrant

Json: TypeAlias = dict[str, object]

_COVER = ("tmpfs-mode=0555", "readonly")


def flat(grants: Iterable[FolderGrant]) -> list[FolderGrant]:
    """The entries of the plan, what contains others before those. Hidden folders are left out."""
    entries: list[FolderGrant] = []
    modes: dict[str, Grant] = {}  # of the folder at hand, by its parts' paths
    for grant in grants:
        if not grant.subfolder:
            modes = {"": grant.mode}
            if grant.mode is not Grant.HIDDEN:
                entries.append(grant)
            continue
        outer = _outer(grant.subfolder, modes)
        modes[grant.subfolder] = grant.mode
        if grant.mode is not outer:
            entries.append(grant)
    return entries


def _outer(path: str, modes: dict[str, Grant]) -> Grant:
    while path:
        path = path.rpartition("/")[0]
        if path in modes:
            return modes[path]
    return modes[""]


def as_json(entries: Iterable[FolderGrant]) -> Json:
    """`{"folders": [{"name", "path", "target", "mode", "because"}]}`."""
    return {
        "folders": [
            {
                "name": label(entry),
                "path": entry.path,
                "target": entry.target,
                "mode": str(entry.mode),
                "because": entry.because,
            }
            for entry in entries
        ]
    }


def label(entry: FolderGrant) -> str:
    """The folder's name, and the part of it."""
    return f"{entry.name}/{entry.subfolder}" if entry.subfolder else entry.name


def as_docker(entries: Iterable[FolderGrant]) -> Json:
    """What `docker run` and the Docker SDK's `containers.run` take.

    `run`: arguments. `mounts`: keywords of docker.types.Mount. `volumes`: the keyword of that name; it has no
    room for what covers a hidden part, so `tmpfs` goes with it.
    """
    run: list[str] = []
    mounts: list[Json] = []
    volumes: Json = {}
    tmpfs: Json = {}
    for entry in entries:
        if entry.mode is Grant.HIDDEN:
            run += ["--mount", _csv("type=tmpfs", f"target={entry.target}", *_COVER)]
            cover: Json = {"target": entry.target, "source": None, "type": "tmpfs"}
            mounts.append({**cover, "read_only": True, "tmpfs_mode": 0o555})
            tmpfs[entry.target] = "ro,mode=0555"
            continue
        read_only = entry.mode is Grant.RO
        parts = ["type=bind", f"source={entry.path}", f"target={entry.target}"]
        run += ["--mount", _csv(*parts, *(["readonly"] if read_only else []))]
        mounts.append(
            {"target": entry.target, "source": entry.path, "type": "bind", "read_only": read_only}
        )
        volumes[entry.path] = {"bind": entry.target, "mode": str(entry.mode)}
    return {"run": run, "mounts": mounts, "volumes": volumes, "tmpfs": tmpfs}


def _csv(*fields: str) -> str:
    """The fields as `--mount` reads them: comma-separated values, RFC 4180."""
    return ",".join(
        '"' + field.replace('"', '""') + '"' if any(c in field for c in ',"\n') else field
        for field in fields
    )
