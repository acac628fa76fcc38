"""Which file a move that was cut off was about, if what is at its old name has another number by now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from session_agent.moves.record import Identity, Record, State
from session_agent.moves.recover import Found
from tests.support.moving import Disks, Recorded


def _replace(path: Path, data: bytes, mtime_ns: int) -> None:
    """The file gets another inode number, and this content and time."""
    new = path.with_name("other")
    new.write_bytes(data)
    os.utime(new, ns=(mtime_ns, mtime_ns))
    assert os.stat(new).st_ino != os.stat(path).st_ino
    new.rename(path)


@pytest.mark.parametrize(
    ("data", "later", "background", "found"),
    [
        (b"note", 0, True, Found.AGAIN),  # as rclone numbers its files anew
        (b"note", 1, True, Found.UNDONE),
        (b"longer", 0, True, Found.UNDONE),
        (b"note", 0, False, Found.UNDONE),  # its rename has never returned
    ],
)
def test_one_of_another_number(
    disks: Disks, tmp_path: Path, data: bytes, later: int, background: bool, found: Found
) -> None:
    old, new = disks.source / "old", disks.target / "new"
    old.write_bytes(b"note")
    status = os.stat(old)
    recorded = Recorded(disks, tmp_path / "state")
    record = Record(
        id="000000000001",
        created=1.0,
        source=recorded.end(old),
        target=recorded.end(new),
        source_was=Identity.of(status),
        state=State.STAGING,
        background=background,
    )
    with recorded.journal() as journal:
        journal.write(record)
    _replace(old, data, status.st_mtime_ns + later)
    assert [one.found for one in recorded.recover()] == [found]
    kept, gone = (new, old) if found is Found.AGAIN else (old, new)
    assert kept.read_bytes() == data
    assert not gone.exists()
