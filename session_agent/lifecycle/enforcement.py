"""Keeping the served vault to the permission policy, from the start and as things change."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TypeAlias

import trio

from session_agent.fsutil.credentials import AGENT, acting_as, assume
from session_agent.lifecycle.audit import Audit
from session_agent.lifecycle.loopholes import loopholes
from session_agent.lifecycle.permissions import Permissions, Permits, shown
from session_agent.model import Grant, Session
from session_agent.policy.limit import Limit

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5  # from one look at the files to the next
# Even if no file changes and no window opens: clocks may be set, and change with the season.
_AGAIN_SECONDS = 30.0

Restrict: TypeAlias = Callable[[Mapping[str, Limit]], Awaitable[None]]


class Enforcement:
    """What holds, what the user is shown, and the trail of how that came."""

    def __init__(self, permissions: Permissions, session: Session, audit: Audit) -> None:
        self._permissions = permissions
        self._session = session
        self._audit = audit
        self._loopholes = loopholes(session)
        self._permits = permissions.now()
        self.roots = permissions.limits(session, self._permits)
        self._tell(None, self._permits)

    async def plug(self, session: Session, restrict: Restrict) -> None:
        """Before a branch is shown: what the policy says of the branches that there are now."""
        self._session = session
        self._loopholes = loopholes(session)
        self.roots = self._permissions.limits(session, self._permits)
        await restrict(self.roots)

    @property
    def session(self) -> Session:
        """The session as its user gets to see it now."""
        return shown(self._session, self.roots)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the policy or the identity, and what leads round them."""
        return (*self._permits.problems, *self._loopholes)

    async def run(self, restrict: Restrict, changed: Callable[[], None]) -> None:
        """Look for changes until cancelled; `changed` is called after the limits hold that follow."""
        looked = trio.current_time()
        while True:
            await trio.sleep(_LOOK_SECONDS)
            until = self._permits.until
            due = until is not None and datetime.now(UTC) >= until
            if not due and trio.current_time() < looked + _AGAIN_SECONDS:
                with acting_as(AGENT):
                    if not self._permissions.changed():
                        continue
            looked = trio.current_time()
            permits = await trio.to_thread.run_sync(self._ask)  # a large policy takes its time
            before, self._permits = self._permits, permits
            roots = self._permissions.limits(self._session, permits)
            if roots != self.roots:
                self.roots = roots
                await restrict(roots)
                log.info("the permissions have changed")
                changed()
            with acting_as(AGENT):
                self._tell(before, permits)

    def _ask(self) -> Permits:
        assume(AGENT)
        return self._permissions.now()

    def refused(self, operation: str, path: str, uid: int) -> None:
        """Note an operation that the overlay has refused."""
        with acting_as(AGENT):
            self._audit.refused(operation, path, uid)

    def _tell(self, before: Permits | None, now: Permits) -> None:
        """The trail: who has which grant, and why; what has changed."""
        had = {} if before is None else _modes(before)
        has = _modes(now)
        if now.problems != (() if before is None else before.problems):
            for problem in now.problems:
                log.warning("%s", problem)
                self._audit.write("problem", problem=problem)
        for name, (mode, because) in has.items():
            old = had.get(name, (Grant.HIDDEN, ""))[0]
            if mode is not old:
                self._audit.write(
                    "grant", user=now.user, folder=name, mode=mode, before=old, because=because
                )
        for name in had.keys() - has.keys():
            if had[name][0] is not Grant.HIDDEN:
                self._audit.write(
                    "grant",
                    user=now.user,
                    folder=name,
                    mode=Grant.HIDDEN,
                    before=had[name][0],
                    because="; ".join(now.problems) or "the policy has it no more",
                )


def _modes(permits: Permits) -> dict[str, tuple[Grant, str]]:
    return {
        f"{grant.name}/{grant.subfolder}" if grant.subfolder else grant.name: (
            grant.mode,
            grant.because,
        )
        for grant in permits.grants or ()
    }
