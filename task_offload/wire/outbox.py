"""What a device has sent or will send, until it is acknowledged. In: entries in order, acks. Out: what to send.

An entry is an item with its payload, or a run of items that ended on the device. Entries stay until the cloud's ack
covers them; after a break all that is left is sent again, in the same order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from task_offload.wire.codec import Payload, padded_body
from task_offload.wire.messages import MOST_IN_RANGE, Ending, EndingRange, item_prefix

OVERHEAD_BYTES = 512  # what an entry costs beside its payload, so that empty ones count too
MOST_ENDED = 4096  # runs before the oldest waiting payload that an outage leaves as they were: a few days' drops


@dataclass(slots=True)
class Entry:
    """An item on its way, or a run of items that ended on the device.

    Attributes:
        sequence, count: the items sequence to sequence+count-1; an item with a payload stands alone.
        split: how many tasks ran, or would have run, on the device.
        captured_at, last_captured_at: when the first and the last of them were captured, in seconds of a steady
            clock, which nobody sets while items wait; below 0 for what is older than that clock.
        payload: encoded arguments of the next task; None for an ending.
        tag: what the payload's codec is called on the wire.
        ending, detail: how the items ended on the device, where they did.
        sent_at: when it was sent on this connection, by the same clock; 0 if it was not.
        ahead_bytes: what was on its way when it was sent, itself included.
        delivered_bytes: what had been acknowledged on this connection when it was sent.
        size_bytes: what it counts in an outbox.
    """

    sequence: int
    split: int
    captured_at: float
    payload: Payload | None = None
    tag: int = 0
    ending: Ending | None = None
    detail: str = ""
    count: int = 1
    last_captured_at: float = 0.0
    sent_at: float = 0.0
    ahead_bytes: int = 0
    delivered_bytes: int = 0
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = OVERHEAD_BYTES + (self.payload.size_bytes if self.payload is not None else 0)

    def drop(self, reason: str) -> None:
        """Gives the payload up."""
        self.payload, self.ending, self.detail = None, Ending.DROPPED, reason
        self.size_bytes = OVERHEAD_BYTES

    def joins(self, before: Entry) -> bool:
        """Whether `before` and this one are one run."""
        return (
            self.payload is None
            and before.payload is None
            and (before.ending, before.detail, before.split) == (self.ending, self.detail, self.split)
            and before.sequence + before.count == self.sequence
            and before.count + self.count <= MOST_IN_RANGE
        )

    def extend(self, after: Entry) -> None:
        """Takes the items of the run that follows into this one."""
        self.last_captured_at = after.last_captured_at or after.captured_at
        self.count += after.count

    def split_off(self, items: int) -> Entry:
        """Takes the first items of a run off it. Between its ends, capture times are spread evenly."""
        last = self.last_captured_at or self.captured_at
        apart_s = (last - self.captured_at) / max(1, self.count - 1)
        first = replace(self, count=items, last_captured_at=self.captured_at + (items - 1) * apart_s, sent_at=0.0)
        self.captured_at += items * apart_s
        self.sequence += items
        self.count -= items
        return first

    def encode(self, now_s: float) -> list[bytes | memoryview]:
        """The entry's message, for one scatter-gather write."""
        if self.payload is None:
            assert self.ending is not None
            oldest = _age_us(now_s, self.captured_at)
            newest = min(oldest, _age_us(now_s, self.last_captured_at or self.captured_at))
            return [
                EndingRange(self.sequence, self.count, self.ending, self.split, self.detail, oldest, newest).encode()
            ]
        head, _, size_bytes = payload = self.payload
        age_us = _age_us(now_s, self.captured_at)
        head_bytes = len(head)
        prefix = item_prefix(self.sequence, age_us, self.split, self.tag, head_bytes, size_bytes - head_bytes)
        return [prefix + head, *padded_body(payload)]


def _age_us(now_s: float, then_s: float) -> int:
    return max(0, int((now_s - then_s) * 1e6))  # what an earlier run left may be dated later than now


class Acked(NamedTuple):
    """An entry that the cloud has finished and recorded."""

    entry: Entry
    items: int


