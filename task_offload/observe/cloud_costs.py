"""What devices cost the cloud. In: the outcomes of their items. Out: costs and shares for each."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping

from task_offload.engines.base import Done
from task_offload.runner import Kind
from task_offload.wire.messages import Costs, PayloadBusy, TaskBusy


class CloudCosts:
    """One session's costs since they were last told to its device, and all its busy time. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0])  # items, survived, busy ns
        self._payloads: defaultdict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])  # items, busy ns
        self._queue_ns = 0
        self._queued = 0
        self.worker_busy_ns = 0
        self.main_busy_ns = 0
        self.cpu_ns = 0

    def add(self, done: Done, last_busy_ns: int | None, cpu_ns: int) -> None:
        """An item is finished.

        Arguments:
            done: what the engine did with it.
            last_busy_ns: the last task's busy time, or None if it did not run.
            cpu_ns: CPU time of the last task and of what surrounds it.
        """
        unit, outcome = done.unit, done.outcome
        split = unit.item.split
        with self._lock:
            payload = self._payloads[split, unit.tag]
            payload[0] += 1
            payload[1] += unit.received_ns + done.decode_ns
            self._queue_ns += done.queued_ns
            self._queued += 1
            self.worker_busy_ns += done.decode_ns
            for index, busy_ns in enumerate(outcome.busy_ns, split):
                task = self._tasks[index]
                task[0] += 1
                task[1] += outcome.kind is Kind.CONTINUED or index < outcome.task
                task[2] += busy_ns
                self.worker_busy_ns += busy_ns
            if last_busy_ns is not None:
                task = self._tasks[split + len(outcome.busy_ns)]
                task[0] += 1
                task[1] += 1
                task[2] += last_busy_ns
                self.main_busy_ns += last_busy_ns
            self.cpu_ns += done.cpu_ns + cpu_ns + unit.received_ns

    def take(self, workers: float, main_share: float) -> Costs | None:
        """The costs since the last call, for the device; None where there are none."""
        with self._lock:
            if not self._queued:
                return None
            costs = Costs(
                workers,
                main_share,
                self._queue_ns // 1000,
                self._queued,
                tasks=tuple(
                    TaskBusy(i, n, survived, ns // 1000) for i, (n, survived, ns) in sorted(self._tasks.items())
                ),
                payloads=tuple(
                    PayloadBusy(split, tag, n, ns // 1000) for (split, tag), (n, ns) in self._payloads.items()
                ),
            )
            self._tasks.clear()
            self._payloads.clear()
            self._queue_ns = self._queued = 0
            return costs


class Shares:
    """How much of the cloud each device may count on: what the others leave, and at least a fair part."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._before: dict[int, tuple[int, int]] = {}
        self._now_s = 0.0

    def measure(self, sessions: Mapping[int, CloudCosts], now_s: float) -> dict[int, tuple[float, float]]:
        """(W, M) of each session by its key, from the busy times since the last call."""
        interval_ns = max(1.0, (now_s - self._now_s) * 1e9)
        busy = {}
        before, self._before, self._now_s = self._before, {}, now_s
        for key, costs in sessions.items():
            total = (costs.worker_busy_ns, costs.main_busy_ns)
            old = before.get(key, total)
            busy[key] = ((total[0] - old[0]) / interval_ns, (total[1] - old[1]) / interval_ns)
            self._before[key] = total
        workers = sum(each[0] for each in busy.values())
        main = sum(each[1] for each in busy.values())
        active = sum(1 for each in busy.values() if each != (0.0, 0.0))
        shares = {}
        for key, mine in busy.items():
            fair = 1 / (active if mine != (0.0, 0.0) else active + 1)  # who begins now takes a part too
            shares[key] = (
                max(self._workers - (workers - mine[0]), self._workers * fair),
                max(min(1.0, 1.0 - (main - mine[1])), fair),
            )
        return shares
