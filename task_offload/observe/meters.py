"""What a device's scheduler needs to know, counted. In: what each item cost. Out: one observation for each interval."""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass

from task_offload.observe.latency import LatencyHistogram
from task_offload.observe.load import Delays
from task_offload.scheduling.observation import Observation, PayloadCost, TaskCost
from task_offload.wire.messages import Costs

MEASURED = 8  # items by one split and codec in one interval: for CPU time that is enough, and asking for it is not free


@dataclass(slots=True)
class _TaskSums:
    """What one task cost on one side; see `TaskCost`. `cpu_s` is of as many items as were measured."""

    items: int = 0
    busy_s: float = 0.0
    survived: int = 0
    measured: int = 0
    cpu_s: float = 0.0

    def cost(self) -> TaskCost:
        return TaskCost(self.items, self.busy_s, self.survived, self.cpu_s * self.items / max(1, self.measured))


@dataclass(slots=True)
class _PayloadSums:
    """What the payloads of one split and codec cost, but for what sending them took; see `PayloadCost`.

    `encode_cpu_s` is of as many items as were measured.
    """

    items: int = 0
    size_bytes: int = 0
    encode_s: float = 0.0
    measured: int = 0
    encode_cpu_s: float = 0.0
    decoded: int = 0
    decode_s: float = 0.0

    def cost(self, sending_s: float) -> PayloadCost:
        encode_s = self.encode_s + sending_s
        encode_cpu_s = self.encode_cpu_s * self.items / max(1, self.measured) + sending_s
        return PayloadCost(self.items, self.size_bytes, encode_s, self.decoded, self.decode_s, encode_cpu_s)


class _Interval:
    """Counters and sums since the observation before."""

    def __init__(self, tasks: int) -> None:
        self.device = [_TaskSums() for _ in range(tasks)]
        self.cloud = [_TaskSums() for _ in range(tasks)]
        self.payloads: defaultdict[tuple[int, str], _PayloadSums] = defaultdict(_PayloadSums)
        self.unsent: Counter[tuple[int, str]] = Counter()
        self.finished = self.dropped = self.late = 0
        self.held_s = 0.0
        self.acked = self.acked_bytes = 0
        self.acked_s = 0.0  # from sent to acknowledged, all items together
        self.queued = 0
        self.queue_s = 0.0  # of all these
        self.transfer_bytes = 0
        self.transfer_s = 0.0


class _Sending:
    """CPU time of sending, as a straight line over the size: least squares over the last hundred or so sends."""

    KEEP = 0.99

    def __init__(self) -> None:
        self._sends = self._bytes = self._cpu_s = self._bytes_squared = self._bytes_cpu_s = 0.0

    def add(self, size_bytes: int, cpu_s: float) -> None:
        keep = self.KEEP
        self._sends = keep * self._sends + 1.0
        self._bytes = keep * self._bytes + size_bytes
        self._cpu_s = keep * self._cpu_s + cpu_s
        self._bytes_squared = keep * self._bytes_squared + size_bytes * size_bytes
        self._bytes_cpu_s = keep * self._bytes_cpu_s + size_bytes * cpu_s

    def cpu_s(self, payloads: float, size_bytes: float) -> float:
        """What it takes to send so many payloads of so many bytes together."""
        if not self._bytes:
            return 0.0
        spread = self._sends * self._bytes_squared - self._bytes * self._bytes
        if spread < 0.01 * self._bytes * self._bytes:  # all much the same size
            return size_bytes * self._cpu_s / self._bytes
        per_byte_s = (self._sends * self._bytes_cpu_s - self._bytes * self._cpu_s) / spread
        per_byte_s = min(max(per_byte_s, 0.0), self._cpu_s / self._bytes)
        return payloads * (self._cpu_s - per_byte_s * self._bytes) / self._sends + size_bytes * per_byte_s


