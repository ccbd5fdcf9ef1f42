"""An outbox that keeps what waits on disk while the cloud is away. In: entries, acks. Out: what to send, as `Outbox`.

There are two states. While it spools, every entry goes to the disk, behind those that are there, and what is to be
sent is read back from there. When all of it has been read back and sent, entries stay in memory again, and cost no
disk. When the connection is lost, what is in memory goes to the disk. So the order is kept, whatever happens when.

On disk, capture times are Unix seconds: a later run can make something of nothing else. What this run wrote, it reads
back as it was, even if the clock was set meanwhile.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable

from task_offload.errors import StoreError
from task_offload.spool import DiskSpool, SpoolReader
from task_offload.wire.codec import Payload, padded_body
from task_offload.wire.messages import MOST_IN_RANGE, Ending
from task_offload.wire.outbox import Acked, Entry, Outbox

log = logging.getLogger(__name__)

MOST_DETAIL_BYTES = 1000
CLOCK_STEP_S = 1.0  # less is how the clocks drift apart

# captured at, last captured at, split, tag, ending (0: none), bytes of the detail, bytes of the payload's head
_ENTRY = struct.Struct("<ddBBBHI")


def unix_offset() -> float:
    """Unix seconds less those of the steady clock."""
    return time.time() - time.monotonic()


class SpooledOutbox(Outbox):
    """Entries of one session, in memory while they are sent at once, on disk while they wait.

    Arguments:
        spool: where they wait.
        session: 32 hexadecimal digits; the spool knows it (`DiskSpool.begin`), or found it.
        limit_bytes: what the spool may hold; see `Outbox.full`.
        held: sequences that the spool found of it: the first, and the one after the last.
        drop_when_full: an entry that finds no room becomes a drop; otherwise it waits in memory, and `full` says so.
        offset: Unix seconds less those of the steady clock, now.
    """

    def __init__(
        self,
        spool: DiskSpool,
        session: str,
        limit_bytes: int,
        held: tuple[int, int] | None = None,
        drop_when_full: bool = False,
        offset: Callable[[], float] = unix_offset,
    ) -> None:
        super().__init__(limit_bytes)
        self._spool = spool
        self._session = session
        self._drop_when_full = drop_when_full
        self._spooling = True
        self._failed = False
        self._overflow = Outbox()  # what found no room on the disk, behind all that did
        self._disk_begin, self._disk_end = held or (0, 0)
        self._read_to = self._disk_begin
        self._acked_to = 0
        self._reader: SpoolReader | None = None
        self._last_bytes = 0
        self._offset = offset
        self._offsets: list[tuple[int, float]] = []  # by which this run dated what it wrote, each from a sequence on

    @property
    def waiting_entries(self) -> int:
        return super().waiting_entries + (self._disk_end - self._read_to) + self._overflow.waiting_entries

    @property
    def held_from(self) -> int | None:
        held_from = super().held_from
        if held_from is None and self._read_to < self._disk_end:
            return self._read_to
        return self._overflow.held_from if held_from is None else held_from

    @property
    def spooled(self) -> int:
        """Items that wait on disk, for a later run if need be."""
        return max(0, self._disk_end - max(self._acked_to, self._disk_begin))

    @property
    def full(self) -> bool:
        self._write_overflow()
        return bool(self._overflow.waiting_entries) or self._spool.size_bytes + 2 * self._last_bytes > self._limit_bytes

    def drop_oldest_waiting(self, reason: str) -> int:
        """What is on disk cannot be given up: the newest will be, in `add`."""
        return 0

    def add(self, entry: Entry) -> None:
        if not self._spooling:
            super().add(entry)
            return
        self._last_bytes = entry.size_bytes
        self._write_overflow()
        if self._overflow.waiting_entries or not self._write(entry):
            if self._drop_when_full and entry.payload is not None:
                entry.drop("spool_full")
            self._overflow.add(entry)

    def next(self) -> Entry | None:
        while (entry := super().next()) is None:
            if self._read_to < self._disk_end:
                if not self._read_back():
                    return None
                continue
            self._spooling = False
            rest = self._overflow.take_all()
            if not rest:
                return None
            for each in rest:
                super().add(each)
        return entry

    def acknowledge(self, next_sequence: int) -> list[Acked]:
        done = super().acknowledge(next_sequence)
        self._acked_to = max(self._acked_to, next_sequence)
        if self._disk_end:
            self._spool.forget(self._session, next_sequence)
            if next_sequence > self._read_to:
                self._read_from(min(next_sequence, self._disk_end))
                self._overflow.acknowledge(next_sequence)
        return done

    def resume(self, next_sequence: int) -> None:
        if self._disk_end and super().held_from is None and next_sequence < self._read_to:
            self._read_from(next_sequence)

    def rewind(self) -> None:
        """The connection was lost: everything goes to the disk."""
        super().rewind()
        self._spooling = True
        first = super().held_from
        for entry in self._empty():
            if entry.sequence >= self._disk_end:
                self.add(entry)
        if first is not None:
            self._read_from(min(first, self._disk_end))

    def take_all(self) -> list[Entry]:
        """The run ends: what can wait on disk does. Returns what cannot."""
        self.rewind()
        self._write_overflow()
        self._close_reader()
        return self._overflow.take_all()

    def _read_from(self, sequence: int) -> None:
        self._read_to = sequence
        self._close_reader()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _write_overflow(self) -> None:
        while (entry := self._overflow.next()) is not None and self._write(entry):
            self._overflow.acknowledge(entry.sequence + entry.count)

    def _write(self, entry: Entry) -> bool:
        """Appends an entry to the spool; False if there is no room, or the disk fails."""
        detail = entry.detail.encode(errors="replace")[:MOST_DETAIL_BYTES]
        head = entry.payload.head if entry.payload else b""
        offset = self._offset_for(entry.sequence)
        fixed = _ENTRY.pack(
            entry.captured_at + offset,
            entry.last_captured_at and entry.last_captured_at + offset,
            entry.split,
            entry.tag,
            entry.ending or 0,
            len(detail),
            len(head),
        )
        body = padded_body(entry.payload) if entry.payload else []
        try:
            self._spool.append(self._session, entry.sequence, [fixed + detail + head, *body], entry.count)
        except StoreError as error:
            if not self._failed:
                log.warning("%s", error)
            self._failed = True
            return False
        self._failed = False
        if not self._disk_end:
            self._disk_begin = self._read_to = entry.sequence
        self._disk_end = entry.sequence + entry.count
        return True

    def _read_back(self) -> bool:
        """Reads the next entry back from the disk; what is missing there becomes a run of drops."""
        if self._reader is None:
            self._reader = self._spool.reader(self._session, self._read_to)
        try:
            spooled = self._reader.next()
        except StoreError as error:
            if not self._failed:
                log.warning("%s", error)
            self._failed = True
            return False
        end = self._disk_end if spooled is None else spooled.sequence
        if end > self._read_to:
            # A kill of the device lost what was in memory before the first, damage what lay between.
            for first in range(self._read_to, end, MOST_IN_RANGE):
                count = min(MOST_IN_RANGE, end - first)
                never = -self._offset()  # Unix second 0: nobody knows when
                super().add(Entry(first, 1, never, ending=Ending.DROPPED, detail="lost_on_device", count=count))
        if spooled is None:
            self._read_to = self._disk_end
            return True
        offset = self._offset_of(spooled.sequence)
        entry = _decode(spooled.sequence, spooled.items, memoryview(spooled.message), offset)
        self._read_to = max(self._read_to, spooled.sequence + spooled.items)
        super().add(entry)
        return True

    def _offset_for(self, sequence: int) -> float:
        """The offset that dates the entry that begins with this sequence and is written now."""
        now = self._offset()
        if not self._offsets or abs(now - self._offsets[-1][1]) > CLOCK_STEP_S:
            self._offsets.append((sequence, now))
        return self._offsets[-1][1]

    def _offset_of(self, sequence: int) -> float:
        """The offset that dated the entry that begins with this sequence; if an earlier run wrote it, today's."""
        return next((offset for first, offset in reversed(self._offsets) if first <= sequence), self._offset())


def _decode(sequence: int, count: int, message: memoryview, offset: float) -> Entry:
    captured_at, last_captured_at, split, tag, ending, detail_bytes, head_bytes = _ENTRY.unpack_from(message)
    captured_at -= offset
    last_captured_at = last_captured_at and last_captured_at - offset
    at = _ENTRY.size + detail_bytes
    detail = bytes(message[_ENTRY.size : at]).decode(errors="ignore")
    if ending:
        return Entry(
            sequence, split, captured_at, ending=Ending(ending), detail=detail, count=count,
            last_captured_at=last_captured_at,
        )  # fmt: skip
    head, body = bytes(message[at : at + head_bytes]), message[at + head_bytes :]
    payload = Payload(head, (body,) if body else (), len(head) + len(body))
    return Entry(sequence, split, captured_at, payload, tag)
