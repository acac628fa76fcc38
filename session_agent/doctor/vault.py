"""The agent and what it serves: mounts that do not answer, names that clash, whether the policy binds."""

from __future__ import annotations

import os
from collections import Counter

from session_agent.doctor.checks import Check, Context, State, fail, ok, warn
from session_agent.errors import ControlError
from session_agent.lifecycle import control, session, status
from session_agent.lifecycle.loopholes import loopholes
from session_agent.lifecycle.permissions import Permissions
from session_agent.model import MountState, Session, printable
from session_agent.mounts import cloud_mounts, mountinfo

_PROBE_SECONDS = 2.0  # at most; the settings may say less


def examine(context: Context) -> list[Check]:
    """What needs the agent's answer and the list of mounts."""
    place = context.place
    running: control.Running | None = None
    found: list[Check] = []
    try:
        running = control.consult(place)
    except ControlError as error:
        found += fail(
            "agent", error.message, "Nobody can tell whether the vault is served.", error.hint
        )
    else:
        found += _agent(context, running)
    limit = min(_PROBE_SECONDS, context.loaded.settings.mounts.probe_seconds)
    known = status.not_answering(place, running, limit)
    whole = session.build(context.loaded, place, known)
    return [*found, *_mounts(whole), *_clashes(context, whole), *_policy(context, whole, running)]


def _agent(context: Context, running: control.Running | None) -> list[Check]:
    name = "agent"
    if running is None:
        told = status.document(context.place).warnings
        if told:
            return fail(
                name,
                " ".join(told),
                "Programs get errors at the vault, or an old one.",
                "session-agent first-launch",
            )
        return warn(name, "no agent runs", "There is no vault yet.", "session-agent first-launch")
    if running.document is None:
        return fail(
            name,
            f"process {running.pid}: {running.problem}",
            "Nobody can tell whether the vault is served.",
            "session-agent stop --force, then session-agent first-launch",
        )
    document = running.document
    found = [
        Check(
            name,
            State.WARN,
            printable(warning),
            "The agent found this when it started, or since.",
            "See docs/overlay.md; session-agent status shows it too.",
        )
        for warning in document.warnings
    ]
    found += found or ok(name, f"process {running.pid} serves {document.vault}")
    return [*found, *_foreign(context, document.foreign)]


def _is_roots(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == 0
    except OSError:
        return False


def _foreign(context: Context, counts: dict[str, int]) -> list[Check]:
    name = "foreign-events"
    if not context.loaded.settings.overlay.foreign_events:
        return ok(
            name, "off: programs get no event for what others change (overlay.foreign_events)"
        )
    shown = ", ".join(f"{count} {word}" for word, count in counts.items()) or "nothing yet"
    if counts.get("unwatched"):
        return warn(
            name,
            shown,
            "Folders that cannot be watched are looked at now and then: what others change shows later.",
            "On the host, as root: sysctl -w fs.inotify.max_user_watches=524288"
            " fs.inotify.max_user_instances=512",
        )
    return ok(name, shown)


def _mounts(whole: Session) -> list[Check]:
    name = "mounts"
    found = [
        Check(
            name,
            State.WARN,
            f"{printable(one.path)} is {one.state}",
            "What is in it gives errors, or waits; everything else goes on.",
            "See whether its server or its client runs (docker volume inspect, rclone's log); then"
            f" restart that, or: umount -l {printable(one.path)}",
        )
        for one in whole.mounts
        if one.state is not MountState.ALIVE
    ]
    return found or ok(name, f"{len(whole.mounts)} hold user storage, and all answer")


def _clashes(context: Context, whole: Session) -> list[Check]:
    """Targets that come twice, or two mounts that would have one name."""
    name = "targets"
    _, told = cloud_mounts.parse(context.loaded.environment.cloud_mounts)
    fix = "Correct CLOUD_MOUNTS, or the targets of the storage mappings."
    found = [
        Check(
            name,
            State.WARN,
            printable(text),
            "That entry may get no emblem, or the wrong one.",
            fix,
        )
        for text in told
    ]
    paths = Counter(entry.path for entry in mountinfo.read())
    for path in sorted({one.path for one in whole.mounts if paths[one.path] > 1}):
        found += warn(
            name,
            f"{paths[path]} mounts lie at {printable(path)}",
            "Only the last of them is seen; the others are hidden beneath it.",
            "Give each storage mapping a target of its own.",
        )
    for one in whole.mounts:
        last = one.path.rpartition("/")[2]
        if one.name.startswith(f"{last}-") and one.name[len(last) + 1 :].isdigit():
            found += warn(
                name,
                f"{printable(one.path)} is {printable(one.name)} in the vault: {printable(last)} is taken",
                "The number may go to the other one when the mounts change.",
                "Give the mappings targets that end in different names.",
            )
    return found or ok(name, "no two mounts want the same place or name")


def _policy(context: Context, whole: Session, running: control.Running | None) -> list[Check]:
    name = "policy"
    permissions = Permissions(context.loaded)
    if not permissions.configured:
        return ok(name, "none is configured: every branch is shown as it is mounted")
    if not context.root and running is not None and _is_roots(running.pid):
        return ok(name, "root's agent keeps it; only root can see how well")
    why = "A policy that does not bind keeps nobody from anything."
    fix = "Run the agent as root, mount everything below the vault, give the user no sudo (docs/policy.md)."
    found = [
        Check(
            name,
            State.FAIL,
            printable(problem),
            "What is unclear is not shown to the user.",
            "session-agent policy check, and see docs/policy.md.",
        )
        for problem in permissions.now().problems
    ]
    if not context.served:
        found += fail(
            name, "there is no vault, so the mounts lie open", why, "See `agent` and `fuse-device`."
        )
    found += [Check(name, State.FAIL, told, why, fix) for told in loopholes(whole)]
    return found or ok(name, "it binds the user, as far as can be told from here")
