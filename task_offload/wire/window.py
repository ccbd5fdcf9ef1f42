"""How much may be on its way. In: what was sent and acknowledged, and when. Out: whether the next item may go.

The window is what the way delivers in `HORIZON_S` beyond its own delay. So a queue on the way, in a socket's buffer,
in a router or in the cloud, never holds more than that, and neither a long way nor a fast one is left idle.

Delivery rate as in BBR (Cardwell et al., ACM Queue 14(5), 2016): bytes acknowledged between an item's sending and its
ack, by the time between; the maximum of the last seconds, since an idle sender measures too little. The delay of the
way itself is a round trip less the time that the bytes ahead took at that rate.
"""

from __future__ import annotations

from collections.abc import Callable

from task_offload.wire.outbox import Entry

HORIZON_S = 0.1  # queueing delay that full throughput may cost
MEMORY_S = 3.0  # how long a measurement counts: a link that fell is believed after so long
LEAST_ITEMS = 2  # one on its way while the next is processed
FIRST_BYTES = 64 * 1024  # before anything was measured, beside the least items


class Window:
    """The flow control of one connection."""

    def __init__(self, most_items: int, most_bytes: int) -> None:
        self.most_items = most_items
        self.most_bytes = most_bytes
        self.delivered_bytes = 0
        self._rate = _Extreme(max)
        self._delay = _Extreme(min)

    @property
    def goodput(self) -> float:
        """Bytes a second that the way carries, or carried when it had enough to carry; 0 if unknown."""
        return self._rate.value or 0.0

    @property
    def size_bytes(self) -> int:
        rate = self._rate.value
        if rate is None:
            return min(FIRST_BYTES, self.most_bytes)
        return min(self.most_bytes, int(rate * (HORIZON_S + (self._delay.value or 0.0))))

    def allows(self, sent_entries: int, sent_bytes: int, next_bytes: int) -> bool:
        """Whether an entry of `next_bytes` may be sent while so many entries and bytes are not acknowledged."""
        if sent_entries < LEAST_ITEMS:
            return sent_entries == 0 or sent_bytes + next_bytes <= self.most_bytes
        return sent_entries < self.most_items and sent_bytes + next_bytes <= self.size_bytes

    def acknowledged(self, entry: Entry, now_s: float) -> None:
        """An entry that was sent on this connection is acknowledged."""
        self.delivered_bytes += entry.size_bytes
        round_trip_s = max(now_s - entry.sent_at, 1e-6)
        self._rate.add((self.delivered_bytes - entry.delivered_bytes) / round_trip_s, now_s)
        self._delay.add(max(0.0, round_trip_s - entry.ahead_bytes / (self._rate.value or 1.0)), now_s)


class _Extreme:
    """The largest (or smallest) value of the last one to two `MEMORY_S`."""

    def __init__(self, better: Callable[[float, float], float]) -> None:
        self._better = better
        self._old: float | None = None
        self._new: float | None = None
        self._since_s = 0.0
        self.value: float | None = None

    def add(self, value: float, now_s: float) -> None:
        if now_s - self._since_s > MEMORY_S:
            self._old = self._new if now_s - self._since_s < 2 * MEMORY_S else None
            self._new = None
            self._since_s = now_s
        self._new = value if self._new is None else self._better(self._new, value)
        self.value = self._new if self._old is None else self._better(self._old, self._new)
