"""Both sides of a connection: what each takes in which state, and that nothing is lost between them when it breaks."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from task_offload.errors import ProtocolError
from task_offload.wire.codec import Payload
from task_offload.wire.framing import Frame
from task_offload.wire.messages import (
    MOST_SEQUENCE,
    Costs,
    Ending,
    EndingRange,
    Hello,
    Kind,
    Load,
    RefusalMessage,
    Totals,
    Welcome,
    ack,
    bye,
    farewell,
    item_prefix,
)
from task_offload.wire.outbox import Entry, Outbox
from task_offload.wire.session import Arrived, Bye, CloudSide, DeviceSide, Farewell, Liveness, State
from tests.wire.samples import GOLDEN, HELLO, TOTALS, WELCOME, frame_of, raw_frame

FRAMES = {Kind[name.upper()]: frame_of(message) for name, (message, _) in GOLDEN.items()}
TASKS, SPLITS = 4, (1, 2, 3)


def welcome(next_sequence: int = 0) -> Frame:
    return frame_of(Welcome(Totals(next_sequence), 2.0, 8.0, 1, 1, 1).encode())


def acked(next_sequence: int) -> Frame:
    return frame_of(ack(Totals(next_sequence)))


def item(sequence: int, split: int = 1, payload: bytes = b"") -> Frame:
    return frame_of(item_prefix(sequence, 0, split, 0, len(payload), 0) + payload)


def ended(first: int, count: int, split: int = 1) -> Frame:
    return frame_of(EndingRange(first, count, Ending.DROPPED, split, "overload").encode())


# --- every message in every state, on both sides --------------------------------------------------------------------

DEVICE_MAY_GET = {
    State.GREETING: {Kind.WELCOME, Kind.REFUSAL},
    State.OPEN: {Kind.ACK, Kind.COSTS, Kind.PING, Kind.REFUSAL},
    State.LEAVING: {Kind.ACK, Kind.COSTS, Kind.PING, Kind.FAREWELL, Kind.REFUSAL},
    State.CLOSED: set(),
}
CLOUD_MAY_GET = {
    State.GREETING: {Kind.HELLO},
    State.OPEN: {Kind.ITEM, Kind.ENDINGS, Kind.LOAD, Kind.BYE, Kind.PING, Kind.REFUSAL},
    State.LEAVING: {Kind.PING, Kind.REFUSAL},
    State.CLOSED: set(),
}
THEN = {Kind.WELCOME: State.OPEN, Kind.FAREWELL: State.CLOSED, Kind.REFUSAL: State.CLOSED, Kind.BYE: State.LEAVING}


def device_side(state: State) -> DeviceSide:
    side = DeviceSide(sent=WELCOME.totals.next_sequence)
    if state is not State.GREETING:
        side.receive(FRAMES[Kind.WELCOME])
    if state is State.LEAVING:
        side.leave()
    if state is State.CLOSED:
        side.receive(FRAMES[Kind.REFUSAL])
    assert side.state is state
    return side


def cloud_side(state: State) -> CloudSide:
    side = CloudSide(TASKS, SPLITS)
    side.receive(FRAMES[Kind.HELLO])
    if state is not State.GREETING:
        side.open()
    if state is State.LEAVING:
        side.receive(FRAMES[Kind.BYE])
    if state is State.CLOSED:
        side.close()
    assert side.state is state
    return side


SIDES = {"device": (device_side, DEVICE_MAY_GET), "cloud": (cloud_side, CLOUD_MAY_GET)}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", SIDES)
def test_every_message_in_every_state(name, state, kind):
    make, allowed = SIDES[name]
    side = make(state)
    if kind in allowed[state]:
        side.receive(FRAMES[kind])
        assert side.state is THEN.get(kind, state)
    else:
        with pytest.raises(ProtocolError, match=f"a {kind.name.lower()} message is not allowed while {state.value}"):
            side.receive(FRAMES[kind])
        assert side.state is state


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.ITEM])
@pytest.mark.parametrize("name", SIDES)
def test_only_items_have_a_body(name, kind):
    make, allowed = SIDES[name]
    states = [state for state in State if kind in allowed[state]]
    for state in states:
        with pytest.raises(ProtocolError, match="has no body"):
            make(state).receive(FRAMES[kind]._replace(body=memoryview(b"x")))


@pytest.mark.parametrize("name", SIDES)
def test_a_ping_is_empty(name):
    make, _ = SIDES[name]
    assert make(State.OPEN).receive(raw_frame(Kind.PING)) is None
    with pytest.raises(ProtocolError):
        make(State.OPEN).receive(raw_frame(Kind.PING, b"x"))


def test_what_each_message_becomes():
    device, cloud = device_side(State.OPEN), cloud_side(State.OPEN)
    device.sent(1000)
    assert device_side(State.GREETING).receive(FRAMES[Kind.WELCOME]) == WELCOME
    assert device.receive(FRAMES[Kind.ACK]) == TOTALS
    assert type(device.receive(FRAMES[Kind.COSTS])) is Costs
    assert type(device.receive(FRAMES[Kind.REFUSAL])) is RefusalMessage
    leaving = device_side(State.LEAVING)
    assert leaving.receive(FRAMES[Kind.FAREWELL]) == Farewell(TOTALS)
    assert CloudSide(TASKS, SPLITS).receive(FRAMES[Kind.HELLO]) == HELLO
    arrived = cloud.receive(FRAMES[Kind.ITEM])
    assert type(arrived) is Arrived
    assert arrived[:4] == (260, 1_000_000, 3, 1)
    assert (bytes(arrived.head), bytes(arrived.body)) == (b"\xaa\xbb", bytes(64))
    assert type(cloud.receive(frame_of(EndingRange(261, 3, Ending.DROPPED, 2, "x").encode()))) is EndingRange
    assert type(cloud.receive(FRAMES[Kind.LOAD])) is Load
    assert cloud.receive(frame_of(bye(264))) == Bye(264)


def test_a_hello_of_another_version_is_an_event_so_that_it_can_be_refused():
    head = bytearray(FRAMES[Kind.HELLO].head)
    head[4] = 9
    hello = CloudSide(TASKS, SPLITS).receive(raw_frame(Kind.HELLO, bytes(head)))
    assert type(hello) is Hello
    assert hello.version == 9


# --- the cloud: order and splits ------------------------------------------------------------------------------------


def test_items_and_endings_come_in_order():
    side = cloud_side(State.OPEN)
    side.receive(item(5))
    side.receive(ended(6, 10))
    side.receive(item(16))
    side.receive(item(20))  # those between were acknowledged since
    assert side.receive(frame_of(bye(21))) == Bye(21)


@pytest.mark.parametrize("late", [item(9), ended(9, 5), ended(0, 10), frame_of(bye(9)), item(0)])
def test_what_comes_again_on_a_connection_is_refused(late):
    side = cloud_side(State.OPEN)
    side.receive(item(9))
    with pytest.raises(ProtocolError, match="came where item 10 was due"):
        side.receive(late)


@pytest.mark.parametrize("split", [0, 4, 5, 255])
def test_an_item_has_a_split_that_the_chain_allows(split):
    with pytest.raises(ProtocolError, match=f"a split of {split}"):
        cloud_side(State.OPEN).receive(item(0, split))


@pytest.mark.parametrize(("split", "allowed"), [(0, False), (1, True), (4, True), (5, False)])
def test_endings_have_a_split_of_the_chain(split, allowed):
    side = cloud_side(State.OPEN)
    if allowed:
        assert side.receive(ended(0, 1, split)).split == split
    else:
        with pytest.raises(ProtocolError, match=f"a split of {split}"):
            side.receive(ended(0, 1, split))


def test_an_item_is_as_long_as_its_fields_at_least():
    with pytest.raises(ProtocolError, match="shorter"):
        cloud_side(State.OPEN).receive(raw_frame(Kind.ITEM, bytes(23)))


@pytest.mark.parametrize("last", [item(MOST_SEQUENCE - 1), ended(MOST_SEQUENCE - 3, 3), frame_of(bye(MOST_SEQUENCE))])
def test_the_last_sequence_is_allowed(last):
    assert cloud_side(State.OPEN).receive(last) is not None


@pytest.mark.parametrize(
    "beyond", [item(MOST_SEQUENCE), item(2**64 - 1), raw_frame(Kind.BYE, b"\xff" * 8)], ids=["next", "last", "bye"]
)
def test_what_is_beyond_the_last_sequence_is_refused(beyond):
    with pytest.raises(ProtocolError, match="beyond the last"):
        cloud_side(State.OPEN).receive(beyond)


# --- the device: what may be acknowledged ---------------------------------------------------------------------------


def test_acks_go_forward_and_not_beyond_what_was_sent():
    side = DeviceSide(sent=5)
    side.receive(welcome(5))
    side.sent(8)
    assert side.receive(acked(6)).next_sequence == 6
    assert side.receive(acked(6)).next_sequence == 6
    assert side.receive(acked(8)).next_sequence == 8
    for wrong in (7, 9):
        with pytest.raises(ProtocolError, match="acknowledged all below"):
            side.receive(acked(wrong))


def test_a_farewell_keeps_to_the_same():
    side = DeviceSide(sent=5)
    side.receive(welcome(5))
    side.sent(8)
    side.leave()
    with pytest.raises(ProtocolError, match="acknowledged all below"):
        side.receive(frame_of(farewell(Totals(4))))


def test_an_ack_may_overtake_what_is_sent_again():
    side = DeviceSide(acked=3, sent=10)
    side.receive(welcome(5))
    side.sent(6)
    assert side.receive(acked(10)).next_sequence == 10
    with pytest.raises(ProtocolError):
        side.receive(acked(11))


@pytest.mark.parametrize("next_sequence", [3, 7, 10])
def test_a_session_is_taken_up_between_what_was_acknowledged_and_what_was_sent(next_sequence):
    assert DeviceSide(acked=3, sent=10).receive(welcome(next_sequence)).totals.next_sequence == next_sequence


@pytest.mark.parametrize("next_sequence", [2, 11])
def test_a_session_that_was_another_is_not_taken_up(next_sequence):
    side = DeviceSide(acked=3, sent=10)
    with pytest.raises(ProtocolError, match="with 3 acknowledged before and 10 sent"):
        side.receive(welcome(next_sequence))
    assert side.state is State.GREETING


def test_a_device_that_does_not_know_what_it_sent_takes_the_clouds_word():
    side = DeviceSide(sent=2**63)
    side.receive(welcome(1000))
    assert side.receive(acked(1001)).next_sequence == 1001
    with pytest.raises(ProtocolError):
        side.receive(acked(1000))


# --- heartbeats -----------------------------------------------------------------------------------------------------


def test_a_ping_is_due_after_a_heartbeat_and_the_peer_gone_after_silence():
    liveness = Liveness(2.0, 8.0, 100.0)
    assert not liveness.ping_due(101.9)
    assert liveness.ping_due(102.0)
    liveness.sent_at = 102.0
    assert not liveness.ping_due(103.9)
    assert not liveness.gone(107.9)
    assert liveness.gone(108.0)
    liveness.heard_at = 107.0
    assert not liveness.gone(108.0)


def test_the_next_look_is_when_the_first_of_both_is_due():
    liveness = Liveness(2.0, 8.0, 100.0)
    assert liveness.next_at() == 102.0
    liveness.sent_at = 107.0
    assert liveness.next_at() == 108.0


def test_a_sender_that_is_blocked_does_not_look_for_a_ping():
    assert Liveness(2.0, 8.0, 100.0).next_at(blocked=True) == 108.0


# --- both sides, over connections that break ------------------------------------------------------------------------


class TwoSides(RuleBasedStateMachine):
    """A device and a cloud that records. What is on its way is lost when the connection breaks.

    The cloud takes in what follows what it has taken in, as `reception.py` does: `taken` in memory, `recorded` on disk.
    """

    def __init__(self):
        super().__init__()
        self.outbox = Outbox()
        self.next_sequence = 0
        self.acked = self.sent_to = 0
        self.was = {}  # how each item came into the outbox, and whether it was dropped there
        self.records = {}  # what the cloud recorded, without what it may record again because its books were lost
        self.taken = []  # came and is not recorded
        self.recorded = 0
        self.device = None

    @property
    def expected(self):
        return self.taken[-1][0] + 1 if self.taken else self.recorded

    @initialize()
    def begin(self):
        self.connect()

    @rule()
    def item(self):
        self.was[self.next_sequence] = {"item"}
        self.outbox.add(Entry(self.next_sequence, 1, 0.0, Payload(b"x", (), 1)))
        self.next_sequence += 1

    @rule(kind=st.sampled_from(Ending), count=st.integers(1, 4))
    def endings(self, kind, count):
        for _ in range(count):
            self.was[self.next_sequence] = {kind}
            self.outbox.add(Entry(self.next_sequence, 1, 0.0, ending=kind, detail="x"))
            self.next_sequence += 1

    @rule()
    def drop(self):
        waiting = [entry.sequence for entry in self.outbox._waiting if entry.payload is not None]
        assert self.outbox.drop_oldest_waiting("x") == bool(waiting)
        if waiting:
            self.was[waiting[0]].add(Ending.DROPPED)

    @precondition(lambda self: self.device is not None and self.outbox.next() is not None)
    @rule(count=st.integers(1, 5))
    def send(self, count):
        for _ in range(count):
            entry = self.outbox.next()
            if entry is None:
                break
            self.to_cloud.append(b"".join(entry.encode(0.0)))
            self.outbox.sent(1.0, 0)
            self.sent_to = max(self.sent_to, entry.sequence + entry.count)
            self.device.sent(self.sent_to)

    @precondition(lambda self: self.device is not None and self.to_cloud)
    @rule(count=st.integers(1, 5))
    def arrive(self, count):
        for _ in range(min(count, len(self.to_cloud))):
            event = self.cloud.receive(frame_of(self.to_cloud.pop(0)))
            if isinstance(event, Arrived):
                first, what = event.sequence, ["item"]
            else:
                first, what = event.first, [event.ending] * event.count
            assert first <= self.expected, "an item is missing"
            for sequence, each in enumerate(what, first):
                if sequence >= self.expected:
                    self.taken.append((sequence, each))

    @precondition(lambda self: self.taken)
    @rule(count=st.integers(1, 6))
    def record(self, count):
        for sequence, what in self.taken[:count]:
            assert sequence == self.recorded
            assert sequence not in self.records, "recorded twice"
            assert what in self.was[sequence]
            self.records[sequence] = what
            self.recorded += 1
        del self.taken[:count]
        if self.device is not None:
            self.to_device.append(ack(Totals(self.recorded)))

    @precondition(lambda self: self.device is not None and self.to_device)
    @rule()
    def learn(self):
        totals = self.device.receive(frame_of(self.to_device.pop(0)))
        self.outbox.acknowledge(totals.next_sequence)
        self.acked = totals.next_sequence

    @precondition(lambda self: self.device is not None)
    @rule()
    def break_connection(self):
        self.device = self.cloud = None
        self.outbox.rewind()

    @precondition(lambda self: self.device is None)
    @rule()
    def cloud_crashes(self):
        self.taken.clear()

    @precondition(lambda self: self.device is None)
    @rule()
    def cloud_loses_its_books(self):
        """As with `--results none`: what the device does not know to be recorded may be recorded again."""
        self.taken.clear()
        self.recorded = 0
        self.records = {sequence: what for sequence, what in self.records.items() if sequence < self.acked}

    @precondition(lambda self: self.device is None)
    @rule()
    def connect(self):
        self.recorded = max(self.recorded, self.acked)  # a cloud that lost its books begins where the device says
        self.to_cloud, self.to_device = [], []
        self.cloud = CloudSide(TASKS, SPLITS)
        self.cloud.open()
        self.device = DeviceSide(self.acked, self.sent_to)
        totals = self.device.receive(welcome(self.recorded)).totals
        self.outbox.acknowledge(totals.next_sequence)
        self.acked = totals.next_sequence

    @invariant()
    def what_is_acknowledged_is_recorded(self):
        assert all(sequence in self.records for sequence in range(self.acked))

    def teardown(self):
        if self.device is not None:
            self.break_connection()
        self.connect()
        while self.outbox.next() is not None:
            self.send(100)
        while self.to_cloud:
            self.arrive(100)
        while self.taken:
            self.record(100)
        while self.to_device:
            self.learn()
        assert self.recorded == self.acked == self.next_sequence
        assert self.outbox.held_from is None
        assert sorted(self.records) == list(range(self.next_sequence))


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
