"""Whose units are next. In: units of many lanes, and what they took. Out: batches, of the lanes that had least so far.

Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996), with a worker's time as the service. A lane's start is the
time that it has had by its weight; one that was idle begins where the others are, so it saves nothing up. What a unit
will take is not known: a smoothed estimate is charged when it is given out, and corrected when it is done.
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace
from itertools import count

from task_offload.engines.base import Lane, Unit

AHEAD_NS = 100_000  # what a lane may have at once more than the next one: to take units singly costs a microsecond each
SMOOTHING = 0.25  # weight of the newest unit in the estimate of the next


class FairQueue:
    """Lanes that have units to work on. Not for several threads.

    Arguments:
        one_at_a_time: a lane's units keep its state, so none is given out while earlier ones are being worked on,
            but several may be given out at once, for one worker to do in order.
    """

    def __init__(self, one_at_a_time: bool) -> None:
        self._one_at_a_time = one_at_a_time
        self._heap: list[tuple[int, int, Lane]] = []
        self._tie = count()
        self._start_ns = 0  # of the lane served last

    def __bool__(self) -> bool:
        """False if no unit is to be given out. True may be wrong, for a lane that was forgotten."""
        return bool(self._heap)

    @property
    def waiting(self) -> int:
        """How many units there are to give out, of lanes that may have one given out now."""
        return sum(len(lane.units) for _, _, lane in self._heap)

    def add(self, unit: Unit) -> None:
        """A lane's next unit."""
        lane = unit.lane
        if not lane.units and not lane.running:  # it was idle
            lane.start_ns = max(lane.start_ns, self._start_ns)
        lane.units.append(unit)
        self._may_enter(lane)

    def take(self, budget_ns: int, least: int = 1) -> list[Unit]:
        """The next units: as many as are expected to take no longer than the budget together, and `least` at least."""
        batch: list[Unit] = []
        left_ns = budget_ns
        heap = self._heap
        while heap:
            start_ns, tie, lane = heap[0]
            if lane.start_ns > start_ns:  # what it has had since took longer than expected
                heapreplace(heap, (lane.start_ns, tie, lane))
                continue
            cost_ns = budget_ns if lane.cost_ns is None else lane.cost_ns
            weighed_ns = max(1, int(cost_ns / lane.weight))
            if len(batch) >= least and cost_ns > left_ns:
                break
            heappop(heap)
            lane.queued = False
            if not lane.units:
                continue
            self._start_ns = max(self._start_ns, start_ns)
            number = min(len(lane.units), max(1, least - len(batch), left_ns // cost_ns))
            if heap:
                number = min(number, max(1, (heap[0][0] + AHEAD_NS - start_ns) // weighed_ns))
            for _ in range(number):
                unit = lane.units.popleft()
                unit.charged_ns = cost_ns
                batch.append(unit)
            lane.running += number
            lane.start_ns += number * weighed_ns
            left_ns -= number * cost_ns
            self._may_enter(lane)
        return batch

    def done(self, unit: Unit, cost_ns: int) -> None:
        """A unit that was given out is done, and took so long."""
        lane = unit.lane
        lane.running -= 1
        lane.start_ns += int((cost_ns - unit.charged_ns) / lane.weight)
        before_ns = cost_ns if lane.cost_ns is None else lane.cost_ns
        lane.cost_ns = max(1, int(before_ns + SMOOTHING * (cost_ns - before_ns)))
        self._may_enter(lane)

    def _may_enter(self, lane: Lane) -> None:
        if lane.units and not lane.queued and not (self._one_at_a_time and lane.running):
            lane.queued = True
            heappush(self._heap, (lane.start_ns, next(self._tie), lane))
