"""The journal of moves in flight: one file in the state directory, to which records are appended.

A header names the format's version; each further line is a checksum and a record in JSON, and the last line
of a move counts. A record is on disk before the step that it announces.

The file belongs to the session user, who can write anything into it. So nothing in it is believed beyond
what that user could do anyway (see recover). What cannot be read is set aside and reported, never guessed
at, and never deleted.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable

import msgspec

from session_agent.errors import UserFileError
from session_agent.fsutil.at import LISTING, open_at
from session_agent.fsutil.credentials import acting_as
from session_agent.model import SessionUser
from session_agent.moves.record import Record, State

NAME = b"moves.journal"
SET_ASIDE = b"moves.journal.unread-"
VERSION = 1
_NEW = NAME + b".new-"
_HEADER = b"session-agent moves journal "
_READ_LIMIT = 64 << 20  # bytes; ten thousand moves in flight take a tenth of it
_COMPACT_BYTES = 256 << 10  # a journal grown larger is written anew when little of it counts
_REMEMBERED = 50  # moves that have ended and are still shown


class Journal:
    """The journal of one state directory. Any thread may write to it."""

    def __init__(self, folder: int, user: SessionUser) -> None:
        """`folder` is a descriptor of the state directory; it stays the caller's.

        UserFileError where the file cannot be used.
        """
        self.problems: list[str] = []
        self._user = user
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._ended: deque[Record] = deque(maxlen=_REMEMBERED)
        self._size = 0
        try:
            with acting_as(user):
                self._folder = os.open(b".", LISTING, dir_fd=folder)
                self._fd = -1
                try:
                    self._load()
                    self._fd = self._write_anew()
                except BaseException:
                    os.close(self._folder)
                    raise
                self.problems += _unread(self._folder)
        except OSError as error:
            raise UserFileError(
                f"The journal of moves in the state directory cannot be used: {error.strerror}.",
                "Make the state directory writable for the session user, or set `state_dir`.",
            ) from None

    def records(self) -> list[Record]:
        """The moves that are not over, and failures nobody has acknowledged; oldest first.

        And those of which a copy that is not needed could not be removed.
        """
        with self._lock:
            return list(self._records.values())

    def ended(self) -> list[Record]:
        """The last moves that have ended since this journal was opened; oldest first."""
        with self._lock:
            return list(self._ended)

    def get(self, move_id: str) -> Record | None:
        """The record of that move, if it counts still."""
        with self._lock:
            return self._records.get(move_id)

    def write(self, record: Record, *, durable: bool = True) -> None:
        """Append `record`; with `durable` it is on disk when this returns. OSError if it is not."""
        self.write_all([record], durable=durable)

    def write_all(self, records: Iterable[Record], *, durable: bool = True) -> None:
        """Append several records at once."""
        with self._lock:
            data = b"".join(_line(record) for record in records)
            _append(self._fd, data)
            self._size += len(data)
            if durable:
                os.fdatasync(self._fd)
            for record in records:
                self._take(record)
            if self._size > _COMPACT_BYTES and self._size > 4 * _size_of(self._records.values()):
                self._compact()

    def acknowledge(self, move_id: str) -> bool:
        """A failed move need not be shown any more; False if there is none of that id."""
        record = self.get(move_id)
        if record is None or record.state is not State.FAILED:
            return False
        self.write(msgspec.structs.replace(record, state=State.CANCELLED, ended=time.time()))
        return True

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            for fd in (self._fd, self._folder):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._folder = -1

    def _take(self, record: Record) -> None:
        if _counts(record):
            self._records[record.id] = record
        else:
            self._records.pop(record.id, None)
            self._ended.append(record)

    def _load(self) -> None:
        for name in map(os.fsencode, os.listdir(self._folder)):
            if name.startswith(_NEW):  # of a run that was killed while it wrote the journal anew
                os.unlink(name, dir_fd=self._folder)
        data = _contents(self._folder)
        if data is None:
            return
        records, problem = _parse(data)
        for record in records:
            self._take(record)
        if problem:
            kept = SET_ASIDE + str(int(time.time())).encode() + secrets.token_hex(2).encode()
            # A link, not a rename: until the new journal is in place this one is the journal.
            os.link(NAME, kept, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)

    def _compact(self) -> None:
        # With the journal as it is nothing is lost, so failing at this is no error.
        with contextlib.suppress(OSError), acting_as(self._user):
            fd = self._write_anew()
            os.close(self._fd)
            self._fd = fd

    def _write_anew(self) -> int:
        """Put a journal of the records that count in the place of the present one; its descriptor."""
        new = _NEW + secrets.token_hex(4).encode()
        fd = open_at(self._folder, new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            data = _HEADER + b"%d\n" % VERSION
            data += b"".join(_line(record) for record in self._records.values())
            _append(fd, data)
            os.fsync(fd)
            os.rename(new, NAME, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(new, dir_fd=self._folder)
            raise
        self._size = len(data)
        return fd


def read(folder: int) -> tuple[list[Record], list[str]]:
    """The moves that `Journal.records` would answer, and what is wrong; changes nothing.

    `folder` is a descriptor of the state directory; all is done with the rights that the caller has. OSError.
    """
    listing = os.open(b".", LISTING, dir_fd=folder)
    try:
        data = _contents(listing)
        problems = _unread(listing)
    finally:
        os.close(listing)
    records, problem = ([], "") if data is None else _parse(data)
    if problem:
        problems.append(f"The journal of moves cannot be read as a whole: {problem}.")
    last = {record.id: record for record in records}
    return [record for record in last.values() if _counts(record)], problems


def _counts(record: Record) -> bool:
    return record.live or record.leftover or record.state is State.FAILED


def _contents(folder: int) -> bytes | None:
    """What the journal holds, None if there is none; more than the limit is cut off behind it."""
    try:
        fd = open_at(folder, NAME, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read(_READ_LIMIT + 1)


def _parse(data: bytes) -> tuple[list[Record], str]:
    """Every record in `data`, in its order, and what is wrong with it, if anything is."""
    if len(data) > _READ_LIMIT:
        return [], "too large"
    header, _, rest = data.partition(b"\n")
    if not header.startswith(_HEADER) or header != _HEADER + b"%d" % VERSION:
        return [], "another version" if data else ""
    records = []
    problem = ""
    for line in rest.split(b"\n"):
        if not line:
            continue
        try:
            checksum, _, text = line.partition(b" ")
            if int(checksum, 16) != zlib.crc32(text):
                raise ValueError
            record = msgspec.json.decode(text, type=Record)
            if not record.sound:
                raise ValueError
            records.append(record)
        except (ValueError, msgspec.MsgspecError):
            problem = "a broken record"
    return records, problem


def _unread(folder: int) -> list[str]:
    names = sorted(os.fsencode(name) for name in os.listdir(folder))
    return [
        f"{os.fsdecode(name)} in the state directory holds moves that could not be read; it is kept"
        for name in names
        if name.startswith(SET_ASIDE)
    ]


def _line(record: Record) -> bytes:
    text = msgspec.json.encode(record)
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _size_of(records: Iterable[Record]) -> int:
    return sum(len(_line(record)) for record in records)


def _append(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
