"""The book of record: rows a second, what a commit takes, and what a row costs on the disk.

    python3 -m benchmarks.store [--rows 60000] [--folder DIR] [--rate 8000]

Three tables:

    commits     `SqliteStore.write` with commits of one size, rows of 100 devices in turn; without `--keep`, and with it
                in its steady state, where every row written pushes an old one out
    recorder    `Recorder` fed at a steady rate from 10, 100 and 500 devices, from `add` to `on_recorded`; once more
                beside a thread that computes in Python all the time
    layouts     the table as it is, beside what it could have been: keyed by its columns instead of a row number
                (WITHOUT ROWID), and with no index at all

Bytes written are what the process gave to the disk (/proc/self/io): log, checkpoints and all. Put DIR on the disk that
is meant; on a tmpfs a commit costs nothing.
"""

from __future__ import annotations

import argparse
import resource
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.harness import print_table
from task_offload.results import sqlite
from task_offload.results.base import Record, Row, SessionBooks
from task_offload.results.recorder import Recorder
from task_offload.results.sqlite import DAY_S, SqliteStore

RESULT = '{"x":123.5,"y":44.25,"radius":12.1}'
COMMITS = (1, 8, 32, 128, 512, 2048)
KEPT_ROWS = 20_000
LAYOUTS = {
    "row number, unique index": sqlite._TABLES,
    "keyed by its columns": sqlite._TABLES.replace(
        "UNIQUE (device, session, sequence)\n)", "PRIMARY KEY (device, session, sequence)\n) WITHOUT ROWID"
    ),
    "no index": sqlite._TABLES.replace(",\n    UNIQUE (device, session, sequence)", ""),
}


class Meter:
    """CPU time and bytes written by this process since it was made."""

    def __init__(self) -> None:
        self._cpu_s = time.process_time()
        self._written = _bytes_written()
        self._began = time.perf_counter()

    def read(self) -> tuple[float, float, int]:
        """Seconds, CPU seconds, bytes."""
        return (
            time.perf_counter() - self._began,
            time.process_time() - self._cpu_s,
            _bytes_written() - self._written,
        )


def _bytes_written() -> int:
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def rows_in_turn(devices: int, row_s: float) -> Iterator[Row]:
    """Rows of the devices in turn, for ever, finished `row_s` seconds apart."""
    names = [(f"pi-{i:03d}", f"{i:032x}") for i in range(devices)]
    now = DAY_S
    sequence = 0
    while True:
        for device, session in names:
            now += row_s
            yield Row(device, session, sequence, 3, "completed", None, RESULT, now - 0.1, now)
        sequence += 1