class Outbox:
    """Entries in sequence order: first those sent on this connection, then those that wait. No thread safety.

    Arguments:
        limit_bytes: what it may hold while there is no connection; see `full`.
    """

    def __init__(self, limit_bytes: int = 64 * 1024 * 1024) -> None:
        self._limit_bytes = limit_bytes
        self._sent: deque[Entry] = deque()
        self._waiting: deque[Entry] = deque()
        self.sent_bytes = 0
        self.waiting_bytes = 0

    @property
    def sent_entries(self) -> int:
        return len(self._sent)

    @property
    def waiting_entries(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether it holds as much as it may. It takes more all the same: `drop_oldest_waiting` first, or wait."""
        return self.sent_bytes + self.waiting_bytes >= self._limit_bytes

    @property
    def held_from(self) -> int | None:
        """The lowest sequence that is still here, or None."""
        if self._sent:
            return self._sent[0].sequence
        return self._waiting[0].sequence if self._waiting else None

    def add(self, entry: Entry) -> None:
        """Takes the entry that follows in sequence. Endings of one kind join the run before them."""
        last = self._waiting[-1] if self._waiting else None
        if last is not None and entry.joins(last):
            last.extend(entry)
            return
        self._waiting.append(entry)
        self.waiting_bytes += entry.size_bytes

    def next(self) -> Entry | None:
        """The entry to send next; `sent` must follow. None if all are sent."""
        return self._waiting[0] if self._waiting else None

    def sent(self, now_s: float, delivered_bytes: int) -> None:
        """The entry that `next` gave is sent."""
        entry = self._waiting.popleft()
        size_bytes = entry.size_bytes
        self.waiting_bytes -= size_bytes
        self.sent_bytes += size_bytes
        entry.sent_at = now_s
        entry.ahead_bytes = self.sent_bytes
        entry.delivered_bytes = delivered_bytes
        self._sent.append(entry)

    def replace_next(self, payload: Payload) -> None:
        """The entry that `next` gave gets another payload."""
        entry = self._waiting[0]
        assert entry.payload is not None
        more_bytes = payload.size_bytes - entry.payload.size_bytes
        entry.payload = payload
        entry.size_bytes += more_bytes
        self.waiting_bytes += more_bytes

    def acknowledge(self, next_sequence: int) -> list[Acked]:
        """Forgets all items below `next_sequence`. Returns the entries.

        A part of a run is an entry of its own, and counts as not sent: how long it took says nothing of the way.
        """
        done: list[Acked] = []
        self.sent_bytes -= _take_below(self._sent, next_sequence, done)
        self.waiting_bytes -= _take_below(self._waiting, next_sequence, done)
        return done

    def rewind(self) -> None:
        """A connection was lost: what was sent on it waits again."""
        while self._sent:
            entry = self._sent.pop()
            entry.sent_at = 0.0
            self._waiting.appendleft(entry)
        self.waiting_bytes += self.sent_bytes
        self.sent_bytes = 0

    def drop_oldest_waiting(self, reason: str) -> int:
        """Gives the oldest waiting payload up, so that a newer one has room. Returns how many items: 0 or 1.

        Runs of endings that pile up before it over a long outage are joined, and count as dropped too: what an
        outage leaves in memory is bounded.
        """
        waiting = self._waiting
        ended = next((index for index, each in enumerate(waiting) if each.payload is not None), len(waiting))
        if ended >= MOST_ENDED:
            ended = self._join_oldest(ended, reason)
        if ended == len(waiting):
            return 0
        entry = waiting[ended]
        self.waiting_bytes -= entry.size_bytes - OVERHEAD_BYTES
        entry.drop(reason)
        if ended and entry.joins(before := waiting[ended - 1]):
            before.extend(entry)
            del waiting[ended]
            self.waiting_bytes -= OVERHEAD_BYTES
        return 1

    def _join_oldest(self, ended: int, reason: str) -> int:
        """Joins the first entries, none of which has a payload, to longest runs. Returns how many these are."""
        runs: list[Entry] = []
        for _ in range(ended):
            entry = self._waiting.popleft()
            if runs and runs[-1].count + entry.count <= MOST_IN_RANGE:
                runs[-1].ending, runs[-1].detail = Ending.DROPPED, reason
                runs[-1].extend(entry)
            else:
                runs.append(entry)
        self._waiting.extendleft(reversed(runs))
        self.waiting_bytes -= OVERHEAD_BYTES * (ended - len(runs))
        return len(runs)

    def resume(self, next_sequence: int) -> None:
        """A connection begins; the cloud has recorded all below `next_sequence`. Nothing from there on is missing."""

    def take_all(self) -> list[Entry]:
        """Empties the outbox. Returns what it held, in order."""
        self.rewind()
        return self._empty()

    def _empty(self) -> list[Entry]:
        entries = list(self._waiting)
        self._waiting.clear()
        self.waiting_bytes = 0
        return entries


def _take_below(queue: deque[Entry], next_sequence: int, done: list[Acked]) -> int:
    """Moves all items below `next_sequence` from a queue to `done`. Returns how many bytes fewer the queue has."""
    taken_bytes = 0
    while queue and (entry := queue[0]).sequence < next_sequence:
        items = min(entry.count, next_sequence - entry.sequence)
        if items < entry.count:
            done.append(Acked(entry.split_off(items), items))
            continue
        done.append(Acked(queue.popleft(), items))
        taken_bytes += entry.size_bytes
    return taken_bytes
