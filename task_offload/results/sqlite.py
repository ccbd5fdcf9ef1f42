"""The book of record: an SQLite file. In: rows and session books. Out: a commit, or a StoreError and nothing recorded.

The table `items` has a row for every item, in the order of recording, unique by device, session and sequence; the
table `sessions` has each session's books. Both change in one transaction (WAL, synchronous=FULL), so after a crash of
the process or the machine a session's watermark tells exactly which of its items are recorded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from task_offload.errors import StoreError
from task_offload.results.base import Row, SessionBooks, SessionKey

SCHEMA: Final = 1
TIDY_INTERVAL_S: Final = 60.0
TIDY_SESSIONS_S: Final = 3600.0
SLICE_ROWS: Final = 100  # old rows that a commit deletes, beside twice as many as it writes
IDLE_SLICE_ROWS: Final = 2000  # old rows that `tidy` deletes
SESSIONS_KEPT: Final = 1000  # newest sessions of each device, whose watermarks `keep_days` never deletes
BUSY_S: Final = 1.0  # how long a commit waits for another writer, somebody's sqlite3 shell
WAL_PAGES: Final = 4000  # 16 MB between checkpoints; 500 devices: 5.2 kB written for each row, 6.8 at SQLite's 1000
WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
CHUNK_ROWS: Final = 1024  # rows in one statement; 9 values each stay under SQLite's 32,766
DAY_S: Final = 86400.0

_TABLES: Final = """
CREATE TABLE items (
    device TEXT NOT NULL,
    session TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    split INTEGER NOT NULL,
    ending TEXT NOT NULL,
    detail TEXT,
    result TEXT,
    captured_at REAL NOT NULL,
    finished_at REAL NOT NULL,
    UNIQUE (device, session, sequence)
);
CREATE TABLE sessions (
    device TEXT NOT NULL,
    session TEXT NOT NULL,
    watermark INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    filtered INTEGER NOT NULL,
    dropped TEXT NOT NULL,
    cloud_cpu_s REAL NOT NULL,
    bytes_received INTEGER NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (device, session)
) WITHOUT ROWID;
"""
_COLUMNS: Final = 9  # of either table
_INSERT_ITEMS: Final = ("INSERT INTO items", "ON CONFLICT DO NOTHING")
_INSERT_SESSIONS: Final = (
    "INSERT INTO sessions",
    "ON CONFLICT DO UPDATE SET watermark = excluded.watermark, completed = excluded.completed,"
    " filtered = excluded.filtered, dropped = excluded.dropped, cloud_cpu_s = excluded.cloud_cpu_s,"
    " bytes_received = excluded.bytes_received, updated_at = excluded.updated_at",
)
_BOOKS: Final = (
    "SELECT watermark, completed, filtered, dropped, cloud_cpu_s, bytes_received FROM sessions"
    " WHERE device = ? AND session = ?"
)
_DELETE_ROWS: Final = (
    "DELETE FROM items WHERE rowid IN (SELECT rowid FROM items ORDER BY rowid LIMIT ?) AND finished_at < ?"
)
_DELETE_SESSIONS: Final = (
    "DELETE FROM sessions WHERE (device, session) IN (SELECT device, session FROM"
    " (SELECT *, row_number() OVER (PARTITION BY device ORDER BY updated_at DESC) AS newest FROM sessions)"
    " WHERE newest > ? AND updated_at < ?)"
)
_REASONS: Final = {  # what SQLite says, and what we say
    "full": "the disk is full; make room, and recording goes on",
    "locked": "another program keeps it locked; end that program's transaction, and recording goes on",
    "disk I/O": "its disk cannot be read or written; is it full, or failing?",
    "readonly": "it cannot be written; check the owner of the file and of its folder",
    "unable to open": "it cannot be opened; check the owner of the file and of its folder",
    "not a database": "it is not an SQLite file; name another file, or move this one away",
    "malformed": "it is damaged; move it away, and start again",
}


class SqliteStore:
    """Results in an SQLite file, which anyone may read while the server runs.

    `books` may be called from any thread, everything else from one thread at a time.

    Arguments:
        path: the file; made if it is not there.
        keep_days: rows that finished longer ago are deleted, in slices beside the commits. The pages are used again,
            so the file stops growing but does not shrink. None keeps everything.
        clock: gives Unix seconds.

    Raises:
        StoreError: the file cannot be used; the message says why.
    """

    def __init__(self, path: Path, keep_days: float | None = None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._keep_s = None if keep_days is None else keep_days * DAY_S
        self._clock = clock
        self._look_at = self._sessions_at = -math.inf  # when to look for old rows and sessions next
        self._has_old = False
        self._reading = threading.Lock()
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, _lock(path))
            try:
                self._writer = opened.enter_context(contextlib.closing(_connect(path)))
                self._prepare()
                self._reader = opened.enter_context(contextlib.closing(_connect(path)))
                self._reader.execute("PRAGMA query_only = 1")
                _sync_folder(path)
            except (sqlite3.Error, OSError) as error:
                raise self._error(error) from error
            self._opened = opened.pop_all()

    def books(self, device: str, session: str) -> SessionBooks:
        """What is recorded of a session; new books if nothing is.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            with self._reading:
                row = self._reader.execute(_BOOKS, (device, session)).fetchone()
        except sqlite3.Error as error:
            raise self._error(error) from error
        if row is None:
            return SessionBooks()
        watermark, completed, filtered, dropped, cloud_cpu_s, bytes_received = row
        return SessionBooks(watermark, completed, filtered, json.loads(dropped), cloud_cpu_s, bytes_received)

    def write(self, rows: Sequence[Row], books: Mapping[SessionKey, SessionBooks]) -> None:
        """Records rows and books in one transaction. A row that is there already stays as it is.

        Raises:
            StoreError: nothing of it is recorded, and the store stays usable.
        """
        sessions = [_session_row(key, books[key], self._clock()) for key in sorted(books)]
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            self._delete_old(2 * len(rows) + SLICE_ROWS)
            self._insert(_INSERT_ITEMS, sorted(rows, key=itemgetter(0, 1, 2)))
            self._insert(_INSERT_SESSIONS, sessions)
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise self._error(error) from error

    def tidy(self) -> bool:
        """Deletes some of what is older than `keep_days`. Returns whether there is more to delete.

        Raises:
            StoreError: the file cannot be written.
        """
        if self._keep_s is None:
            return False
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            self._delete_old(IDLE_SLICE_ROWS)
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise self._error(error) from error
        return self._has_old

    def close(self) -> None:
        """Closes the file; what was written stays."""
        with contextlib.suppress(sqlite3.Error):
            self._opened.close()

    def _prepare(self) -> None:
        """Makes the tables, or checks that they are ours."""
        if self._writer.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreError(f"results {self._path}: SQLite cannot keep a WAL there; put the file on a local disk")
        self._writer.execute("PRAGMA synchronous = FULL")
        self._writer.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        self._writer.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        schema = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if schema == SCHEMA:
            return
        if schema != 0 or self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(f"results {self._path}: it holds other tables than this version's; name another file")
        self._writer.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")

    def _insert(self, statement: tuple[str, str], rows: Sequence[tuple[Any, ...]]) -> None:
        """Inserts rows by one statement for each chunk, and not by `executemany`.

        The interpreter lock is given up and waited for at every step of a statement, up to 5 ms each beside a busy
        thread. With it, 200 rows took 170 ms by `executemany` and 35 ms so. Statements come in few lengths, so that
        SQLite keeps them prepared; the last one is filled up with empty rows, which it leaves out.
        """
        for begin in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[begin : begin + CHUNK_ROWS]
            length = _statement_length(len(chunk))
            values: list[Any] = [value for row in chunk for value in row]
            values += [None] * (_COLUMNS * (length - len(chunk)))
            self._writer.execute(_insert_statement(*statement, length), values)

    def _delete_old(self, limit: int) -> None:
        """Deletes up to `limit` of the oldest rows, if it is time to, and they are old; now and then, old sessions.

        Rows lie in the order of recording, so the oldest come first, and their pages are used again as a whole.
        """
        if self._keep_s is None:
            return
        now = self._clock()
        if now >= self._sessions_at:
            self._sessions_at = now + TIDY_SESSIONS_S
            self._writer.execute(_DELETE_SESSIONS, (SESSIONS_KEPT, now - self._keep_s))
        if now >= self._look_at or self._has_old:
            self._look_at = now + TIDY_INTERVAL_S
            self._has_old = self._writer.execute(_DELETE_ROWS, (limit, now - self._keep_s)).rowcount == limit

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")

    def _error(self, error: Exception) -> StoreError:
        text = str(error)
        reason = next((ours for theirs, ours in _REASONS.items() if theirs in text), text)
        return StoreError(f"results {self._path}: {reason}")


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _session_row(key: SessionKey, books: SessionBooks, now: float) -> tuple[Any, ...]:
    dropped = json.dumps(dict(books.dropped), separators=(",", ":")) if books.dropped else "{}"
    return *key, books.watermark, books.completed, books.filtered, dropped, books.cloud_cpu_s, books.bytes_received, now


@cache
def _insert_statement(before: str, after: str, rows: int) -> str:
    places = ",".join(["(" + ",".join("?" * _COLUMNS) + ")"] * rows)
    return f"{before} SELECT * FROM (VALUES {places}) WHERE column1 IS NOT NULL {after}"


@cache
def _statement_length(rows: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 ... that holds this many rows."""
    length = 1
    while length < rows:
        length = length * 3 // 2 if length.bit_count() == 1 and length > 1 else -(-length * 4 // 3)
    return length


def _lock(path: Path) -> int:
    """Makes sure that no other server writes to the file. Its lock is a file beside it: closing any descriptor of the
    file itself would end SQLite's own locks."""
    name = f"{path}-lock"
    try:
        lock_file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"results {path}: {error.strerror}: {name}; name a file in a folder that you can write"
        ) from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_file)
        raise StoreError(f"results {path}: another server writes to it; stop that one, or name another file") from error
    return lock_file


def _sync_folder(path: Path) -> None:
    """Makes the new file's name survive a power cut; SQLite syncs only what is in it."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
