"""What devices cost the cloud. In: the outcomes of their items. Out: costs and shares for each."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from task_offload.engines.base import Done
from task_offload.runner import Kind
from task_offload.wire.messages import Costs, PayloadBusy, TaskBusy


@dataclass(slots=True)
class _Sums:
    """Items, and how long they kept the cloud busy."""

    items: int = 0
    busy_ns: int = 0

    def add(self, other: _Sums) -> None:
        self.items += other.items
        self.busy_ns += other.busy_ns


@dataclass(slots=True)
class _TaskSums(_Sums):
    """Of one task, with how many of the items it let continue."""

    survived: int = 0


class CloudCosts:
    """One session's costs since they were last told to its device, and all its busy time. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: defaultdict[int, _TaskSums] = defaultdict(_TaskSums)
        self._payloads: defaultdict[tuple[int, int], _Sums] = defaultdict(_Sums)  # by split and tag
        self._queue_ns = 0
        self._queued = 0
        # Of all that was told, tasks by their index, and payloads by their split.
        self._told_tasks: defaultdict[int, _Sums] = defaultdict(_Sums)
        self._told_splits: defaultdict[int, _Sums] = defaultdict(_Sums)
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
            payloads = self._payloads[split, unit.tag]
            payloads.items += 1
            payloads.busy_ns += unit.received_ns + done.decode_ns
            self._queue_ns += done.queued_ns
            self._queued += 1
            self.worker_busy_ns += done.decode_ns
            for index, busy_ns in enumerate(outcome.busy_ns, split):
                task = self._tasks[index]
                task.items += 1
                task.survived += outcome.kind is Kind.CONTINUED or index < outcome.task
                task.busy_ns += busy_ns
                self.worker_busy_ns += busy_ns
            if last_busy_ns is not None:
                task = self._tasks[split + len(outcome.busy_ns)]
                task.items += 1
                task.survived += 1
                task.busy_ns += last_busy_ns
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
                    TaskBusy(index, task.items, task.survived, task.busy_ns // 1000)
                    for index, task in sorted(self._tasks.items())
                ),
                payloads=tuple(
                    PayloadBusy(split, tag, payloads.items, payloads.busy_ns // 1000)
                    for (split, tag), payloads in self._payloads.items()
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
            for index, task in other._told_tasks.items():
                self._told_tasks[index].add(task)
            for split, payloads in other._told_splits.items():
                self._told_splits[split].add(payloads)
            self.cpu_ns += other.cpu_ns

    def _take_over(self, other: CloudCosts) -> None:
        for index, task in other._tasks.items():
            self._told_tasks[index].add(task)
        for (split, _), payloads in other._payloads.items():
            self._told_splits[split].add(payloads)

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
            for split, payloads in self._told_splits.items():
                for task in range(1, split):
                    went[task] += payloads.items
            for last, items in filtered.items():
                for task in range(1, last + 1):
                    went[task] += items
            busy_ns = 0.0
            for task in range(1, tasks):
                here = self._told_tasks.get(task, _Sums())
                if went[task] and not here.items:
                    return None
                busy_ns += here.busy_ns + (went[task] * here.busy_ns / here.items if here.items else 0.0)
            first = self._told_splits.get(1, _Sums())
            if not first.items:
                return None
            came = sum(payloads.items for payloads in self._told_splits.values())
            payloads_ns = sum(payloads.busy_ns for payloads in self._told_splits.values())
            tasks_ns = sum(ran.busy_ns for ran in self._told_tasks.values())
            rest_ns = max(0, self.cpu_ns - payloads_ns - tasks_ns) / came
            items = came + sum(filtered.values())
            return (busy_ns + items * (first.busy_ns / first.items + rest_ns)) / 1e9


class Share(NamedTuple):
    """How much of the cloud one device may count on: W workers, and M of the main thread."""

    workers: float
    main: float


_IDLE = Share(0.0, 0.0)


class Shares:
    """How much of the cloud each device may count on: what the others leave, and at least a part by its weight."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._before_ns: dict[int, tuple[int, int]] = {}
        self._now_s = 0.0

    def measure(self, sessions: Mapping[int, tuple[CloudCosts, float]], now_s: float) -> dict[int, Share]:
        """The share of each session by its key, from the busy times since the last call.

        Arguments:
            sessions: the costs and the weight of each. The main thread knows no weights.
        """
        interval_ns = max(1.0, (now_s - self._now_s) * 1e9)
        before_ns, self._before_ns, self._now_s = self._before_ns, {}, now_s
        busy: dict[int, Share] = {}  # what each had of it
        for key, (costs, _) in sessions.items():
            self._before_ns[key] = worker_ns, main_ns = costs.worker_busy_ns, costs.main_busy_ns
            worker_before_ns, main_before_ns = before_ns.get(key, (worker_ns, main_ns))
            busy[key] = Share((worker_ns - worker_before_ns) / interval_ns, (main_ns - main_before_ns) / interval_ns)
        workers = sum(each.workers for each in busy.values())
        main = sum(each.main for each in busy.values())
        active = [key for key, each in busy.items() if each != _IDLE]
        weights = sum(sessions[key][1] for key in active)
        shares = {}
        for key, mine in busy.items():
            begins = mine == _IDLE  # who begins now takes a part too
            weight = sessions[key][1]
            fair = 1 / (len(active) + begins)
            weighed = weight / (weights + weight * begins)
            shares[key] = Share(
                max(self._workers - (workers - mine.workers), self._workers * weighed),
                max(min(1.0, 1.0 - (main - mine.main)), fair),
            )
        return shares
