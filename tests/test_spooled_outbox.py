"""An outbox on disk: its order through outages, full disks, restarts and kills, and what it says of what it holds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from task_offload.spool import DiskSpool
from task_offload.spooled_outbox import SpooledOutbox
from task_offload.wire.codec import Payload
from task_offload.wire.messages import Ending
from task_offload.wire.outbox import Entry

SESSION = "0123456789abcdef" * 2
LIMIT = 1 << 20
SMALL = 16 * 400  # a limit that some dozens of items reach


class Clocks:
    """How far the Unix clock is ahead of the steady one; whole seconds, so that sums are exact."""

    def __init__(self) -> None:
        self.offset_s = 1_000_000.0

    def __call__(self) -> float:
        return self.offset_s


def item(sequence: int, size_bytes: int = 64) -> Entry:
    head = b"item %d" % sequence
    body = memoryview(bytes([sequence % 256]) * size_bytes)
    padded_bytes = size_bytes + -size_bytes % 64
    return Entry(sequence, 2, 1000.0 + sequence, Payload(head, (body,), len(head) + padded_bytes), tag=3)


def ending(sequence: int, kind: Ending = Ending.FILTERED, detail: str = "keep_most") -> Entry:
    return Entry(sequence, 1, 1000.0 + sequence, ending=kind, detail=detail)


def message(entry: Entry) -> bytes:
    return b"".join(entry.encode(5000.0))


def runs(entries: list[Entry]) -> list[tuple[int, int, str]]:
    return [(entry.sequence, entry.count, entry.detail) for entry in entries]


def send(outbox: SpooledOutbox, most: int = 1000) -> list[Entry]:
    sent: list[Entry] = []
    while len(sent) < most and (entry := outbox.next()) is not None:
        outbox.sent(1.0, 0)
        sent.append(entry)
    return sent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Iterator[DiskSpool]:
    with DiskSpool(folder, LIMIT) as spool:
        spool.begin(SESSION, b"meta")
        yield spool


def fill(outbox: SpooledOutbox, items: int) -> None:
    for sequence in range(items):
        outbox.add(item(sequence))


def test_what_waits_is_on_disk_and_comes_back_as_it_was(spool: DiskSpool) -> None:
    outbox = SpooledOutbox(spool, SESSION, LIMIT, offset=Clocks())
    entries = [item(0, 70), ending(1), ending(2, Ending.DROPPED, "täsk_error: " + "é" * 600), item(3, 0)]
    messages = [message(entry) for entry in entries]
    for entry in entries:
        outbox.add(entry)
    assert (spool.items, outbox.spooled, outbox.waiting_entries, outbox.held_from) == (4, 4, 4, 0)
    back = send(outbox)
    assert [message(entry) for entry in back[:2] + back[3:]] == messages[:2] + messages[3:]
    assert back[2].detail == "täsk_error: " + "é" * 493  # so much of it is kept
    assert [entry.tag for entry in back] == [3, 0, 0, 3]
    assert outbox.acknowledge(4) == [(entry, 1) for entry in back]
    assert (spool.items, outbox.spooled, outbox.waiting_entries, outbox.held_from) == (0, 0, 0, None)


def test_while_the_cloud_is_there_nothing_goes_to_the_disk(spool: DiskSpool) -> None:
    outbox = SpooledOutbox(spool, SESSION, LIMIT)
    assert outbox.next() is None  # all that waited on disk is sent
    fill(outbox, 5)
    assert [entry.sequence for entry in send(outbox, 3)] == [0, 1, 2]
    assert spool.items == 0
    outbox.rewind()
    assert spool.items == 5
    assert [entry.sequence for entry in send(outbox)] == [0, 1, 2, 3, 4]


def test_what_finds_no_room_waits_behind_the_disk_and_says_so(folder: Path) -> None:
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        outbox = SpooledOutbox(spool, SESSION, SMALL)
        assert not outbox.full
        fill(outbox, 100)
        assert outbox.full
        on_disk = spool.items
        assert 10 < on_disk < 100
        assert outbox.spooled == on_disk
        assert outbox.waiting_entries == 100
        sent = send(outbox)
        assert [entry.sequence for entry in sent] == list(range(100))
        outbox.acknowledge(99)
        assert outbox.held_from == 99  # no bye before that is acknowledged
        outbox.acknowledge(100)
        assert outbox.held_from is None


def test_all_on_disk_acknowledged_leaves_what_found_no_room_held(folder: Path) -> None:
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        outbox = SpooledOutbox(spool, SESSION, SMALL)
        fill(outbox, 100)
        on_disk = spool.items
        send(outbox, on_disk)
        outbox.acknowledge(on_disk)
        assert (outbox.held_from, outbox.waiting_entries) == (on_disk, 100 - on_disk)


def test_it_is_full_while_anything_waits_for_room_though_the_next_might_fit(folder: Path) -> None:
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        outbox = SpooledOutbox(spool, SESSION, SMALL)
        outbox.add(item(0, 3000))
        outbox.add(item(1, 3500))
        outbox.add(ending(2))
        assert spool.items == 1
        assert outbox.full


def test_what_found_no_room_is_kept_for_the_next_run_where_there_is_some_now(folder: Path) -> None:
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        outbox = SpooledOutbox(spool, SESSION, SMALL)
        fill(outbox, 60)
        on_disk = spool.items
        send(outbox, on_disk)
        outbox.acknowledge(on_disk)
        assert outbox.take_all() == []
        assert spool.items == outbox.spooled == 60 - on_disk > 0


def test_the_newest_are_given_up_where_that_is_the_policy(folder: Path) -> None:
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        outbox = SpooledOutbox(spool, SESSION, SMALL, drop_when_full=True)
        fill(outbox, 100)
        on_disk = spool.items
        assert runs(send(outbox)) == [
            *((sequence, 1, "") for sequence in range(on_disk)), (on_disk, 100 - on_disk, "spool_full"),
        ]  # fmt: skip


def test_what_a_cloud_has_already_is_not_read_again(spool: DiskSpool) -> None:
    outbox = SpooledOutbox(spool, SESSION, LIMIT)
    fill(outbox, 10)
    send(outbox, 4)
    outbox.rewind()
    outbox.acknowledge(7)  # its acks were lost with the connection
    outbox.resume(7)
    assert (outbox.waiting_entries, outbox.held_from, outbox.spooled) == (3, 7, 3)
    assert [entry.sequence for entry in send(outbox)] == [7, 8, 9]


@pytest.fixture
def held(folder: Path) -> Iterator[SpooledOutbox]:
    """What a run of a killed device has left: items 5 to 9."""
    with DiskSpool(folder, LIMIT) as spool:
        spool.begin(SESSION, b"meta")
        outbox = SpooledOutbox(spool, SESSION, LIMIT)
        for sequence in range(5, 10):
            outbox.add(item(sequence))
    with DiskSpool(folder, LIMIT) as spool:
        [session] = spool.sessions()
        yield SpooledOutbox(spool, SESSION, LIMIT, (session.first, session.end))


def test_what_is_missing_before_the_spool_is_told_as_lost(held: SpooledOutbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cloud lost its books, or damage cost the first: an item that never comes would hold up all others."""
    monkeypatch.setattr("task_offload.spooled_outbox.MOST_IN_RANGE", 2)
    monkeypatch.setattr("task_offload.wire.outbox.MOST_IN_RANGE", 2)
    held.acknowledge(2)
    held.resume(2)
    assert runs(send(held)) == [
        (2, 2, "lost_on_device"), (4, 1, "lost_on_device"), *((sequence, 1, "") for sequence in range(5, 10)),
    ]  # fmt: skip


