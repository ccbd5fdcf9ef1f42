"""kill -9 of a process that records: what it reported is in the file, once, and nothing is half there."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from task_offload.results.sqlite import SqliteStore

DEVICES = 5
PROJECT = Path(__file__).parents[2]

WRITER = """
import sys
from collections import Counter
from pathlib import Path
from task_offload.results.base import Record
from task_offload.results.recorder import Recorder
from task_offload.results.sqlite import SqliteStore

def report(records, books):
    for (device, session), each in books.items():
        sys.stdout.write(f"{device} {each.watermark}\\n")
    sys.stdout.flush()

session, devices = "ab" * 16, int(sys.argv[2])
recorder = Recorder(SqliteStore(Path(sys.argv[1])), on_recorded=report)
begins = [recorder.books(f"pi-{i}", session).watermark for i in range(devices)]
for step in range(1_000_000):
    for i, begin in enumerate(begins):
        sequence = begin + 4 * step
        for kind in ("completed", "filtered"):
            recorder.add([Record(f"pi-{i}", session, sequence, 3, kind, None, {"n": sequence}, 1.0, 2.0)])
            sequence += 1
        recorder.add([Record(f"pi-{i}", session, sequence, 3, "dropped", "overload", None, 1.0, 2.0, items=2)])
    while recorder.waiting > 200:
        pass
"""


@pytest.mark.parametrize("seed", range(3))
def test_what_was_reported_is_recorded_once_whenever_the_process_dies(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "results.sqlite"
    reported = [0] * DEVICES
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(DEVICES)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process, process.stdout as lines:
            for _ in range(chance.randrange(1, 150)):
                take(lines.readline(), reported)
            process.send_signal(signal.SIGKILL)
            for line in lines:
                take(line, reported)
        assert process.returncode == -signal.SIGKILL
        check(path, reported)


def take(line: str, reported: list[int]) -> None:
    if line.endswith("\n"):  # the last one may be torn
        device, watermark = line.split()
        reported[int(device.removeprefix("pi-"))] = int(watermark)


def check(path: Path, reported: list[int]) -> None:
    assert any(reported)
    store = SqliteStore(path)
    books = [store.books(f"pi-{i}", "ab" * 16) for i in range(DEVICES)]
    store.close()
    connection = sqlite3.connect(path)
    for i in range(DEVICES):
        assert books[i].watermark >= reported[i]
        rows = connection.execute("SELECT sequence, ending FROM items WHERE device = ? ORDER BY sequence", (f"pi-{i}",))
        found = rows.fetchall()
        assert [sequence for sequence, _ in found] == list(range(books[i].watermark))
        of_ending = Counter(ending for _, ending in found)
        assert books[i].completed == of_ending["completed"]
        assert books[i].filtered == of_ending["filtered"]
        assert sum(books[i].dropped.values()) == of_ending["dropped"]
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
