"""One run of one device, as the cloud sees it: what has come of it, what is recorded of it, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from task_offload.engines.base import Done, Lane
from task_offload.observe.cloud_costs import CloudCosts
from task_offload.results.base import SessionBooks
from task_offload.transport.identity import Admission
from task_offload.transport.listener import Connection
from task_offload.wire.messages import EndingRange, Totals


class CloudSession:
    """One run of one device, across its connections.

    Each field belongs to one part of the cloud: `lane` to the engine; `connection` to `recorded_bytes` to the
    reception, on the listener's thread unless it says otherwise; `pending` and `next_sequence` to the finisher.
    """

    def __init__(self, device: str, session: bytes, books: SessionBooks, weight: float = 1.0) -> None:
        self.device = device
        self.session = session.hex()
        self.lane = Lane(weight)
        self.costs = CloudCosts()
        self.connection: Connection | None = None
        self.admission: Admission | None = None
        self.last_seen = 0.0
        self.costs_at = 0.0  # when they were told last
        self.expected = books.watermark  # the next sequence to take in
        self.bye: int | None = None
        self.shares = (1.0, 1.0)
        self.acked = books.watermark
        self.received_bytes = 0
        self.bytes_received_before = books.bytes_received
        self.taken_bytes = 0  # payloads that were taken in, and of these
        self.offence: str | None = None  # a payload that may not be decoded; guarded by the reception's lock
        self.totals = totals_of(books)  # replaced by the recorder's thread and read by others, as is
        self.recorded_bytes = 0  # those that are recorded
        self.pending: dict[int, Done | Endings] = {}  # guarded by the finisher's lock
        self.next_sequence = books.watermark  # the next sequence to hand to the last task; guarded likewise

    @property
    def unacked_bytes(self) -> int:
        return self.taken_bytes - self.recorded_bytes

    @property
    def unfinished(self) -> int:
        """How many items were taken in and are not recorded."""
        return self.expected - self.totals.next_sequence

    def recorded(self, books: SessionBooks) -> None:
        """Its books have grown."""
        self.recorded_bytes = books.bytes_received - self.bytes_received_before
        self.totals = totals_of(books)

    def report(self) -> dict[str, Any]:
        """The session's entry in the run report."""
        totals = self.totals
        return {
            "device": self.device,
            "session": self.session,
            "items": {
                "captured": totals.next_sequence,
                "completed": totals.completed,
                "filtered": totals.filtered,
                "dropped": dict(totals.dropped),
            },
            "cloud_cpu_s": round(totals.cloud_cpu_us / 1e6, 6),
            "bytes_received": self.bytes_received_before + self.received_bytes,
        }


class Endings:
    """A run of items that ended on the device, from `first` on; those before it came on an earlier connection."""

    __slots__ = ("count", "first", "session", "told")

    def __init__(self, session: CloudSession, first: int, count: int, told: EndingRange) -> None:
        self.session = session
        self.first = first
        self.count = count
        self.told = told


def totals_of(books: SessionBooks) -> Totals:
    """What an ack says."""
    return Totals(books.watermark, books.completed, books.filtered, dict(books.dropped), int(books.cloud_cpu_s * 1e6))


def summary(items: Mapping[str, Any]) -> str:
    """A report's items in words."""
    dropped: Mapping[str, int] = items["dropped"]
    why = f" ({', '.join(f'{count} {reason}' for reason, count in dropped.items())})" if dropped else ""
    return (
        f"{items['captured']} items came, {items['completed']} completed, {items['filtered']} filtered, "
        f"{sum(dropped.values())} dropped{why}"
    )
