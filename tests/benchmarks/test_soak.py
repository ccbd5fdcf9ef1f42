"""Emulated devices keep to the protocol across cuts, and the books of `soak` find each kind of wrong."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import fleet_chain
from benchmarks.fleet import check_books
from benchmarks.fleet_devices import Device, Fleet, Load
from benchmarks.soak import Side
from task_offload.cloud import Cloud
from task_offload.config import CloudConfig

LAST = len(fleet_chain.tasks) - 1


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(
        CloudConfig(
            host="127.0.0.1", port=0, app=fleet_chain.APP, workers=1, use_tls=False,
            results=(f"sqlite:{tmp_path / 'results.sqlite'}",),
        )
    )  # fmt: skip
    thread = threading.Thread(target=made.run)
    made.start()
    thread.start()
    yield made
    made.stop()
    thread.join(20)
    made.close()


def test_devices_that_are_cut_off_resume_and_nothing_is_lost(cloud: Cloud, tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.connect([Load(3, LAST, None, rate=500.0, window=16)], cloud.port, 0)
    devices = list(fleet.devices)
    for _ in range(10):
        fleet.run(0.0, 0.02)
        fleet.cut(devices[0])
        fleet.run(0.0, 0.01)
        fleet.resume(devices[0])
    fleet.run(0.0, 0.05)
    assert fleet.leave() == {}
    assert all(device.farewell for device in devices)
    assert check_books(tmp_path / "results.sqlite") == sum(device.sequence for device in devices) > 0


def side(folder: Path, sequences: list[int], **known: Any) -> Side:
    """One session of which these rows are recorded, and of which its device knows this much."""
    store = folder / "results.sqlite"
    with sqlite3.connect(store) as connection:
        connection.execute("CREATE TABLE items (device, session, sequence, split, ending, detail, result)")
        connection.executemany(
            "INSERT INTO items VALUES ('d', ?, ?, 1, 'completed', NULL, ?)",
            [("00" * 16, sequence, str(sequence % fleet_chain.FRAMES)) for sequence in sequences],
        )
    connection.close()
    device = Device.__new__(Device)
    device.name, device.session, device.load = "d", bytes(16), Load(1, 1)
    device.due_s, device.waiting = known.get("due_s", ()), ()
    device.acked, device.sequence, device.farewell = known["acked"], known["sequence"], known.get("farewell", False)
    made = Side.__new__(Side)
    made.gone, made.problems, made.events = [device], [], Counter()
    made.cloud = SimpleNamespace(store=store)
    return made


@pytest.mark.parametrize(
    ("count", "known"),
    [
        (20, {"acked": 20, "sequence": 20, "farewell": True}),
        (15, {"acked": 12, "sequence": 20}),
        (20, {"acked": 12, "sequence": 20}),
    ],
)
def test_right_books(tmp_path: Path, count: int, known: dict[str, Any]) -> None:
    made = side(tmp_path, list(range(count)), **known)
    assert made.check() == count
    assert made.problems == []


@pytest.mark.parametrize(
    ("sequences", "known", "problem"),
    [
        ([0, 1, 3], {"acked": 3, "sequence": 4}, "item 3 where 2 was due"),
        ([0, 1, 1], {"acked": 2, "sequence": 3}, "item 1 where 2 was due"),
        ([0, 1], {"acked": 3, "sequence": 4}, "2 items are recorded, 3 are due"),
        ([0, 1], {"acked": 1, "sequence": 3, "farewell": True}, "2 items are recorded, 3 are due"),
        ([0, 1, 2], {"acked": 1, "sequence": 2}, "3 items are recorded"),
    ],
)
def test_wrong_books(tmp_path: Path, sequences: list[int], known: dict[str, Any], problem: str) -> None:
    made = side(tmp_path, sequences, **known)
    made.check()
    assert problem in made.problems[0]


def test_a_result_that_differs_and_an_item_that_failed(tmp_path: Path) -> None:
    made = side(tmp_path, list(range(40)), acked=40, sequence=40)
    with sqlite3.connect(made.cloud.store) as connection:
        connection.execute("UPDATE items SET result = '[1,2]' WHERE sequence = 20")
        connection.execute("UPDATE items SET ending = 'dropped', detail = 'task_error: x' WHERE sequence = 30")
    connection.close()
    made.check()
    assert len(made.problems) == 2
    assert "item 20 has the result [1,2]" in made.problems[0]
    assert "item 30 was dropped: task_error: x" in made.problems[1]
