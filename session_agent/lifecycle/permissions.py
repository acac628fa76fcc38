"""The permission policy in a session: what its files say now, for the user that this is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from session_agent.errors import PolicyError
from session_agent.lifecycle.loopholes import loopholes
from session_agent.model import Grant, Mode, Session, printable
from session_agent.policy.document import read
from session_agent.policy.evaluate import FolderGrant, evaluate, next_change
from session_agent.policy.identity import Identity
from session_agent.policy.identity_file import parse_identity
from session_agent.policy.limit import Limit, branch_limits
from session_agent.policy.model import Policy
from session_agent.policy.schema import parse_policy
from session_agent.policy.token import Claims, verify
from session_agent.rootfile import changeable_by
from session_agent.settings import Loaded


@dataclass(frozen=True, slots=True)
class Permits:
    """What holds at an instant. `grants` None: the policy cannot be used, so nothing is shown.

    `until`: when it may change although no file does.
    """

    grants: tuple[FolderGrant, ...] | None
    user: str
    problems: tuple[str, ...]
    until: datetime | None


class Permissions:
    """The policy that the settings name, evaluated for the session's identity."""

    def __init__(self, loaded: Loaded) -> None:
        self._settings = loaded.settings.policy
        self._environment = loaded.environment
        self._seen: object = None
        self._policy: Policy | None = None
        self._policy_seen: object = None

    @property
    def configured(self) -> bool:
        """Whether there is a policy to be kept at all."""
        return self._settings.file is not None

    def changed(self) -> bool:
        """Whether any of the files is another one than when they were last read."""
        return self._signature() != self._seen

    def now(self) -> Permits:
        """What holds now. Whatever is wrong with the policy hides everything; with the identity, makes it

        one that is not known.
        """
        self._seen = self._signature()
        instant = datetime.now(UTC)
        try:
            policy = self._read_policy()
        except PolicyError as error:
            return Permits(None, "", (f"No branch is shown: {error}",), None)
        problems: tuple[str, ...] = ()
        identity: Identity | None = None
        ends: datetime | None = None
        try:
            identity, ends = self._identity()
        except PolicyError as error:
            problems = (str(error),)
        changes = [at for at in (ends, next_change(policy, instant)) if at is not None]
        return Permits(
            grants=tuple(evaluate(policy, identity, instant)),
            user="" if identity is None else identity.user,
            problems=problems,
            until=min(changes, default=None),
        )

    def limits(self, session: Session, permits: Permits) -> dict[str, Limit]:
        """The limits of the session's branches."""
        ungoverned = self._settings.ungoverned
        return branch_limits(session.vault, session.branches, permits.grants, ungoverned)

    def _files(self) -> list[str]:
        settings = self._settings
        files = (settings.file, settings.identity_file, settings.jwt_keys, settings.jwt_file)
        return [file for file in files if file is not None]

    def _signature(self) -> object:
        return [_stamp(file) for file in self._files()]

    def _read_policy(self) -> Policy:
        assert self._settings.file is not None
        stamp = _stamp(self._settings.file)
        if self._policy is None or stamp != self._policy_seen:
            self._policy = None
            data = _trusted(self._settings.file)
            self._policy = parse_policy(data, self._settings.file)
            self._policy_seen = stamp
        return self._policy

    def _identity(self) -> tuple[Identity | None, datetime | None]:
        """The first that is configured of: a token, a file, the environment."""
        settings = self._settings
        if settings.jwt_keys is not None:
            token = self._environment.identity_token
            if settings.jwt_file is not None:
                token = _trusted(settings.jwt_file).decode("ascii", "replace").strip()
            if not token:
                raise PolicyError(
                    "There is no identity token, so the user counts as unknown.",
                    "Set SESSION_AGENT_IDENTITY_TOKEN, or policy.jwt_file.",
                )
            claims = Claims(
                settings.jwt_user_claim,
                settings.jwt_groups_claim,
                settings.jwt_issuer,
                settings.jwt_audience,
            )
            return verify(token, _trusted(settings.jwt_keys), claims)
        if settings.identity_file is not None:
            return parse_identity(_trusted(settings.identity_file), settings.identity_file), None
        if settings.identity_from_environment and self._environment.identity:
            data = self._environment.identity.encode("utf-8", "surrogateescape")
            return parse_identity(data, "SESSION_AGENT_IDENTITY"), None
        return None, None


def shown(session: Session, limits: Mapping[str, Limit]) -> Session:
    """The session as its user gets to see it: without what is hidden, and no more than the limits allow."""
    mounts = []
    for mount in session.mounts:
        grant = limits[mount.name].grant
        if grant is not Grant.HIDDEN:
            mounts.append(mount if grant is Grant.RW else replace(mount, mode=Mode.RO))
    return replace(session, mounts=tuple(mounts))


def restricted(permissions: Permissions, session: Session) -> Session:
    """The session as its user gets to see it now, with what is wrong as warnings."""
    if not permissions.configured:
        return session
    permits = permissions.now()
    found = shown(session, permissions.limits(session, permits))
    return replace(found, warnings=(*found.warnings, *permits.problems, *loopholes(session)))


def _stamp(path: str) -> tuple[int, ...]:
    """What changes with every change of a file."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _trusted(path: str) -> bytes:
    """The content of a file that decides what is allowed. PolicyError where others could change it."""
    try:
        step = changeable_by(path)
    except OSError as error:
        raise PolicyError(f"{printable(path)} cannot be read: {error.strerror}.") from None
    if step:
        raise PolicyError(
            f"{printable(path)} is not trusted: others than root can change {step}.",
            "It must be root's, and so must every folder above it.",
        )
    return read(path)
