"""One connection, as each side sees it. In: frames and the time. Out: events, or a ProtocolError that ends it.

A connection goes through these states on both sides, never back:

    GREETING  the device has sent, or will send, its hello; the cloud answers with a welcome or a refusal
    OPEN      the device sends items, endings, loads; the cloud acks and costs
    LEAVING   the device has sent its bye; the cloud finishes what it has and answers with a farewell
    CLOSED    nothing more is allowed

`_DEVICE` and `_CLOUD` say which frames each side may get in which state; whatever is not there is an error of the
peer. Whoever will not go on with a connection sends a refusal, in any state (the device from its hello on), and
closes it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from task_offload.errors import ProtocolError
from task_offload.wire.framing import Frame
from task_offload.wire.messages import (
    ITEM,
    Costs,
    EndingRange,
    Hello,
    Kind,
    Load,
    RefusalMessage,
    Totals,
    Welcome,
    check_ping,
    check_sequences,
    decode_bye,
    decode_totals,
)


class State(Enum):
    GREETING = "greeting"
    OPEN = "open"
    LEAVING = "leaving"
    CLOSED = "closed"

    __hash__ = object.__hash__  # of an enum it is a Python function, and each frame looks a state up


_DEVICE: dict[State, frozenset[Kind]] = {
    State.GREETING: frozenset({Kind.WELCOME, Kind.REFUSAL}),
    State.OPEN: frozenset({Kind.ACK, Kind.COSTS, Kind.PING, Kind.REFUSAL}),
    State.LEAVING: frozenset({Kind.ACK, Kind.COSTS, Kind.PING, Kind.FAREWELL, Kind.REFUSAL}),
    State.CLOSED: frozenset(),
}
_CLOUD: dict[State, frozenset[Kind]] = {
    State.GREETING: frozenset({Kind.HELLO}),
    State.OPEN: frozenset({Kind.ITEM, Kind.ENDINGS, Kind.LOAD, Kind.BYE, Kind.PING, Kind.REFUSAL}),
    State.LEAVING: frozenset({Kind.PING, Kind.REFUSAL}),
    State.CLOSED: frozenset(),
}


class Arrived(NamedTuple):
    """An item that came to the cloud, its payload still encoded."""

    sequence: int
    age_us: int
    split: int
    tag: int
    head: bytes
    body: memoryview | None


class Farewell(NamedTuple):
    """The cloud has recorded everything; the session's final books."""

    totals: Totals


class Bye(NamedTuple):
    """The device has ended all its items below `next_sequence`."""

    next_sequence: int


CloudEvent = Hello | Arrived | EndingRange | Load | Bye | RefusalMessage
DeviceEvent = Welcome | Totals | Costs | Farewell | RefusalMessage


class DeviceSide:
    """What the device may receive on one connection. The cloud's books never go back.

    Arguments:
        acked: what the hello says: all below it was acknowledged on earlier connections.
        sent: all below it was, or may have been, sent on earlier connections. Nothing from there on can be
            acknowledged before it is sent.
    """

    def __init__(self, acked: int = 0, sent: int = 0) -> None:
        self.state = State.GREETING
        self._acked = acked
        self._sent = sent

    def sent(self, end_sequence: int) -> None:
        """All items below `end_sequence` were sent, on this connection or an earlier one."""
        self._sent = max(self._sent, end_sequence)

    def leave(self) -> None:
        """The bye was sent."""
        self.state = State.LEAVING

    def receive(self, frame: Frame) -> DeviceEvent | None:
        """The event that a frame means; None for a sign of life.

        Raises:
            ProtocolError: the cloud may not send this now, or it makes no sense.
        """
        _check(frame, _DEVICE, self.state)
        if frame.kind is Kind.PING:
            check_ping(frame.head)
            return None
        if frame.kind is Kind.ACK:
            totals = decode_totals(frame.head)
            self._advance(totals)
            return totals
        if frame.kind is Kind.COSTS:
            return Costs.decode(frame.head)
        if frame.kind is Kind.WELCOME:
            welcome = Welcome.decode(frame.head)
            self._advance(welcome.totals)
            self.state = State.OPEN
            return welcome
        self.state = State.CLOSED
        if frame.kind is Kind.FAREWELL:
            totals = decode_totals(frame.head)
            self._advance(totals)
            return Farewell(totals)
        return RefusalMessage.decode(frame.head)

    def _advance(self, totals: Totals) -> None:
        if not self._acked <= totals.next_sequence <= self._sent:
            raise ProtocolError(
                f"the cloud acknowledged all below item {totals.next_sequence}, with {self._acked} acknowledged before "
                f"and {self._sent} sent"
            )
        self._acked = totals.next_sequence


