import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from task_offload.wire import outbox as outbox_module
from task_offload.wire.codec import Payload
from task_offload.wire.messages import MOST_IN_RANGE, Ending, EndingRange
from task_offload.wire.outbox import OVERHEAD_BYTES, Acked, Entry, Outbox
from task_offload.wire.session import CloudSide
from tests.wire.samples import feed, frame_of, new_reader


def item(sequence: int, size_bytes: int = 100, captured_at: float = 0.0) -> Entry:
    return Entry(sequence, 2, captured_at, Payload(bytes(size_bytes), (), size_bytes), tag=3)


def ending(sequence: int, kind: Ending = Ending.FILTERED, detail: str = "t", split: int = 1, **more) -> Entry:
    return Entry(sequence, split, more.pop("captured_at", 0.0), ending=kind, detail=detail, **more)


def filled(*entries: Entry) -> Outbox:
    outbox = Outbox()
    for entry in entries:
        outbox.add(entry)
    return outbox


def send_all(outbox: Outbox) -> list[Entry]:
    sent = []
    while (entry := outbox.next()) is not None:
        outbox.sent(1.0, 0)
        sent.append(entry)
    return sent


def runs(entries) -> list[tuple[int, int]]:
    return [(entry.sequence, entry.count) for entry in entries]


# --- runs of endings ------------------------------------------------------------------------------------------------


def test_endings_of_one_kind_are_one_run():
    outbox = filled(*(ending(n, captured_at=10.0 + n) for n in range(5)))
    (run,) = send_all(outbox)
    assert (run.sequence, run.count, run.captured_at, run.last_captured_at) == (0, 5, 10.0, 14.0)


@pytest.mark.parametrize(
    "second",
    [
        ending(1, Ending.DROPPED),
        ending(1, detail="u"),
        ending(1, split=2),
        ending(2),
        item(1),
    ],
    ids=["kind", "detail", "split", "gap", "item"],
)
def test_endings_of_two_kinds_are_two_runs(second):
    assert len(send_all(filled(ending(0), second))) == 2


def test_a_run_is_no_longer_than_a_message_may_say():
    outbox = filled(*(ending(n) for n in range(MOST_IN_RANGE + 1)))
    assert runs(send_all(outbox)) == [(0, MOST_IN_RANGE), (MOST_IN_RANGE, 1)]


def test_what_was_sent_takes_no_more_items():
    outbox = filled(ending(0))
    send_all(outbox)
    outbox.add(ending(1))
    assert runs(send_all(outbox)) == [(1, 1)]


def test_a_payload_that_is_replaced_counts_as_what_it_is_now():
    outbox = filled(item(0), item(1, 200))
    assert outbox.next() is not None
    outbox.replace_next(Payload(bytes(1000), (), 1000))
    assert outbox.waiting_bytes == 1200 + 2 * OVERHEAD_BYTES
    first, _ = send_all(outbox)
    assert first.payload is not None
    assert len(first.payload.head) == 1000
    assert (outbox.sent_bytes, outbox.waiting_bytes) == (1200 + 2 * OVERHEAD_BYTES, 0)


# --- acks within a run ----------------------------------------------------------------------------------------------


def test_an_ack_within_a_run_splits_it_and_its_capture_times():
    outbox = filled(*(ending(n, captured_at=100.0 + 2 * n) for n in range(5)))
    send_all(outbox)
    (acked,) = outbox.acknowledge(2)
    assert (acked.items, acked.entry.sequence, acked.entry.count) == (2, 0, 2)
    assert (acked.entry.captured_at, acked.entry.last_captured_at) == (100.0, 102.0)
    (left,) = outbox.take_all()
    assert (left.sequence, left.count, left.captured_at, left.last_captured_at) == (2, 3, 104.0, 108.0)


def test_a_part_of_a_run_says_nothing_of_the_way():
    outbox = filled(ending(0), ending(1))
    send_all(outbox)
    (first,) = outbox.acknowledge(1)
    (second,) = outbox.acknowledge(2)
    assert first.entry.sent_at == 0.0
    assert second.entry.sent_at == 1.0
    assert outbox.sent_bytes == 0


def test_acks_of_every_item_of_a_run_alone():
    outbox = filled(*(ending(n, captured_at=float(n)) for n in range(1, 6)))
    for n in range(1, 6):
        (acked,) = outbox.acknowledge(n + 1)
        assert acked.items == 1
        assert acked.entry.captured_at == pytest.approx(n)
        assert acked.entry.last_captured_at == pytest.approx(n)
    assert outbox.held_from is None


