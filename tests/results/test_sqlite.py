"""The book of record: what is in the file after commits, failures, restarts and deletions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from task_offload.errors import StoreError
from task_offload.results.base import Row, SessionBooks
from task_offload.results.sqlite import CHUNK_ROWS, DAY_S, SESSIONS_KEPT, TIDY_INTERVAL_S, SqliteStore
from tests.results.records import OTHER, SESSION, books, row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    store.close()


def read(path: Path, query: str = "SELECT * FROM items ORDER BY device, session, sequence") -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_the_table_is_as_promised_to_those_who_query_it(store: SqliteStore, path: Path) -> None:
    columns = [(name, kind) for _, name, kind, *_ in read(path, "PRAGMA table_info(items)")]
    assert columns == [
        ("device", "TEXT"), ("session", "TEXT"), ("sequence", "INTEGER"), ("split", "INTEGER"), ("ending", "TEXT"),
        ("detail", "TEXT"), ("result", "TEXT"), ("captured_at", "REAL"), ("finished_at", "REAL"),
    ]  # fmt: skip
    assert read(path, "SELECT type FROM sqlite_master WHERE name = 'items'") == [("table",)]
    assert read(path, "PRAGMA journal_mode") == [("wal",)]


def test_rows_are_there_for_others_as_soon_as_they_are_written(store: SqliteStore, path: Path) -> None:
    rows = [row(0, result='{"x":1}'), row(1, ending="filtered", detail="find_contours"), row(0, session=OTHER)]
    store.write(rows, books(2))
    assert read(path) == [tuple(each) for each in rows]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7, 100, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS - 1])
def test_a_commit_may_have_any_size(store: SqliteStore, count: int, path: Path) -> None:
    store.write([row(i) for i in range(count)], books(count))
    assert [each[2] for each in read(path)] == list(range(count))


def test_a_row_is_made_once(store: SqliteStore, path: Path) -> None:
    store.write([row(0, result="1")], books(1))
    store.write([row(0, result="2"), row(1, result="3"), row(1, result="4")], books(2))
    assert [(each[2], each[6]) for each in read(path)] == [(0, "1"), (1, "3")]
    with pytest.raises(sqlite3.IntegrityError):
        read(path, "INSERT INTO items SELECT * FROM items")


def test_books_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    written = SessionBooks(8, 5, 1, {"overload": 2}, 0.125, 4096)
    store = SqliteStore(path)
    assert store.books("pi-1", SESSION) == SessionBooks()
    store.write([row(7)], {("pi-1", SESSION): written, ("pi-2", SESSION): SessionBooks(1, 1)})
    assert store.books("pi-1", SESSION) == written
    store.close()
    store = SqliteStore(path)
    assert store.books("pi-1", SESSION) == written
    assert store.books("pi-2", SESSION) == SessionBooks(1, 1)
    assert store.books("pi-1", OTHER) == SessionBooks()
    store.close()


def test_a_failed_commit_leaves_nothing_and_the_store_usable(store: SqliteStore, path: Path) -> None:
    broken = row(1)._replace(finished_at=None)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="NOT NULL"):
        store.write([row(0), broken, row(2)], books(3))
    assert read(path) == []
    assert store.books("pi-1", SESSION).watermark == 0
    store.write([row(0)], books(1))
    assert len(read(path)) == 1


def fill(store: SqliteStore, path: Path, begin: int) -> int:
    """Writes until the disk is full. Returns the sequence of the first row that is not in the file."""
    for sequence in range(begin, begin + 100_000, 50):
        rows = [row(i, result='"' + "x" * 1000 + '"') for i in range(sequence, sequence + 50)]
        try:
            store.write(rows, books(sequence + 50))
        except StoreError as error:
            full = str(error)
            break
    assert full == f"results {path}: the disk is full; make room, and recording goes on"
    return sequence


def test_a_full_database_is_told_and_goes_on_when_there_is_room(store: SqliteStore, path: Path) -> None:
    store._writer.execute("PRAGMA max_page_count = 100")  # SQLite's own way to be out of room
    first_missing = fill(store, path, 0)
    assert store.books("pi-1", SESSION).watermark == first_missing == len(read(path))
    store._writer.execute("PRAGMA max_page_count = 100000")
    store.write([row(first_missing)], books(first_missing + 1))
    assert len(read(path)) == first_missing + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_told_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    path = small_disk / "results.sqlite"
    store = SqliteStore(path)
    first_missing = fill(store, path, 0)
    assert store.books("pi-1", SESSION).watermark == first_missing
    ballast.unlink()
    store.write([row(first_missing)], books(first_missing + 1))
    again = fill(store, path, first_missing + 1)
    store.close()
    assert again > first_missing
    assert [each[2] for each in read(path)] == list(range(again))


def test_a_locked_database_costs_one_attempt(store: SqliteStore, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    store._writer.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another program keeps it locked"):
        store.write([row(0)], books(1))
    other.execute("ROLLBACK")
    other.close()
    store.write([row(0)], books(1))
    assert len(read(path)) == 1


def test_a_long_query_of_somebody_does_not_stop_recording(store: SqliteStore, path: Path) -> None:
    store.write([row(i) for i in range(10)], books(10))
    other = sqlite3.connect(path)
    query = other.execute("SELECT * FROM items")
    query.fetchone()
    store.write([row(10)], books(11))
    assert len(query.fetchall()) == 9
    other.close()


def test_a_second_server_on_the_same_file_is_refused(store: SqliteStore, path: Path) -> None:
    with pytest.raises(StoreError, match="another server writes to it"):
        SqliteStore(path)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    path.write_text("these are not the results that you are looking for\n" * 100)
    with pytest.raises(StoreError, match="not an SQLite file"):
        SqliteStore(path)
    assert path.read_text().startswith("these are not")


def test_a_damaged_database(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    store = SqliteStore(path)
    store.write([row(i) for i in range(5000)], books(5000))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    with contextlib.ExitStack() as opened, pytest.raises(StoreError, match="damaged"):
        opened.enter_context(contextlib.closing(SqliteStore(path))).write([row(5000)], books(5001))


def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    read(path, "CREATE TABLE items (name TEXT)")
    with pytest.raises(StoreError, match="holds other tables"):
        SqliteStore(path)
    assert read(path, "SELECT name FROM sqlite_master") == [("items",)]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        SqliteStore(tmp_path / "nowhere" / "results.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="name a file in a folder that you can write"):
            SqliteStore(tmp_path / "results.sqlite")
    finally:
        tmp_path.chmod(0o700)


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def finished(day: float, begin: int, count: int) -> list[Row]:
    return [row(i, finished_at=day * DAY_S) for i in range(begin, begin + count)]


def test_keep_deletes_old_rows_in_slices_beside_the_commits(path: Path) -> None:
    clock = Clock(100 * DAY_S)
    store = SqliteStore(path, keep_days=2, clock=clock)
    store.write(finished(100, 0, 1000), books(1000))
    clock.now = 103 * DAY_S
    left = []
    for i in range(20):
        store.write(finished(103, 1000 + i, 1), books(1001 + i))
        left.append(len(read(path)) - (i + 1))
    assert left[0] == 1000 - 102  # twice what is written, and a hundred
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert store.books("pi-1", SESSION).watermark == 1020
    store.close()


def test_keep_deletes_old_rows_when_nothing_is_written(path: Path) -> None:
    clock = Clock(100 * DAY_S)
    store = SqliteStore(path, keep_days=2, clock=clock)
    store.write(finished(100, 0, 2500) + finished(101.5, 2500, 10), books(2510))
    clock.now = 103 * DAY_S
    assert store.tidy()
    assert not store.tidy()
    assert [each[2] for each in read(path)] == list(range(2500, 2510))
    store.close()


def test_nothing_is_deleted_without_keep(store: SqliteStore, path: Path) -> None:
    store.write(finished(0, 0, 10), books(10))
    assert not store.tidy()
    assert len(read(path)) == 10


def test_keep_bounds_the_file(tmp_path: Path) -> None:
    clock = Clock(0.0)
    path = tmp_path / "results.sqlite"
    store = SqliteStore(path, keep_days=1, clock=clock)
    sizes = []
    sequence = 0
    for _ in range(60):
        for _ in range(10):
            clock.now += max(DAY_S / 100, TIDY_INTERVAL_S)
            store.write([row(sequence + i, finished_at=clock.now) for i in range(100)], books(sequence + 100))
            sequence += 100
        store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(path.stat().st_size)
    store.close()
    assert max(sizes[15:]) <= 1.1 * sizes[12]
    assert read(path, "SELECT count(*) FROM items")[0][0] < 10_500


def test_watermarks_outlive_their_rows_and_old_sessions_are_bounded(tmp_path: Path) -> None:
    clock = Clock(0.0)
    store = SqliteStore(tmp_path / "results.sqlite", keep_days=1, clock=clock)
    names = [f"{i:032x}" for i in range(SESSIONS_KEPT + 50)]
    for i, name in enumerate(names):
        clock.now = float(i)
        store.write([], books(7, session=name))
    store.write([], books(7, device="pi-2", session=names[0]))
    clock.now = 10 * DAY_S
    store.tidy()
    kept = {name for name in names if store.books("pi-1", name).watermark}
    assert kept == set(names[50:])
    assert store.books("pi-2", names[0]).watermark == 7
    store.close()
