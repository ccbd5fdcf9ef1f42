"""Recording: one commit for all that waits, nothing reported before it is recorded, sinks that stall nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from task_offload.errors import StoreError
from task_offload.results.base import Record, Row, SessionBooks, SessionKey
from task_offload.results.recorder import MAX_COMMIT_ROWS, SINK_BATCH_ROWS, SINK_ROWS, Recorder
from task_offload.results.sqlite import SqliteStore
from tests.results.records import OTHER, SESSION, record

LONG_S = 20.0  # far more than anything here takes


class MemoryStore:
    """A store that can be held up, and made to fail."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.commits: list[int] = []
        self.of_session: dict[SessionKey, SessionBooks] = {}
        self.failures: list[Exception] = []
        self.failing = False
        self.began = threading.Semaphore(0)
        self.may_go = threading.Semaphore(0)
        self.held_up = False
        self.closed = False
        self.tidied = threading.Event()

    def books(self, device: str, session: str) -> SessionBooks:
        return self.of_session.get((device, session), SessionBooks())

    def write(self, rows: Sequence[Row], books: Mapping[SessionKey, SessionBooks]) -> None:
        if self.held_up:
            self.began.release()
            assert self.may_go.acquire(timeout=LONG_S)
        if self.failures:
            raise self.failures.pop(0)
        if self.failing:
            raise StoreError("results: the disk is full")
        self.rows += rows
        self.commits.append(len(rows))
        self.of_session.update(books)

    def tidy(self) -> bool:
        self.tidied.set()
        return False

    def close(self) -> None:
        self.closed = True