def test_what_is_missing_in_the_midst_of_the_spool_and_at_its_end_is_told_as_lost(folder: Path) -> None:
    with DiskSpool(folder, SMALL) as spool:
        spool.begin(SESSION, b"meta")
        fill(SpooledOutbox(spool, SESSION, SMALL), 12)
    segments = sorted(folder.glob("*.spool"))
    with DiskSpool(folder, SMALL) as spool:
        outbox = SpooledOutbox(spool, SESSION, SMALL, (0, 12))
        for segment in (segments[1], segments[-1]):
            segment.unlink()
        entries = send(outbox)
    lost = [entry for entry in entries if entry.detail == "lost_on_device"]
    assert len(lost) == 2
    assert [sequence for entry in entries for sequence in range(entry.sequence, entry.sequence + entry.count)] == list(
        range(12)
    )
    assert lost[1] is entries[-1]


def test_a_cloud_that_has_more_than_the_spool_is_sent_nothing(held: SpooledOutbox) -> None:
    """The kill lost what was in memory, and had been sent."""
    held.acknowledge(12)
    held.resume(12)
    assert (held.next(), held.held_from, held.waiting_entries, held.spooled) == (None, None, 0, 0)


def times(entries: list[Entry]) -> list[tuple[float, float]]:
    return [(entry.captured_at, entry.last_captured_at) for entry in entries]


