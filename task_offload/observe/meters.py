"""What a device's scheduler needs to know, counted. In: what each item cost. Out: one observation for each interval."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Sequence, Set

from task_offload.observe.latency import LatencyHistogram
from task_offload.observe.load import Delays
from task_offload.scheduling.observation import Observation, PayloadCost, TaskCost
from task_offload.wire.messages import Costs


class _Tasks:
    """Items, busy seconds and survivors of each task on one side."""

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks
        self.clear()

    def clear(self) -> None:
        self.items = [0] * self._tasks
        self.busy_s = [0.0] * self._tasks
        self.cpu_s = [0.0] * self._tasks
        self.survived = [0] * self._tasks

    def take(self) -> tuple[TaskCost, ...]:
        costs = tuple(map(TaskCost, self.items, self.busy_s, self.survived, self.cpu_s))
        self.clear()
        return costs


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
    """Counters and sums since the observation before. Threads may share it."""

    def __init__(self, tasks: int, max_latency_s: float | None = None) -> None:
        self._max_latency_s = max_latency_s or math.inf
        self._lock = threading.Lock()
        self._device = _Tasks(tasks)
        self._cloud = _Tasks(tasks)
        # Items, bytes, seconds of encoding, items decoded, seconds of decoding, CPU seconds of encoding.
        self._payloads: dict[tuple[int, str], list[float]] = {}
        self._tags: list[str] = []
        self._sending = _Sending()
        self.latency = LatencyHistogram()
        self.splits: Counter[int] = Counter()  # of the whole run
        self.captured = 0  # of the whole run, as all below up to `_clear`
        self.sent_bytes = 0
        self.impossible: dict[int, str] = {}  # splits where arguments cannot travel, and why
        self.workers, self.main_share = 1.0, 1.0
        self._captured_before = 0
        self._clear()

    def _clear(self) -> None:
        self._finished = self._dropped = self._acked = self._late = 0
        self._acked_bytes = 0
        self._rtt_s = self._held_s = 0.0
        self._queued = 0
        self._queue_s = self._transfer_s = 0.0
        self._transfer_bytes = 0
        self._unsent: Counter[tuple[int, str]] = Counter()

    def tag(self, codec: str) -> int:
        """The number that stands for a codec on the wire."""
        if codec not in self._tags:
            self._tags.append(codec)
        return self._tags.index(codec)

    def ran(self, first: int, busy_ns: Sequence[int], cpu_ns: Sequence[int], survived: bool) -> None:
        """Tasks from index `first` on ran on the device; `survived`: the last of them let the item continue."""
        with self._lock:
            for index, (ns, cpu) in enumerate(zip(busy_ns, cpu_ns, strict=True), first):
                self._device.items[index] += 1
                self._device.busy_s[index] += ns / 1e9
                self._device.cpu_s[index] += cpu / 1e9
                self._device.survived[index] += 1
            if not survived:
                self._device.survived[first + len(busy_ns) - 1] -= 1

    def unsent(self, split: int, codec: str) -> None:
        """An item ended without a payload."""
        with self._lock:
            self._unsent[split, codec] += 1

    def cannot_travel(self, split: int, problem: Exception) -> bool:
        """The arguments of an item cannot be encoded there. Returns whether that is new."""
        with self._lock:
            new = split not in self.impossible
            self.impossible.setdefault(split, " ".join(str(problem).split()))
            return new

    def encoded(self, split: int, codec: str, size_bytes: int, busy_s: float, cpu_s: float) -> None:
        """A payload was encoded."""
        with self._lock:
            payload = self._payload(split, codec)
            payload[0] += 1
            payload[1] += size_bytes
            payload[2] += busy_s
            payload[5] += cpu_s

    def sent(self, size_bytes: int, cpu_s: float | None) -> None:
        """Bytes were handed to the system, in so much CPU time; None where nobody looked."""
        with self._lock:
            self.sent_bytes += size_bytes
            if cpu_s is not None:
                self._sending.add(size_bytes, cpu_s)

    def held(self, seconds: float) -> None:
        """The first task waited because what follows it had no room."""
        with self._lock:
            self._held_s += seconds

    def dropped(self, items: int = 1) -> None:
        """Items were given up because something could not keep up."""
        with self._lock:
            self._dropped += items

    def acked(
        self, size_bytes: int, round_trip_s: float | None, latency_s: float, items: int, finished: bool = True
    ) -> None:
        """An entry was acknowledged.

        Arguments:
            round_trip_s: None if it was not sent on this connection.
            finished: False for items that were dropped here, which have no latency.
        """
        with self._lock:
            if round_trip_s is not None:
                self._acked_bytes += size_bytes
                self._acked += items
                self._rtt_s += round_trip_s * items
            if finished:
                self.latency.add(latency_s, items)
                if latency_s > self._max_latency_s:
                    self._late += items

    def finished(self, items: int) -> None:
        """The device learned that items are finished."""
        with self._lock:
            self._finished += items

    def cost(self, costs: Costs) -> None:
        """The cloud told its costs."""
        with self._lock:
            self.workers, self.main_share = costs.workers, costs.main_share
            self._queue_s += costs.queue_us / 1e6
            self._queued += costs.queued
            self._transfer_bytes += costs.transfer_bytes
            self._transfer_s += costs.transfer_us / 1e6
            for task in costs.tasks:
                if task.task < len(self._cloud.items):
                    self._cloud.items[task.task] += task.items
                    self._cloud.busy_s[task.task] += task.busy_us / 1e6
                    self._cloud.survived[task.task] += task.survived
            for cost in costs.payloads:
                if cost.tag < len(self._tags):
                    payload = self._payload(cost.split, self._tags[cost.tag])
                    payload[3] += cost.items
                    payload[4] += cost.busy_us / 1e6

    def _payload(self, split: int, codec: str) -> list[float]:
        return self._payloads.setdefault((split, codec), [0, 0, 0.0, 0, 0.0, 0.0])

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
            payloads = {}
            for key, (items, size_bytes, encode_s, decoded, decode_s, encode_cpu_s) in self._payloads.items():
                send_s = self._sending.cpu_s(items, size_bytes)
                payloads[key] = PayloadCost(
                    int(items), int(size_bytes), encode_s + send_s, int(decoded), decode_s, encode_cpu_s + send_s
                )
            observation = Observation(
                now_s=now_s,
                interval_s=interval_s,
                captured=self.captured - self._captured_before,
                finished=self._finished,
                dropped=self._dropped,
                device=self._device.take(),
                cloud=self._cloud.take(),
                payloads=payloads,
                unsent=self._unsent,
                acked_bytes=self._acked_bytes,
                link_busy_s=link_busy_s,
                rtt_s=self._rtt_s / self._acked if self._acked else None,
                acked=self._acked,
                queue_s=self._queue_s / self._queued if self._queued else 0.0,
                backlog=backlog,
                source_rate=source_rate,
                cores=cores,
                workers=self.workers,
                main_share=self.main_share,
                window=window,
                window_full_s=window_full_s,
                in_local_outage=away,
                held_s=self._held_s,
                transfer_bytes=self._transfer_bytes,
                transfer_s=self._transfer_s,
                late=self._late,
                cpu_s=cpu_s,
                delayed_s=delays.seconds if delays is not None else None,
                threads=delays.threads if delays is not None else 1.0,
                codecs=codecs,
                impossible=frozenset(self.impossible),
            )
            self._captured_before = self.captured
            self._payloads.clear()
            self._clear()
            return observation