class CloudSide:
    """What the cloud may receive on one connection. Items come in sequence order, each once.

    A connection may begin with items that an earlier one brought, and leave out what has been acknowledged since;
    whether something is missing shows in the session's books.
    """

    def __init__(self, tasks: int, splits: tuple[int, ...]) -> None:
        self.state = State.GREETING
        self._tasks = tasks
        self._splits = frozenset(splits)
        self._expected = 0

    def open(self) -> None:
        """The welcome was sent."""
        self.state = State.OPEN

    def close(self) -> None:
        self.state = State.CLOSED

    def receive(self, frame: Frame) -> CloudEvent | None:
        """The event that a frame means; None for a sign of life.

        Raises:
            ProtocolError: the device may not send this now, or it makes no sense.
        """
        _check(frame, _CLOUD, self.state)
        kind = frame.kind
        if kind is Kind.ITEM:
            return self._item(frame)
        if kind is Kind.PING:
            check_ping(frame.head)
            return None
        if kind is Kind.ENDINGS:
            endings = EndingRange.decode(frame.head)
            if not 1 <= endings.split <= self._tasks:
                raise ProtocolError(f"a split of {endings.split} in a chain of {self._tasks} tasks")
            self._follow(endings.first, endings.count)
            return endings
        if kind is Kind.LOAD:
            return Load.decode(frame.head)
        if kind is Kind.HELLO:
            return Hello.decode(frame.head)
        if kind is Kind.BYE:
            next_sequence = decode_bye(frame.head)
            self._follow(next_sequence, 0)
            self.state = State.LEAVING
            return Bye(next_sequence)
        self.state = State.CLOSED
        return RefusalMessage.decode(frame.head)

    def _item(self, frame: Frame) -> Arrived:
        head = frame.head
        if len(head) < ITEM.size:
            raise ProtocolError("a message is shorter than its fields")
        sequence, age_us, split, tag = ITEM.unpack_from(head)
        if split not in self._splits:
            raise ProtocolError(f"a split of {split}, which this chain does not allow")
        check_sequences(sequence, 1)
        self._follow(sequence, 1)
        return Arrived(sequence, age_us, split, tag, head[ITEM.size :], frame.body)

    def _follow(self, first: int, count: int) -> None:
        if first < self._expected:
            raise ProtocolError(f"item {first} came where item {self._expected} was due")
        self._expected = first + count


def _check(frame: Frame, allowed: dict[State, frozenset[Kind]], state: State) -> None:
    if frame.kind not in allowed[state]:
        raise ProtocolError(f"a {frame.kind.name.lower()} message is not allowed while {state.value}")
    if frame.body is not None and frame.kind is not Kind.ITEM:
        raise ProtocolError(f"a {frame.kind.name.lower()} message has no body")


class Liveness:
    """Heartbeats of one connection: when to say something, and when to take the silent peer for gone."""

    def __init__(self, heartbeat_s: float, silence_s: float, now_s: float) -> None:
        self.heartbeat_s = heartbeat_s
        self.silence_s = silence_s
        self.sent_at = now_s
        self.heard_at = now_s

    def gone(self, now_s: float) -> bool:
        return now_s - self.heard_at >= self.silence_s

    def ping_due(self, now_s: float) -> bool:
        return now_s - self.sent_at >= self.heartbeat_s

    def next_at(self, blocked: bool = False) -> float:
        """When one of them may change if nothing is sent or heard until then.

        Arguments:
            blocked: something is queued that cannot be sent now, so no ping is due however late it is.
        """
        gone_at = self.heard_at + self.silence_s
        return gone_at if blocked else min(self.sent_at + self.heartbeat_s, gone_at)
