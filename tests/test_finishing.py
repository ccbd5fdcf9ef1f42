"""The cloud's last steps without sockets, engine or disk: order, the last task, records."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import pytest

from task_offload.cloud_session import CloudSession, Endings
from task_offload.engines.base import Done, TaskTimeoutError, Unit
from task_offload.errors import ProtocolError
from task_offload.finishing import BATCH, Finisher
from task_offload.results.base import Record, SessionBooks
from task_offload.runner import Kind, Outcome
from task_offload.task import Item, load_app
from task_offload.wire.messages import Ending, EndingRange
from tests.support.processes import APPS

SPLIT = 3
NOW = 1_800_000_000.0


class Desk:
    """A finisher, with what it recorded."""

    def __init__(self) -> None:
        self.batches: list[list[Record]] = []
        self.now = 1000.0
        self.chain = load_app(str(APPS / "counter.py"))
        self.finisher = Finisher(
            self.chain, lambda records: self.batches.append(list(records)), 30.0, lambda: self.now, lambda: NOW
        )

    def session(self, name: str = "device", watermark: int = 0) -> CloudSession:
        return CloudSession(name, bytes(16), SessionBooks(watermark=watermark))

    def work(self) -> list[Record]:
        self.finisher.wake()  # it does not wait, then
        self.finisher.work(20.0)
        records = [record for batch in self.batches for record in batch]
        self.batches.clear()
        return records


@pytest.fixture
def desk(undo_imports: None) -> Desk:
    return Desk()


def done(
    session: CloudSession, sequence: int, kind: Kind = Kind.CONTINUED, value: Any = None, busy: bool = True
) -> Done:
    item = Item(session.device, session.session, sequence, NOW - 1.0, SPLIT)
    unit = Unit(session.lane, item, b"", None, 0, session, size_bytes=100, received_ns=3000)
    value = ({"number": sequence},) if value is None and kind is Kind.CONTINUED else value
    return Done(unit, Outcome(kind, SPLIT, value, [1000] if busy else []), 500, 200, 4000)


def ends(session: CloudSession, first: int, count: int, ending: Ending = Ending.DROPPED) -> Endings:
    told = EndingRange(first, count, ending, 2, "why", oldest_age_us=3_000_000, newest_age_us=1_000_000)
    return Endings(session, first, count, told)


def test_outcomes_in_any_order_are_recorded_in_sequence_order(desk: Desk) -> None:
    first, second = desk.session("first"), desk.session("second", watermark=40)
    steps: list[Callable[[], None]] = []
    for sequence in range(30):
        steps.append(lambda sequence=sequence: desk.finisher.put([done(first, sequence), done(second, 40 + sequence)]))
    steps.append(lambda: desk.finisher.put_endings(ends(first, 30, 10)))
    steps.append(lambda: desk.finisher.put([done(first, 40)]))
    random.Random(4).shuffle(steps)
    records = []
    for step in steps:
        step()
        records += desk.work()
    of_first = [(each.sequence, each.items) for each in records if each.device == "first"]
    assert of_first == [*((n, 1) for n in range(30)), (30, 10), (40, 1)]
    assert [each.sequence for each in records if each.device == "second"] == list(range(40, 70))
    assert first.pending == second.pending == {}


def test_nothing_goes_on_before_what_is_missing(desk: Desk) -> None:
    session = desk.session()
    desk.finisher.put([done(session, sequence) for sequence in (1, 2, 3)])
    assert desk.work() == []
    desk.finisher.put([done(session, 0)])
    assert [each.sequence for each in desk.work()] == [0, 1, 2, 3]


def test_each_way_to_end(desk: Desk) -> None:
    session = desk.session()
    desk.finisher.put(
        [
            done(session, 0),
            done(session, 1, Kind.FILTERED),
            done(session, 2, Kind.FAILED, ZeroDivisionError("no")),
            done(session, 3, Kind.FAILED, TaskTimeoutError("more than 30 s")),
            done(session, 4, Kind.FAILED, ProtocolError("a class that may not travel"), busy=False),
        ]
    )
    assert [(each.ending, each.detail) for each in desk.work()] == [
        ("completed", None),
        ("filtered", desk.chain.names[SPLIT]),
        ("dropped", f"task_error: {desk.chain.names[SPLIT]}: ZeroDivisionError: no"),
        ("dropped", "task_timeout: more than 30 s"),
        ("dropped", "bad_payload: a class that may not travel"),
    ]


def test_a_record_has_its_times_and_its_costs(desk: Desk) -> None:
    session = desk.session()
    desk.finisher.put([done(session, 0)])
    [record] = desk.work()
    assert (record.captured_at, record.finished_at, record.bytes_received) == (NOW - 1.0, NOW, 100)
    assert record.cloud_cpu_s >= (4000 + 3000) / 1e9
    assert session.costs.cpu_ns == pytest.approx(record.cloud_cpu_s * 1e9, abs=2)


def test_devices_endings_share_their_time_out(desk: Desk) -> None:
    session = desk.session()
    desk.finisher.put_endings(ends(session, 0, 3, Ending.FILTERED))
    records = desk.work()
    assert [NOW - each.captured_at for each in records] == [3.0, 2.0, 1.0]
    assert [(each.ending, each.detail, each.items) for each in records] == [("filtered", "why", 1)] * 3


def test_what_is_more_than_a_batch_waits_for_the_next_one(desk: Desk) -> None:
    session = desk.session()
    for sequence in range(2 * BATCH):
        desk.finisher.put([done(session, sequence)])
    desk.finisher.work(20.0)
    desk.finisher.work(20.0)
    assert [len(batch) for batch in desk.batches] == [BATCH, BATCH]


def test_people_hear_of_a_last_task_that_hangs(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """It is looked at from another thread while it runs; here, from within it."""
    session = desk.session()
    seen: list[int] = []

    def last(*args: Any) -> None:
        for passed_s in (29.0, 31.0, 32.0):
            desk.finisher.watch(1000.0 + passed_s)
            seen.append(len(caplog.records))

    functions = desk.finisher._runner._functions
    desk.finisher._runner._functions = (*functions[:-1], last)
    with caplog.at_level(logging.WARNING):
        desk.finisher.put([done(session, 0)])
        desk.work()
    assert seen == [0, 1, 1]
    assert "item 0 of device device" in caplog.text