def test_a_clock_that_is_set_while_items_wait_changes_no_age(spool: DiskSpool) -> None:
    clocks = Clocks()
    outbox = SpooledOutbox(spool, SESSION, LIMIT, offset=clocks)
    outbox.add(item(0))
    clocks.offset_s += 7200.0
    outbox.add(item(1))
    run = ending(2)
    run.extend(ending(3))
    outbox.add(run)
    clocks.offset_s -= 60.0
    assert times(send(outbox)) == [(1000.0, 0.0), (1001.0, 0.0), (1002.0, 1003.0)]


def test_a_later_run_dates_what_it_finds_by_the_clock_as_it_is_when_it_sends(folder: Path) -> None:
    """Its steady clock is another, and the clock of a device that has just started may not be set yet."""
    clocks = Clocks()
    with DiskSpool(folder, LIMIT) as spool:
        spool.begin(SESSION, b"meta")
        SpooledOutbox(spool, SESSION, LIMIT, offset=clocks).add(item(1))
    with DiskSpool(folder, LIMIT) as spool:
        outbox = SpooledOutbox(spool, SESSION, LIMIT, (0, 2), offset=clocks)
        clocks.offset_s += 1500.0
        lost, found = send(outbox)
    assert (lost.captured_at, lost.detail) == (-1_001_500.0, "lost_on_device")  # 1970: nobody knows when
    assert found.captured_at == 1001.0 - 1500.0
    outbox.take_all()