class DeviceMeters:
    """Counters and sums since the observation before, and some of the whole run. Threads may share it.

    Attributes:
        latency: of all finished items.
        splits: how many items took each.
        captured, sent_bytes: in all.
        impossible: splits where arguments cannot travel, and why.
        workers, main_share: as the cloud told them last; see `Observation`.
    """

    def __init__(self, tasks: int, max_latency_s: float | None = None) -> None:
        self._tasks = tasks
        self._max_latency_s = max_latency_s or math.inf
        self._lock = threading.Lock()
        self._tags: list[str] = []
        self._sending = _Sending()
        self.latency = LatencyHistogram()
        self.splits: Counter[int] = Counter()
        self.captured = 0
        self.sent_bytes = 0
        self.impossible: dict[int, str] = {}
        self.workers, self.main_share = 1.0, 1.0
        self._captured_before = 0
        self._interval = _Interval(tasks)

    def tag(self, codec: str) -> int:
        """The number that stands for a codec on the wire."""
        if codec not in self._tags:
            self._tags.append(codec)
        return self._tags.index(codec)

    def wants_cpu(self, split: int, codec: str) -> bool:
        """Whether the CPU time of one more item that goes there is to be measured."""
        payloads = self._interval.payloads.get((split, codec))
        return payloads is None or payloads.measured < MEASURED

    def ran(self, first: int, busy_ns: Sequence[int], cpu_ns: Sequence[int], survived: bool) -> None:
        """Tasks from index `first` on ran on the device.

        Arguments:
            cpu_ns: empty where it was not measured.
            survived: the last of them let the item continue.
        """
        with self._lock:
            ran = self._interval.device[first : first + len(busy_ns)]
            for task, ns in zip(ran, busy_ns, strict=True):
                task.items += 1
                task.busy_s += ns / 1e9
                task.survived += 1
            for task, ns in zip(ran, cpu_ns, strict=False):
                task.measured += 1
                task.cpu_s += ns / 1e9
            if not survived:
                ran[-1].survived -= 1

    def unsent(self, split: int, codec: str) -> None:
        """An item ended without a payload."""
        with self._lock:
            self._interval.unsent[split, codec] += 1

    def cannot_travel(self, split: int, problem: Exception) -> bool:
        """The arguments of an item cannot be encoded there. Returns whether that is new."""
        with self._lock:
            new = split not in self.impossible
            self.impossible.setdefault(split, " ".join(str(problem).split()))
            return new

    def encoded(self, split: int, codec: str, size_bytes: int, busy_s: float, cpu_s: float | None) -> None:
        """A payload was encoded, in so much CPU time; None where it was not measured."""
        with self._lock:
            payload = self._interval.payloads[split, codec]
            payload.items += 1
            payload.size_bytes += size_bytes
            payload.encode_s += busy_s
            if cpu_s is not None:
                payload.measured += 1
                payload.encode_cpu_s += cpu_s

    def sent(self, size_bytes: int, cpu_s: float | None) -> None:
        """Bytes were handed to the system, in so much CPU time; None where nobody looked."""
        with self._lock:
            self.sent_bytes += size_bytes
            if cpu_s is not None:
                self._sending.add(size_bytes, cpu_s)

    def held(self, seconds: float) -> None:
        """The first task waited because what follows it had no room."""
        with self._lock:
            self._interval.held_s += seconds

    def dropped(self, items: int = 1) -> None:
        """Items were given up because something could not keep up."""
        with self._lock:
            self._interval.dropped += items

    def acked(
        self, size_bytes: int, round_trip_s: float | None, latency_s: float, items: int, finished: bool = True
    ) -> None:
        """An entry was acknowledged.

        Arguments:
            round_trip_s: None if it was not sent on this connection.
            finished: False for items that were dropped here, which have no latency.
        """
        with self._lock:
            interval = self._interval
            if round_trip_s is not None:
                interval.acked_bytes += size_bytes
                interval.acked += items
                interval.acked_s += round_trip_s * items
            if finished:
                self.latency.add(latency_s, items)
                if latency_s > self._max_latency_s:
                    interval.late += items

    def finished(self, items: int) -> None:
        """The device learned that items are finished."""
        with self._lock:
            self._interval.finished += items

    def cost(self, costs: Costs) -> None:
        """The cloud told its costs."""
        with self._lock:
            interval = self._interval
            self.workers, self.main_share = costs.workers, costs.main_share
            interval.queue_s += costs.queue_us / 1e6
            interval.queued += costs.queued
            interval.transfer_bytes += costs.transfer_bytes
            interval.transfer_s += costs.transfer_us / 1e6
            for told in costs.tasks:
                if told.task < self._tasks:
                    task = interval.cloud[told.task]
                    task.items += told.items
                    task.busy_s += told.busy_us / 1e6
                    task.survived += told.survived
            for cost in costs.payloads:
                if cost.tag < len(self._tags):
                    payload = interval.payloads[cost.split, self._tags[cost.tag]]
                    payload.decoded += cost.items
                    payload.decode_s += cost.busy_us / 1e6

    def observe(
        self,
        now_s: float,
        interval_s: float,
        backlog: int,
        link_busy_s: float,
        source_rate: float | None,
        cores: int,
        window: int,
        away: bool,
        cpu_s: float | None = None,
        window_full_s: float = 0.0,
        delays: Delays | None = None,
        codecs: Set[str] | None = None,
    ) -> Observation:
        """What happened since the observation before. See `Observation` for the arguments."""
        with self._lock:
            interval, self._interval = self._interval, _Interval(self._tasks)
            before, self._captured_before = self._captured_before, self.captured
            return Observation(
                now_s=now_s,
                interval_s=interval_s,
                captured=self._captured_before - before,
                finished=interval.finished,
                dropped=interval.dropped,
                device=tuple(task.cost() for task in interval.device),
                cloud=tuple(task.cost() for task in interval.cloud),
                payloads={
                    route: payload.cost(self._sending.cpu_s(payload.items, payload.size_bytes))
                    for route, payload in interval.payloads.items()
                },
                unsent=interval.unsent,
                acked_bytes=interval.acked_bytes,
                link_busy_s=link_busy_s,
                rtt_s=interval.acked_s / interval.acked if interval.acked else None,
                acked=interval.acked,
                queue_s=interval.queue_s / interval.queued if interval.queued else 0.0,
                backlog=backlog,
                source_rate=source_rate,
                cores=cores,
                workers=self.workers,
                main_share=self.main_share,
                window=window,
                window_full_s=window_full_s,
                in_local_outage=away,
                held_s=interval.held_s,
                transfer_bytes=interval.transfer_bytes,
                transfer_s=interval.transfer_s,
                late=interval.late,
                cpu_s=cpu_s,
                delayed_s=delays.seconds if delays is not None else None,
                threads=delays.threads if delays is not None else 1.0,
                codecs=codecs,
                impossible=frozenset(self.impossible),
            )
