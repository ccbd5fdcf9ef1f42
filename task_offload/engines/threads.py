"""Units run on threads: for tasks that release the interpreter lock, as OpenCV's and NumPy's do."""

from __future__ import annotations

import logging
import threading
from collections import deque
from time import perf_counter_ns

from task_offload.engines.base import Finished, Lane, Unit, work
from task_offload.runner import Runner
from task_offload.task import Chain
from task_offload.wire.codec import Decoder

log = logging.getLogger(__name__)


class ThreadEngine:
    """A pool of threads that takes the lanes in turn, so that one greedy device starves nobody.

    Arguments:
        chain: the app's tasks.
        decoder: for the payloads.
        workers: how many threads.
        finished: called with each outcome, on a worker's thread.
    """

    def __init__(self, chain: Chain, decoder: Decoder, workers: int, finished: Finished) -> None:
        self._runner = Runner(chain)
        self._decoder = decoder
        self._last = len(chain.tasks) - 1
        self._finished = finished
        # State between the lowest split and the last task is in the cloud whatever the split is.
        self._one_at_a_time = chain.stateful_between(chain.splits[0], self._last)
        self._turns: deque[Lane] = deque()  # lanes that have a unit which may run now
        self._condition = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"worker-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, unit: Unit) -> None:
        unit.arrived_ns = perf_counter_ns()
        lane = unit.lane
        with self._condition:
            lane.units.append(unit)
            if len(lane.units) == 1 and not (self._one_at_a_time and lane.running):
                self._turns.append(lane)
                self._condition.notify()

    def forget(self, lane: Lane) -> None:
        with self._condition:
            lane.units.clear()
            if lane in self._turns:
                self._turns.remove(lane)

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join(1.0)

    def _run(self) -> None:
        while (unit := self._take()) is not None:
            done = work(unit, self._decoder, self._runner, self._last)
            if self._one_at_a_time:
                self._put_back(unit.lane)
            try:
                self._finished(done)
            except Exception:
                log.exception("an outcome was lost")
            del unit, done  # memory must not wait for the next unit

    def _take(self) -> Unit | None:
        with self._condition:
            while not self._turns:
                if self._closed:
                    return None
                self._condition.wait()
            if self._closed:
                return None
            lane = self._turns.popleft()
            unit = lane.units.popleft()
            if self._one_at_a_time:
                lane.running += 1
            elif lane.units:
                self._turns.append(lane)
            return unit

    def _put_back(self, lane: Lane) -> None:
        with self._condition:
            lane.running -= 1
            if lane.units:
                self._turns.append(lane)
                self._condition.notify()
