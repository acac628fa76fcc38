"""What the running agent tells of its moves, and how they are cancelled and acknowledged."""

from __future__ import annotations

from collections.abc import Callable

import trio

from session_agent.errors import ControlError
from session_agent.lifecycle import move_status
from session_agent.lifecycle.move_status import MoveStatus
from session_agent.lifecycle.moves import no_failure
from session_agent.lifecycle.notices import worth_telling
from session_agent.model import printable
from session_agent.moves.journal import Journal
from session_agent.moves.record import Record
from session_agent.overlay.serve import Overlay


class LiveMoves:
    """The moves of one agent, which may have no journal. To be used in the trio thread."""

    def __init__(self, overlay: Overlay, journal: Journal | None, vault: str) -> None:
        self._overlay = overlay
        self._journal = journal
        self._vault = vault

    def statuses(self) -> list[MoveStatus]:
        """Under way, oldest first; then failed; then the last that ended, without those nobody waited for."""
        views = {view.record.id: view for view in self._overlay.moves()}
        under_way = [
            move_status.under_way(
                view.record,
                self._vault,
                done=(view.bytes, view.files),
                rate=view.rate,
                paused=view.paused,
            )
            for view in views.values()
        ]
        others = [record for record in self._recorded() if record.id not in views]
        return under_way + [move_status.of_record(record, self._vault) for record in others]

    def _recorded(self) -> list[Record]:
        if self._journal is None:
            return []
        # Those that are live, and not the overlay's, are within their rename, or wait for a branch.
        known = [one for one in self._journal.records() if not one.acknowledged]
        counting = sorted(known, key=lambda record: not record.live)
        ended = self._journal.ended()
        return counting + [one for one in ended if one.background or one.kept or one.losses]

    async def cancel(self, move_id: str) -> None:
        """Take that move back. Raises ControlError if it is not under way, or it is too late."""
        if await self._overlay.cancel_move(move_id):
            return
        if any(view.record.id == move_id for view in self._overlay.moves()):
            raise ControlError("It is too late: the move is just being completed.")
        record = self._journal.get(move_id) if self._journal is not None else None
        if record is None or not record.live:
            raise ControlError(
                f"There is no move {printable(move_id)} under way.",
                "`session-agent moves` lists them.",
            )
        if not record.background:
            raise ControlError(
                "The program that asked for it is waiting for its end.",
                "Only what is moved in the background can be taken back.",
            )
        raise ControlError(
            "It is not under way: it waits for a folder that was not there at the agent's start.",
            "`session-agent recover` goes on with it while the agent is stopped.",
        )

    async def acknowledge(self, move_id: str) -> None:
        """A failed move need not be shown any more. Raises ControlError if there is none of that id."""
        journal = self._journal
        if journal is None:
            raise no_failure(move_id)
        try:
            known = await trio.to_thread.run_sync(journal.acknowledge, move_id)
        except OSError as error:
            raise ControlError(f"That cannot be written down: {error.strerror}.") from None
        if not known:
            raise no_failure(move_id)

    def tell_ends(self, tell: Callable[[MoveStatus], None]) -> None:
        """Call `tell` with each background move that has ended, if the user is to hear of it."""

        def on_end(record: Record) -> None:
            ended = move_status.of_record(record, self._vault)
            if worth_telling(ended):
                tell(ended)

        self._overlay.on_move_end(on_end)