class Reports:
    """What `on_recorded` was called with."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.books: list[Mapping[SessionKey, SessionBooks]] = []
        self.came = threading.Condition()

    def __call__(self, records: Sequence[Record], books: Mapping[SessionKey, SessionBooks]) -> None:
        with self.came:
            self.records += records
            self.books.append(books)
            self.came.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.came:
            assert self.came.wait_for(condition, LONG_S)


class ListSink:
    def __init__(self, name: str = "list") -> None:
        self.name = name
        self.rows: list[Row] = []
        self.failing = False
        self.attempts = threading.Semaphore(0)
        self.closed = False

    def write(self, rows: Sequence[Row]) -> None:
        self.attempts.release()
        if self.failing:
            raise StoreError(f"{self.name}: nobody listens")
        self.rows += rows

    def close(self) -> None:
        self.closed = True


def test_records_are_reported_with_their_books_after_the_commit() -> None:
    store, reports = MemoryStore(), Reports()
    recorder = Recorder(store, on_recorded=reports)
    recorder.add([record(0, result={"x": 1})])
    recorder.add([record(1, "filtered", "find_contours")])
    assert recorder.close() == 0
    assert [(row.sequence, row.ending, row.result) for row in store.rows] == [
        (0, "completed", '{"x":1}'), (1, "filtered", None),
    ]  # fmt: skip
    assert [each.sequence for each in reports.records] == [0, 1]
    assert reports.books[-1] == {("pi-1", SESSION): SessionBooks(2, 1, 1)}
    assert store.closed


def test_what_waits_is_one_commit_and_nothing_is_reported_before() -> None:
    store, reports = MemoryStore(), Reports()
    store.held_up = True
    recorder = Recorder(store, on_recorded=reports)
    recorder.add([record(0)])
    assert store.began.acquire(timeout=LONG_S)
    for sequence in range(1, 50):
        recorder.add([record(sequence)])
    assert reports.records == []
    assert recorder.waiting == 50
    store.may_go.release(2)
    assert recorder.close() == 0
    assert store.commits == [1, 49]


def test_a_commit_is_bounded() -> None:
    store, reports = MemoryStore(), Reports()
    store.held_up = True
    recorder = Recorder(store, on_recorded=reports)
    recorder.add([record(0)])
    assert store.began.acquire(timeout=LONG_S)
    for sequence in range(1, MAX_COMMIT_ROWS + 11):
        recorder.add([record(sequence)])
    store.may_go.release(3)
    recorder.close()
    assert store.commits == [1, MAX_COMMIT_ROWS, 10]


def test_a_long_run_of_drops_is_recorded_in_bounded_commits() -> None:
    store, reports = MemoryStore(), Reports()
    recorder = Recorder(store, on_recorded=reports)
    drops = 2 * MAX_COMMIT_ROWS + 5
    recorder.add([record(3, "dropped", "overload", items=drops, cloud_cpu_s=0.5, bytes_received=7)])
    recorder.add([record(3 + drops)])
    recorder.close()
    assert max(store.commits) <= MAX_COMMIT_ROWS
    assert [row.sequence for row in store.rows] == list(range(3, 4 + drops))
    assert store.books("pi-1", SESSION) == SessionBooks(4 + drops, 1, 0, {"overload": drops}, 0.5, 7)
    assert sum(each.items for each in reports.records) == drops + 1


def test_what_was_recorded_before_is_reported_and_not_written_again() -> None:
    store, reports = MemoryStore(), Reports()
    store.of_session["pi-1", SESSION] = SessionBooks(5, 5)
    recorder = Recorder(store, on_recorded=reports)
    recorder.add([record(3)])
    recorder.add([record(4, "dropped", "overload", items=3)])
    recorder.add([record(6)])
    recorder.close()
    assert [(row.sequence, row.ending) for row in store.rows] == [(5, "dropped"), (6, "dropped")]
    assert store.books("pi-1", SESSION) == SessionBooks(7, 5, 0, {"overload": 2})
    assert reports.books[-1]["pi-1", SESSION].watermark == 7


def test_only_old_records_still_bring_an_ack() -> None:
    store, reports = MemoryStore(), Reports()
    store.of_session["pi-1", SESSION] = SessionBooks(5, 5)
    recorder = Recorder(store, on_recorded=reports)
    recorder.add([record(3)])
    recorder.close()
    assert store.rows == []
    assert reports.records == []
    assert reports.books == [{("pi-1", SESSION): SessionBooks(5, 5)}]


def test_a_failing_store_is_tried_again_with_growing_waits(caplog: pytest.LogCaptureFixture) -> None:
    store, reports = MemoryStore(), Reports()
    store.failures = [StoreError("results: the disk is full") for _ in range(8)]
    waits: list[float] = []
    recorder = Recorder(store, on_recorded=reports, pause=waits.append)
    with caplog.at_level(logging.INFO):
        recorder.add([record(0)])
        reports.wait_for(lambda: len(reports.records) == 1)
    recorder.close()
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert store.commits == [1]
    assert [each.message for each in caplog.records] == [
        "results: the disk is full; nothing is acknowledged until it can be recorded", "recording goes on",
    ]  # fmt: skip


def test_nothing_is_reported_while_the_store_fails_and_closing_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    store, reports = MemoryStore(), Reports()
    store.failing = store.held_up = True
    recorder = Recorder(store, on_recorded=reports)
    recorder.add([record(0)])
    assert store.began.acquire(timeout=LONG_S)
    recorder.add([record(1)])
    store.may_go.release(1000)
    assert recorder.close() == 2
    assert recorder.waiting == 2
    assert reports.records == []
    assert store.closed
    assert "results: the disk is full; nothing is acknowledged until it can be recorded" in caplog.text
    assert "2 records could not be made" in caplog.text


def test_an_error_of_ours_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store, reports = MemoryStore(), Reports()
    store.failures = [ZeroDivisionError("a bug"), ZeroDivisionError("a bug")]
    recorder = Recorder(store, on_recorded=reports, pause=lambda _: None)
    recorder.add([record(0)])
    reports.wait_for(lambda: len(reports.records) == 1)
    recorder.close()
    assert store.commits == [1]
    assert caplog.text.count("Traceback") == 1


def test_a_report_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()

    def on_recorded(*_: object) -> None:
        raise RuntimeError("the listener is gone")

    recorder = Recorder(store, on_recorded=on_recorded)
    recorder.add([record(0)])
    recorder.add([record(1)])
    assert recorder.close() == 0
    assert len(store.rows) == 2
    assert "the listener is gone" in caplog.text


def test_a_record_out_of_range_is_refused_at_once() -> None:
    store, reports = MemoryStore(), Reports()
    recorder = Recorder(store, on_recorded=reports)
    with pytest.raises(ValueError, match="sequence"):
        recorder.add([record(-1)])
    recorder.close()
    assert store.rows == []


def test_a_result_that_cannot_be_recorded_is_told_once_for_each_device(caplog: pytest.LogCaptureFixture) -> None:
    store, reports = MemoryStore(), Reports()
    recorder = Recorder(store, on_recorded=reports)
    recorder.add([record(i, result=object()) for i in range(3)] + [record(3, result=1)])
    recorder.add([record(0, device="other", result=object())])
    reports.wait_for(lambda: len(reports.records) == 5)
    assert recorder.close() == 0

    told = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert [message.partition(":")[0] for message in told] == ["device pi-1, item 0", "device other, item 0"]
    assert "it is not plain data (object cannot be written as JSON)" in told[0]
    assert [row.ending for row in store.rows] == ["completed"] * 5


def test_without_a_store_records_are_reported_at_once_and_counted() -> None:
    reports, sink = Reports(), ListSink()
    recorder = Recorder(None, [sink], on_recorded=reports)
    recorder.add([record(0, result=[1])])
    assert [each.sequence for each in reports.records] == [0]
    recorder.add([record(1, session=OTHER)])
    recorder.add([record(0)])
    assert recorder.books("pi-1", SESSION) == SessionBooks(1, 1)
    assert recorder.books("pi-1", OTHER) == SessionBooks(2, 1)
    assert recorder.close() == 0
    assert [(row.session, row.result) for row in sink.rows] == [(SESSION, "[1]"), (OTHER, None)]


def test_sinks_are_fed_what_is_recorded_and_closed(caplog: pytest.LogCaptureFixture) -> None:
    store, reports, sinks = MemoryStore(), Reports(), [ListSink("one"), ListSink("two")]
    recorder = Recorder(store, sinks, on_recorded=reports)
    for sequence in range(SINK_BATCH_ROWS + 10):
        recorder.add([record(sequence)])
    recorder.close()
    assert sinks[0].rows == sinks[1].rows == store.rows
    assert [sink.closed for sink in sinks] == [True, True]
    assert "missed" not in caplog.text


def test_a_dead_sink_stalls_nothing_and_what_it_misses_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    store, reports, sink = MemoryStore(), Reports(), ListSink("dead")
    sink.failing = True
    recorder = Recorder(store, [sink], on_recorded=reports, pause=lambda _: threading.Event().wait(0.001))
    rows = SINK_ROWS + 3000
    recorder.add([record(0, "dropped", "overload", items=rows)])
    reports.wait_for(lambda: sum(each.items for each in reports.records) == rows)
    assert recorder.close() == 0
    assert len(store.rows) == rows
    assert f"dead missed {rows} rows" in caplog.text
    assert caplog.text.count("nobody listens") == 1


def test_a_sink_that_recovers_gets_what_waited_in_order(caplog: pytest.LogCaptureFixture) -> None:
    store, reports, sink = MemoryStore(), Reports(), ListSink()
    sink.failing = True
    recorder = Recorder(store, [sink], on_recorded=reports, pause=lambda _: None)
    recorder.add([record(0)])
    for _ in range(3):
        assert sink.attempts.acquire(timeout=LONG_S)
    recorder.add([record(1)])
    sink.failing = False
    recorder.close()
    assert [row.sequence for row in sink.rows] == [0, 1]
    assert "missed" not in caplog.text


def test_the_store_is_tidied_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("task_offload.results.recorder.TIDY_EVERY_S", 0.001)
    store = MemoryStore()
    recorder = Recorder(store, on_recorded=Reports())
    assert store.tidied.wait(LONG_S)
    recorder.close()


def test_with_sqlite_many_threads_lose_nothing(tmp_path: Path) -> None:
    reports = Reports()
    recorder = Recorder(SqliteStore(tmp_path / "results.sqlite"), on_recorded=reports)

    def device(number: int) -> None:
        for sequence in range(200):
            recorder.add([record(sequence, device=f"pi-{number}")])

    threads = [threading.Thread(target=device, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.close() == 0
    store = SqliteStore(tmp_path / "results.sqlite")
    assert [store.books(f"pi-{number}", SESSION) for number in range(8)] == [SessionBooks(200, 200)] * 8
    store.close()
    assert len(reports.records) == 1600