# --- messages -------------------------------------------------------------------------------------------------------


def test_an_item_is_one_message_padded_as_bodies_are():
    payload = Payload(b"head", (memoryview(b"x" * 70), memoryview(b"y" * 64)), 4 + 128 + 64)
    parts = Entry(9, 2, 97.5, payload, tag=3).encode(100.0)
    (frame,) = feed(new_reader(), b"".join(parts))
    side = CloudSide(4, (2,))
    side.open()
    arrived = side.receive(frame)
    assert arrived[:4] == (9, 2_500_000, 2, 3)
    assert bytes(arrived.head) == b"head"
    assert bytes(arrived.body) == b"x" * 70 + bytes(58) + b"y" * 64


def test_large_buffers_are_sent_as_they_are():
    buffer = memoryview(bytearray(640))
    parts = Entry(0, 1, 0.0, Payload(b"h", (buffer,), 641)).encode(0.0)
    assert parts[1] is buffer


@pytest.mark.parametrize(
    ("captured_at", "last_captured_at", "ages_us"),
    [
        (97.0, 99.0, (3_000_000, 1_000_000)),
        (97.0, 0.0, (3_000_000, 3_000_000)),  # one item has one capture time
        (99.0, 97.0, (1_000_000, 1_000_000)),  # of an earlier run, whose clock was set in between
        (200.0, 300.0, (0, 0)),
    ],
)
def test_ages_of_a_run_make_sense_whatever_the_clock_did(captured_at, last_captured_at, ages_us):
    entry = ending(0, captured_at=captured_at, last_captured_at=last_captured_at, count=2)
    (message,) = entry.encode(100.0)
    decoded = EndingRange.decode(frame_of(message).head)
    assert (decoded.oldest_age_us, decoded.newest_age_us) == ages_us


# --- what an outage leaves --------------------------------------------------------------------------------------------


def test_the_oldest_payloads_are_given_up_and_become_runs():
    outbox = filled(*(item(n, captured_at=10.0 + n) for n in range(10)))
    for _ in range(7):
        assert outbox.drop_oldest_waiting("spool_full") == 1
    entries = send_all(outbox)
    assert runs(entries) == [(0, 7), (7, 1), (8, 1), (9, 1)]
    assert (entries[0].ending, entries[0].detail, entries[0].payload) == (Ending.DROPPED, "spool_full", None)
    assert (entries[0].captured_at, entries[0].last_captured_at) == (10.0, 16.0)
    assert outbox.sent_bytes == 4 * OVERHEAD_BYTES + 300


def test_what_is_on_its_way_is_not_given_up():
    outbox = filled(item(0))
    send_all(outbox)
    assert outbox.drop_oldest_waiting("spool_full") == 0
    assert outbox.sent_entries == 1


def test_a_full_outbox_says_so_until_something_is_given_up():
    outbox = Outbox(limit_bytes=3000)
    for n in range(2):
        outbox.add(item(n, 1000))
    assert outbox.full
    outbox.drop_oldest_waiting("spool_full")
    assert not outbox.full


