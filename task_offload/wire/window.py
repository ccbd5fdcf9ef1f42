"""How much may be on its way. In: what was sent and acknowledged, and when. Out: whether the next item may go.

The window is what the way delivers in its shortest round trip and `HORIZON_S` more. So what is sent never waits much
longer than that behind what was sent before, be it in a socket's buffer, in a router or in the cloud, and neither a
long way nor a fast one is left idle. (It never waits for less than one item: nobody knows how far that has come.)

Both measurements are BBR's (Cardwell et al., ACM Queue 14(5), 2016; draft-cheng-iccrg-delivery-rate-estimation-02).
Delivery rate: bytes acknowledged since the last ack before an item was sent, by the time since that ack, or by the
time in which they were sent if that is longer: several acks at once would otherwise look like a faster way. Its
maximum over the last second or two counts. Round trip: the shortest, which is one without a queue; when none as short
was seen for long, the window is halved until an item has passed that found no queue.

BBR multiplies the product of the two by a gain. To add a time to the round trip instead, which bounds the queue in
seconds, is FAST TCP's rule (Jin, Wei, Low, INFOCOM 2004): a window that leaves the way idle grows by at least an item
and the part horizon / round trip in each round trip, and one that is too large shrinks at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from task_offload.wire.outbox import Entry

HORIZON_S = 0.1  # queueing delay that full throughput may cost
MEMORY_S = 1.0  # how long a measurement counts, and up to twice as long; a link that fell is believed after that
ROUND_TRIP_MEMORY_S = 10.0  # as in BBR: looking again costs half a round trip of sending
HARDLY = 0.1  # of round trip and horizon: an item that took so much longer found no queue worth the name
LEAST_ITEMS = 2  # one on its way while the next is processed
FIRST_BYTES = 64 * 1024  # before anything was measured, beside the least items


class Window:
    """The flow control of one connection.

    Arguments:
        most_items, most_bytes: what the cloud allows to be sent and not acknowledged.

    Attributes:
        size_bytes: while fewer are on their way, one more item may go.
        delivered_bytes: acknowledged so far.
    """

    def __init__(self, most_items: int, most_bytes: int) -> None:
        self.most_items = most_items
        self.most_bytes = most_bytes
        self.size_bytes = min(FIRST_BYTES, most_bytes)
        self.delivered_bytes = 0
        # Acks that entries on their way may have been sent after: delivered bytes, when they came, when that was sent.
        self._acks: deque[tuple[int, float, float]] = deque()
        self._rate = _Highest()
        self._largest = _Highest()
        self._round_trip_s = 0.0
        self._round_trip_bytes = 0  # the item that took it
        self._round_trip_at = 0.0  # when one as short was seen last
        self._draining_since: float | None = None

    def allows(self, sent_entries: int, sent_bytes: int, next_bytes: int) -> bool:
        """Whether an entry of `next_bytes` may be sent while so many entries and bytes are not acknowledged."""
        if not sent_entries:
            return True
        if sent_entries >= self.most_items or sent_bytes + next_bytes > self.most_bytes:
            return False
        least_items = LEAST_ITEMS if self._draining_since is None else 1
        return sent_entries < least_items or sent_bytes < self.size_bytes

    def acknowledged(self, entries: Sequence[Entry], now_s: float) -> None:
        """Entries that were sent on this connection are acknowledged together, in the order of their sending."""
        last_bytes = largest_bytes = 0
        for entry in entries:
            last_bytes = entry.size_bytes
            self.delivered_bytes += last_bytes
            largest_bytes = max(largest_bytes, last_bytes)
        last = entries[-1]
        self._largest.add(largest_bytes, now_s)
        self._rate.add(rate := self._rate_of(last, last_bytes, now_s), now_s)
        self._measure_round_trip(last, last_bytes, now_s)
        if self._draining_since is not None:
            window_bytes = rate * self._round_trip_s / 2
        else:
            window_bytes = self._rate.value * (self._round_trip_s + HORIZON_S)
            window_bytes += max(0.0, self._largest.value - self._round_trip_bytes)  # a larger item takes longer
        self.size_bytes = min(self.most_bytes, int(window_bytes))

    def _rate_of(self, entry: Entry, size_bytes: int, now_s: float) -> float:
        """Bytes a second that were delivered while an entry was on its way, which is acknowledged now."""
        acks = self._acks
        while len(acks) > 1 and acks[1][0] <= entry.delivered_bytes:
            acks.popleft()
        interval_s = now_s - entry.sent_at
        if acks and entry.ahead_bytes != size_bytes:  # the way was not idle
            delivered_bytes, acked_at, sent_at = acks[0]
            if delivered_bytes <= entry.delivered_bytes:
                interval_s = max(now_s - acked_at, entry.sent_at - sent_at)
        if acks and acks[-1][1] == now_s:
            acks.pop()
        acks.append((self.delivered_bytes, now_s, entry.sent_at))
        return (self.delivered_bytes - entry.delivered_bytes) / max(interval_s, 1e-6)

    def _measure_round_trip(self, entry: Entry, size_bytes: int, now_s: float) -> None:
        round_trip_s = now_s - entry.sent_at
        drained = self._draining_since is not None and entry.sent_at >= self._draining_since
        if drained or not self._round_trip_at or round_trip_s <= self._round_trip_s:
            self._round_trip_s, self._round_trip_bytes = round_trip_s, size_bytes
            self._round_trip_at, self._draining_since = now_s, None
        elif round_trip_s <= self._round_trip_s + HARDLY * (self._round_trip_s + HORIZON_S):
            self._round_trip_at = now_s
        elif self._draining_since is None and now_s - self._round_trip_at > ROUND_TRIP_MEMORY_S:
            self._draining_since = now_s


class _Highest:
    """The highest value of the last one to two `MEMORY_S`, or the last value."""

    def __init__(self) -> None:
        self._old: float | None = None
        self._new: float | None = None
        self._since_s = 0.0
        self.value = 0.0

    def add(self, value: float, now_s: float) -> None:
        if now_s - self._since_s > MEMORY_S:
            self._old = self._new if now_s - self._since_s < 2 * MEMORY_S else None
            self._new = None
            self._since_s = now_s
        if self._new is None or value > self._new:
            self._new = value
            self.value = value if self._old is None else max(self._old, value)
