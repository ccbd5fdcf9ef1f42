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
        # Items and busy ns of all that was told, by task, and by split.
        self._told_tasks: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        self._told_splits: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
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
            self._take_over(self)
            self._tasks.clear()
            self._payloads.clear()
            self._queue_ns = self._queued = 0
            return costs

    def enter(self, other: CloudCosts) -> None:
        """Adds all that another session has cost."""
        with self._lock, other._lock:
            self._take_over(other)
            for told, others in (
                (self._told_tasks, other._told_tasks),
                (self._told_splits, other._told_splits),
            ):
                for key, (items, busy_ns) in others.items():
                    _add(told[key], items, busy_ns)
            self.cpu_ns += other.cpu_ns

    def _take_over(self, other: CloudCosts) -> None:
        for task, (items, _, busy_ns) in other._tasks.items():
            _add(self._told_tasks[task], items, busy_ns)
        for (split, _), (items, busy_ns) in other._payloads.items():
            _add(self._told_splits[split], items, busy_ns)

    def if_all_were_sent_s(self, filtered: Mapping[int, int], tasks: int) -> float | None:
        """CPU seconds of the cloud if devices had run nothing but the first task; None if that cannot be known yet.

        Each task that an item went through, here or on its device, is taken at the mean of what the task takes here;
        each payload at the mean of those that came after the first task; and what else an item costs as it is. So
        every task must have run here, and some items must have come after the first one. Call it after `enter`.

        Arguments:
            filtered: items that ended on their device, by the index of the task that filtered them.
            tasks: of the chain.
        """
        with self._lock:
            went = [0] * tasks
            for split, (items, _) in self._told_splits.items():
                for task in range(1, split):
                    went[task] += items
            for last, items in filtered.items():
                for task in range(1, last + 1):
                    went[task] += items
            busy_ns = 0.0
            for task in range(1, tasks):
                here, here_ns = self._told_tasks.get(task, (0, 0))
                if went[task] and not here:
                    return None
                busy_ns += here_ns + (went[task] * here_ns / here if here else 0.0)
            first, first_ns = self._told_splits.get(1, (0, 0))
            came = sum(items for items, _ in self._told_splits.values())
            if not first:
                return None
            payloads_ns = sum(ns for _, ns in self._told_splits.values())
            tasks_ns = sum(ns for _, ns in self._told_tasks.values())
            rest_ns = max(0, self.cpu_ns - payloads_ns - tasks_ns) / came
            items = came + sum(filtered.values())
            return (busy_ns + items * (first_ns / first + rest_ns)) / 1e9


def _add(told: list[int], items: int, busy_ns: int) -> None:
    told[0] += items
    told[1] += busy_ns


class Shares:
    """How much of the cloud each device may count on: what the others leave, and at least a part by its weight."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._before: dict[int, tuple[int, int]] = {}
        self._now_s = 0.0

    def measure(self, sessions: Mapping[int, tuple[CloudCosts, float]], now_s: float) -> dict[int, tuple[float, float]]:
        """(W, M) of each session by its key, from the busy times since the last call.

        Arguments:
            sessions: the costs and the weight of each. The main thread knows no weights.
        """
        interval_ns = max(1.0, (now_s - self._now_s) * 1e9)
        busy = {}
        before, self._before, self._now_s = self._before, {}, now_s
        for key, (costs, _) in sessions.items():
            total = (costs.worker_busy_ns, costs.main_busy_ns)
            old = before.get(key, total)
            busy[key] = ((total[0] - old[0]) / interval_ns, (total[1] - old[1]) / interval_ns)
            self._before[key] = total
        workers = sum(each[0] for each in busy.values())
        main = sum(each[1] for each in busy.values())
        active = sum(1 for each in busy.values() if each != (0.0, 0.0))
        weights = sum(sessions[key][1] for key, each in busy.items() if each != (0.0, 0.0))
        shares = {}
        for key, mine in busy.items():
            begins = mine == (0.0, 0.0)  # who begins now takes a part too
            weight = sessions[key][1]
            fair = 1 / (active + begins)
            weighed = weight / (weights + weight * begins)
            shares[key] = (
                max(self._workers - (workers - mine[0]), self._workers * weighed),
                max(min(1.0, 1.0 - (main - mine[1])), fair),
            )
        return shares
