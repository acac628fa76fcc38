"""The home, the state directory and the journal in it."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat

from session_agent.doctor.checks import Check, Context, State, fail, ok, warn
from session_agent.lifecycle import moves, state
from session_agent.model import printable
from session_agent.mounts import mountinfo
from session_agent.mounts.names import below
from session_agent.moves.record import State as MoveState

_PASSING = frozenset({"tmpfs", "ramfs", "overlay", "aufs"})  # end with the container
_PERSIST = (
    "Give the workspace a persistent profile path, or a volume in the run config: "
    '{"volumes":{"/srv/homes/{username}":{"bind":"/home/kasm-user","mode":"rw"}}}'
)


def home(context: Context) -> list[Check]:
    """Whether what is written in the home is there in the next session."""
    name, place = "home", context.place.user.home
    entries = [
        one for one in mountinfo.read() if below(place, one.path) is not None or one.path == "/"
    ]
    entry = max(entries, key=lambda one: len(one.path), default=None)
    if entry is None:
        return ok(name, printable(place))
    shown = f"{printable(place)} lies on {printable(entry.path)} ({entry.fstype})"
    if entry.read_only:
        return warn(
            name,
            f"{shown}, read-only",
            "Bookmarks, the rooms file and the agent's memory cannot be written.",
            "Set `state_dir`, `root_branch` and `rooms.file` to folders that the user can write.",
        )
    # Docker's storage drivers without an overlay show a container's root as a folder of the host's.
    if entry.fstype in _PASSING or (entry.path == "/" and entry.root != "/"):
        return warn(
            name,
            f"{shown}: it ends with the container",
            "Notes at the vault's top level, and the journal of a move that is cut off, are lost with it.",
            _PERSIST,
        )
    return ok(name, shown)


def vault_folder(context: Context) -> list[Check]:
    """As the user: whether there is a folder to mount over that fusermount3 accepts."""
    name, path = "vault-folder", context.place.vault
    shown = printable(path)
    if context.served or context.root:
        return ok(name, f"{shown} is mounted" if context.served else f"root sees to {shown}")
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK, effective_ids=True):
        return ok(name, f"{shown} can be {'written' if above == path else 'made'}")
    return fail(
        name,
        f"{printable(above)} is no folder that the user can write",
        f"{'fusermount3 mounts' if above == path else 'The vault is made'} only where the user can write.",
        f"In the image: install -d -o {context.place.user.uid} {shown};"
        f" in a read-only container: --tmpfs {shown}:uid={context.place.user.uid}",
    )


def state_directory(context: Context) -> list[Check]:
    """With the user's rights: whether it can be made, written, locked, and is nobody else's."""
    name, path = "state-directory", context.place.state_dir
    shown = printable(path)
    why = "The agent keeps its lock, its control socket and the journal of moves there."
    fix = "Make it writable for the session user, or set `state_dir` to a folder of the user's."
    folder = state.find(path)
    if folder is None:
        above = os.path.dirname(path)
        while not os.path.isdir(above):
            above = os.path.dirname(above)
        if os.access(above, os.W_OK | os.X_OK, effective_ids=True):
            return ok(name, f"{shown} can be made")
        return fail(name, f"{shown} cannot be made in {printable(above)}", why, fix)
    try:
        found = os.fstat(folder)
        if found.st_uid != os.geteuid():
            detail = f"{shown} belongs to user {found.st_uid}"
            return fail(name, detail, why, f"chown -R {context.place.user.uid} {shown}")
        holder = state.holder(folder)
        if holder is not None and holder <= 0:
            return fail(
                name,
                f"an agent in another container uses {shown}",
                "Two agents would undo each other's moves, so the second serves no vault.",
                "Set SESSION_AGENT_STATE_DIR to a folder that only this container has.",
            )
        _try_to_write(folder)
    except OSError as error:
        return fail(name, f"{shown}: {error.strerror}", why, fix)
    finally:
        os.close(folder)
    mode = stat.S_IMODE(found.st_mode)
    return ok(name, f"{shown} (mode {mode:o}) can be written and locked")


def _try_to_write(folder: int) -> None:
    name = f".doctor-{secrets.token_hex(8)}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        os.write(fd, b"x")
        os.fsync(fd)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=folder)


def journals(context: Context) -> list[Check]:
    """The moves that wait or have failed, and journals that could not be read."""
    name = "moves"
    listing = moves.listing(context.place)
    found = [
        Check(
            name,
            State.WARN,
            printable(problem),
            "What the journal held may be half done; the files themselves are all there, old and new.",
            "session-agent recover finishes what can be finished; see docs/moves.md for the rest.",
        )
        for problem in listing.warnings
    ]
    failed = sum(one.state is MoveState.FAILED for one in listing.moves)
    if failed:
        found += warn(
            name,
            "1 move has failed" if failed == 1 else f"{failed} moves have failed",
            "What failed is where it was before.",
            "session-agent moves says why; session-agent moves ack takes them off the list.",
        )
    return found or ok(
        name, f"{sum(one.under_way for one in listing.moves)} under way, none failed"
    )
