"""One of several programs that work on a SQLite database at the same time.

    python sqlite_client.py DATABASE JOURNAL NAME COUNT

makes COUNT transactions, and reads between them; each must find a state that some transaction left.
"""

from __future__ import annotations

import hashlib
import sqlite3
import sys


def main(path: str, journal: str, name: str, count: int) -> None:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    (mode,) = connection.execute(f"PRAGMA journal_mode={journal}").fetchone()
    assert mode == journal, mode
    connection.execute("PRAGMA cache_size=20")  # in pages: nearly all is read from the file
    seen = 0
    for number in range(count):
        data = hashlib.sha256(f"{name} {number}".encode()).digest() * (1 + number % 90)
        connection.execute("BEGIN IMMEDIATE")
        row = (name, number, data, hashlib.sha256(data).hexdigest())
        connection.execute("INSERT INTO notes VALUES (?, ?, ?, ?)", row)
        connection.execute("UPDATE totals SET notes = notes + 1, bytes = bytes + ?", (len(data),))
        connection.execute("ROLLBACK" if number % 10 == 9 else "COMMIT")
        seen = check(connection, seen)
    connection.close()


def check(connection: sqlite3.Connection, seen: int) -> int:
    """Within one reading transaction the table and the totals agree; nothing is gone."""
    connection.execute("BEGIN")
    totals = connection.execute("SELECT notes, bytes FROM totals").fetchone()
    counted = connection.execute("SELECT count(*), total(length(data)) FROM notes").fetchone()
    assert totals == counted, (totals, counted)
    last = connection.execute("SELECT data, digest FROM notes ORDER BY rowid DESC LIMIT 3")
    for data, digest in last.fetchall():
        assert hashlib.sha256(data).hexdigest() == digest
    connection.execute("COMMIT")
    assert totals[0] >= seen
    return int(totals[0])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