def test_an_outage_without_end_leaves_a_bounded_outbox(monkeypatch):
    monkeypatch.setattr(outbox_module, "MOST_ENDED", 64)
    outbox = Outbox(limit_bytes=60_000)
    captured = itertools.count()
    dropped = 0
    for _ in range(20_000):  # every second item is filtered here, at changing splits, so that few endings join
        number = next(captured)
        entry = ending(number, split=1 + number % 4 // 2) if number % 2 else item(number, 1000)
        if outbox.full:
            dropped += outbox.drop_oldest_waiting("spool_full")
        outbox.add(entry)
    assert outbox.waiting_entries < 200
    entries = send_all(outbox)
    assert [entry.sequence for entry in entries][1:] == [entry.sequence + entry.count for entry in entries][:-1]
    assert sum(entry.count for entry in entries) == 20_000
    kept = [entry.sequence for entry in entries if entry.payload is not None]
    assert len(kept) == 10_000 - dropped
    assert kept == list(range(kept[0], 20_000, 2))  # the newest
    assert len(kept) > 10


# --- against a model ------------------------------------------------------------------------------------------------


class AgainstModel(RuleBasedStateMachine):
    """The model: a list of single items in order, how many of them are sent, and who is in which entry."""

    def __init__(self):
        super().__init__()
        self.outbox = Outbox()
        self.items = []  # (sequence, kind, size); kind: "item" or an ending with its detail
        self.sent_to = 0  # all below were sent on this connection
        self.next_sequence = 0
        self.acked_to = 0

    def add_to_both(self, entry, what, size_bytes):
        self.items.append([entry.sequence, what, size_bytes])
        self.outbox.add(entry)
        self.next_sequence += 1

    @rule(size_bytes=st.integers(0, 5000))
    def add_item(self, size_bytes):
        self.add_to_both(item(self.next_sequence, size_bytes, float(self.next_sequence)), "item", size_bytes)

    @rule(kind=st.sampled_from(Ending), detail=st.sampled_from("tu"), split=st.integers(1, 2), count=st.integers(1, 4))
    def add_endings(self, kind, detail, split, count):
        for _ in range(count):
            entry = ending(self.next_sequence, kind, detail, split, captured_at=float(self.next_sequence))
            self.add_to_both(entry, (kind, detail), 0)

    @precondition(lambda self: self.outbox.next() is not None)
    @rule(count=st.integers(1, 5))
    def send(self, count):
        for _ in range(count):
            entry = self.outbox.next()
            if entry is None:
                return
            waiting = [each for each in self.items if each[0] >= self.sent_to]
            covered = waiting[: entry.count]
            assert [each[0] for each in covered] == list(range(entry.sequence, entry.sequence + entry.count))
            expected = "item" if entry.payload is not None else (entry.ending, entry.detail)
            assert {each[1] for each in covered} == {expected}
            assert entry.captured_at == pytest.approx(entry.sequence)
            if entry.count > 1:
                assert entry.last_captured_at == pytest.approx(entry.sequence + entry.count - 1)
            self.outbox.sent(1.0 + entry.sequence, 7)
            assert (entry.sent_at, entry.delivered_bytes) == (1.0 + entry.sequence, 7)
            assert entry.ahead_bytes == self.outbox.sent_bytes
            self.sent_to = entry.sequence + entry.count

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def acknowledge(self, data):
        """Anywhere: within a run, and beyond what was sent on this connection."""
        to = data.draw(st.integers(self.acked_to, self.next_sequence))
        done = self.outbox.acknowledge(to)
        gone = [each for each in self.items if each[0] < to]
        self.items = [each for each in self.items if each[0] >= to]
        assert [sequence for entry, count in done for sequence in range(entry.sequence, entry.sequence + count)] == [
            each[0] for each in gone
        ]
        assert all(isinstance(each, Acked) and each.items == each.entry.count for each in done)
        for entry, _ in done:
            assert entry.captured_at == pytest.approx(entry.sequence)
        self.acked_to = to
        self.sent_to = max(self.sent_to, to)

    @rule()
    def rewind(self):
        self.outbox.rewind()
        self.sent_to = self.acked_to
        assert self.outbox.sent_entries == 0

    @rule()
    def drop_oldest_waiting(self):
        waiting = [each for each in self.items if each[1] == "item" and each[0] >= self.sent_to]
        assert self.outbox.drop_oldest_waiting("full") == bool(waiting)
        if waiting:
            waiting[0][1:] = [(Ending.DROPPED, "full"), 0]

    @rule()
    def take_all(self):
        entries = self.outbox.take_all()
        taken = [sequence for entry in entries for sequence in range(entry.sequence, entry.sequence + entry.count)]
        assert taken == [each[0] for each in self.items]
        self.items = []
        self.acked_to = self.sent_to = self.next_sequence

    @invariant()
    def bytes_are_counted(self):
        outbox = self.outbox
        size_bytes = sum(each[2] for each in self.items)
        entries = outbox.sent_entries + outbox.waiting_entries
        assert outbox.sent_bytes + outbox.waiting_bytes == size_bytes + OVERHEAD_BYTES * entries
        sent_bytes = sum(each[2] for each in self.items if each[0] < self.sent_to)
        assert outbox.sent_bytes == sent_bytes + OVERHEAD_BYTES * outbox.sent_entries

    @invariant()
    def the_first_is_known(self):
        assert self.outbox.held_from == (self.items[0][0] if self.items else None)


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