def measure_commits(folder: Path, rows: int, size: int, devices: int, keep: bool) -> list[Any]:
    """One row of the table: commits of one size."""
    clock = [DAY_S]
    row_s = sqlite.TIDY_INTERVAL_S / 2000  # of the store's clock: it looks for old rows every 2000 rows
    keep_days = KEPT_ROWS * row_s / DAY_S if keep else None
    path = folder / "results.sqlite"
    store = SqliteStore(path, keep_days, lambda: clock[0])
    source = rows_in_turn(devices, row_s)

    def commit(count: int) -> float:
        batch = [next(source) for _ in range(count)]
        clock[0] = batch[-1].finished_at
        books = {row[:2]: SessionBooks(row.sequence + 1, row.sequence + 1) for row in batch}
        began = time.perf_counter()
        store.write(batch, books)
        return time.perf_counter() - began

    for _ in range(2 * KEPT_ROWS // 1000 if keep else 0):
        commit(1000)
    commits = max(50, min(2000, rows // size))
    meter = Meter()
    times = [commit(size) for _ in range(commits)]
    took_s, cpu_s, written = meter.read()
    store.close()
    bytes_per_row = path.stat().st_size / (KEPT_ROWS + 2000 if keep else commits * size)
    count = commits * size
    return [
        size, devices, "yes" if keep else "no", count / took_s, f"{cpu_s / count * 1e6:.1f}", bytes_per_row,
        written / count, *_percentiles_ms(times),
    ]  # fmt: skip


def _percentiles_ms(times_s: list[float]) -> list[str]:
    cuts = quantiles(times_s, n=100)
    return [f"{1000 * each:.2f}" for each in (cuts[49], cuts[98], max(times_s))]


def measure_recorder(folder: Path, rate: float, seconds: float, devices: int, busy: bool) -> list[Any]:
    """One row of the table: a recorder fed at a steady rate."""
    added: dict[tuple[str, int], float] = {}
    waits: list[float] = []
    commits = [0]

    def recorded(records: Any, _: Any) -> None:
        now = time.perf_counter()
        commits[0] += 1
        waits.extend(now - added.pop((each.device, each.sequence)) for each in records)

    recorder = Recorder(SqliteStore(folder / "results.sqlite"), on_recorded=recorded)
    over = threading.Event()
    if busy:
        threading.Thread(target=_compute, args=(over,), daemon=True).start()
    source = rows_in_turn(devices, 1.0)
    result = {"x": 123.5, "y": 44.25, "radius": 12.1}
    meter = Meter()
    began = time.perf_counter()
    count = 0
    while (now := time.perf_counter() - began) < seconds:
        for _ in range(int(now * rate) - count):
            row = next(source)
            added[row.device, row.sequence] = time.perf_counter()
            recorder.add([Record(row.device, row.session, row.sequence, 3, "completed", None, result, 1.0, 2.0)])
            count += 1
        time.sleep(0.001)
    most_waiting = recorder.waiting
    recorder.close(60)
    over.set()
    took_s, cpu_s, written = meter.read()
    return [
        devices, "yes" if busy else "no", count / took_s, count / commits[0], most_waiting,
        "-" if busy else f"{cpu_s / count * 1e6:.1f}", written / count, *_percentiles_ms(waits),
    ]  # fmt: skip


def _compute(over: threading.Event) -> None:
    while not over.is_set():
        sum(range(1000))


def measure_layout(folder: Path, name: str, rows: int, devices: int) -> list[Any]:
    """One row of the table: another layout of `items`, written by the store's own statements."""
    as_it_is = sqlite._TABLES
    sqlite._TABLES = LAYOUTS[name]  # type: ignore[misc]
    try:
        measured = measure_commits(folder, rows, 128, devices, keep=False)
    finally:
        sqlite._TABLES = as_it_is  # type: ignore[misc]
    _, _, _, per_s, cpu_us, bytes_per_row, written, p50, p99, _ = measured
    return [name, devices, per_s, cpu_us, bytes_per_row, written, p50, p99]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the book of record.")
    parser.add_argument("--rows", type=int, default=60_000, help="rows of each measurement (default 60,000)")
    parser.add_argument("--rate", type=float, default=8000, help="records a second for the recorder (default 8,000)")
    parser.add_argument("--seconds", type=float, default=5, help="how long the recorder is fed (default 5)")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the temporary folder)")
    given = parser.parse_args()

    def fresh() -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(dir=given.folder)

    print(f"SQLite {sqlite3.sqlite_version}\n\nCommits\n")
    table = []
    for keep in (False, True):
        for size in COMMITS:
            with fresh() as folder:
                table.append(measure_commits(Path(folder), given.rows, size, 100, keep))
    head = ["rows/commit", "devices", "keep", "rows/s", "CPU us/row", "file B/row", "written B/row"]
    commit_ms = ["commit p50 ms", "p99", "most"]
    print_table([*head, *commit_ms], table)

    print(f"Recorder, {given.rate:,.0f} records a second\n")
    table = []
    for busy in (False, True):
        for devices in (10, 100, 500):
            with fresh() as folder:
                table.append(measure_recorder(Path(folder), given.rate, given.seconds, devices, busy))
    head = ["devices", "busy thread", "rows/s", "rows/commit", "waiting", "CPU us/row", "written B/row"]
    print_table([*head, "add to recorded p50 ms", "p99", "most"], table)

    print("Layouts of the table, 128 rows a commit\n")
    table = []
    for devices in (10, 500):
        for name in LAYOUTS:
            with fresh() as folder:
                table.append(measure_layout(Path(folder), name, given.rows, devices))
    head = ["layout", "devices", "rows/s", "CPU us/row", "file B/row", "written B/row"]
    print_table([*head, *commit_ms[:2]], table)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