class Outages(RuleBasedStateMachine):
    """One session through any order of events: each item is sent in its place, or said to be given up, until acked."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda _: None)  # no power is cut here, and thousands of files are opened
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.newest = False
        self.clocks = Clocks()

    @initialize(newest=st.booleans())
    def begin(self, newest: bool) -> None:
        self.newest = newest
        self.spool = DiskSpool(self.path, SMALL)
        self.begin_session()

    def begin_session(self) -> None:
        self.spool.begin(SESSION, b"meta")
        self.outbox = SpooledOutbox(self.spool, SESSION, SMALL, drop_when_full=self.newest, offset=self.clocks)
        self.running = True  # more may be added
        self.was: list[bytes | tuple[Ending, str]] = []  # each item's message, or how it ended on the device
        self.end = 0  # all below are in the outbox, or were
        self.recorded = self.acked = 0  # all below are, as the cloud and as the device knows
        self.position: int | None = None  # all below were sent on this connection; None without one

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            if self.position is None:
                self.connect()
            self.send(10_000)
            self.record(10_000, True)
            assert self.acked == self.end
            assert (self.outbox.held_from, self.spool.items) == (None, 0)
            self.outbox.take_all()
            self.spool.close()
        self.folder.cleanup()
        self.patch.undo()

    @precondition(lambda self: self.running)
    @rule(size_bytes=st.sampled_from([0, 60, 1000]), count=st.integers(1, 12))
    def add_items(self, size_bytes: int, count: int) -> None:
        for _ in range(count):
            entry = item(self.end, size_bytes)
            self.was.append(message(entry))
            self.outbox.add(entry)
            self.end += 1

    @precondition(lambda self: self.running)
    @rule(kind=st.sampled_from(Ending), count=st.integers(1, 4))
    def add_endings(self, kind: Ending, count: int) -> None:
        for _ in range(count):
            self.was.append((kind, "why"))
            self.outbox.add(ending(self.end, kind, "why"))
            self.end += 1

    @rule()
    def ask_for_room(self) -> None:
        if not self.outbox.full and self.position is None:
            assert self.outbox.spooled == self.end - self.acked

    @precondition(lambda self: self.position is None)
    @rule()
    def connect(self) -> None:
        self.outbox.acknowledge(self.recorded)
        self.outbox.resume(self.recorded)
        self.acked = self.position = self.recorded

    @precondition(lambda self: self.position is not None)
    @rule(count=st.integers(1, 20))
    def send(self, count: int) -> None:
        assert self.position is not None
        for _ in range(count):
            entry = self.outbox.next()
            if entry is None:
                assert self.position == self.end
                return
            assert entry.sequence == self.position
            for sequence in range(entry.sequence, entry.sequence + entry.count):
                if entry.payload is not None:
                    assert message(entry) == self.was[sequence]
                elif (entry.ending, entry.detail) != self.was[sequence]:
                    assert self.newest
                    assert (entry.ending, entry.detail) == (Ending.DROPPED, "spool_full")
            self.outbox.sent(1.0, 0)
            self.position += entry.count

    @precondition(lambda self: self.position is not None)
    @rule(count=st.integers(1, 20), told=st.booleans())
    def record(self, count: int, told: bool) -> None:
        assert self.position is not None
        self.recorded = min(self.position, self.recorded + count)
        if told:
            done = self.outbox.acknowledge(self.recorded)
            assert sum(items for _, items in done) == self.recorded - self.acked
            self.acked = self.recorded

    @precondition(lambda self: self.position is not None)
    @rule()
    def break_connection(self) -> None:
        self.position = None
        self.outbox.rewind()

    @rule()
    def end_run(self) -> None:
        """What cannot wait on disk is given up; the rest is for the next run."""
        given_up = self.outbox.take_all()
        items = sum(entry.count for entry in given_up)
        assert [entry.sequence for entry in given_up[:1]] == [self.end - items] * bool(given_up)
        self.end -= items
        assert self.outbox.spooled == self.end - self.acked
        self.next_run()

    @rule()
    def kill(self) -> None:
        """What is in memory is lost."""
        self.next_run()

    def next_run(self) -> None:
        self.spool.close()
        self.spool = DiskSpool(self.path, SMALL)
        sessions = self.spool.sessions()
        if not sessions:
            self.begin_session()
            return
        assert sessions[0].first <= self.recorded  # nothing is missing before it
        held = (sessions[0].first, sessions[0].end)
        self.outbox = SpooledOutbox(self.spool, SESSION, SMALL, held, offset=self.clocks)
        self.running = False
        self.position = None
        self.end = max(sessions[0].end, self.recorded)
        self.acked = sessions[0].first

    @invariant()
    def what_is_left_is_known(self) -> None:
        if not hasattr(self, "outbox"):
            return
        assert (self.outbox.held_from is not None) == (self.acked < self.end)
        sent_to = self.acked if self.position is None else self.position
        assert (self.outbox.waiting_entries > 0) == (sent_to < self.end)


TestOutages: Any = Outages.TestCase
TestOutages.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
