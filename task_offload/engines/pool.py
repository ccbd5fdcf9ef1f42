"""A pool of workers behind queues of sessions. In: units. Out: their outcomes; a unit that hangs or kills ends too.

The lanes (sessions) that have work take turns, so one greedy device starves nobody. Where the chain keeps state in the
cloud, a lane has one unit in work at a time, and always at the same worker if the workers keep the state.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns

from task_offload.engines.base import Done, Finished, Lane, TaskTimeoutError, Unit, Worker, WorkerLostError
from task_offload.runner import Kind, Outcome

log = logging.getLogger(__name__)

LOOK_S = 0.25  # between looks for units that take too long
TRIES = 2  # of a unit whose worker dies


class Pool:
    """Runs units on workers, each driven by a thread of its own.

    Arguments:
        make_worker: makes a worker, on the thread that will drive it.
        workers: how many.
        stateful: the chain keeps state in the cloud between the first split and the last task.
        sticky: workers keep that state, so a lane stays with its worker.
        finished: called with each outcome, on a worker's thread.
        timeout_s: how long a unit may take.

    Attributes:
        abandoned: threads that hang in a task; nobody can end them.
    """

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        workers: int,
        stateful: bool,
        sticky: bool,
        finished: Finished,
        timeout_s: float,
    ) -> None:
        self._make_worker = make_worker
        self._stateful = stateful
        self._sticky = stateful and sticky
        self._finished = finished
        self._timeout_ns = int(timeout_s * 1e9)
        self._condition = threading.Condition()
        self._closed = threading.Event()
        self.abandoned = 0
        shared: deque[Lane] = deque()
        self._slots = [_Slot(number, deque() if self._sticky else shared) for number in range(workers)]
        self._next_slot = 0
        for slot in self._slots:
            self._start(slot)
        threading.Thread(target=self._watch, name="worker watch", daemon=True).start()

    def submit(self, unit: Unit) -> None:
        unit.arrived_ns = perf_counter_ns()
        lane = unit.lane
        with self._condition:
            lane.units.append(unit)
            if len(lane.units) == 1 and not (self._stateful and lane.running):
                self._take_turn(lane)

    def forget(self, lane: Lane) -> None:
        with self._condition:
            lane.units.clear()
            if lane.slot is None:
                return
            slot = self._slots[lane.slot]
            if lane in slot.turns:
                slot.turns.remove(lane)
            slot.forget.append(lane)
            self._condition.notify_all()

    def close(self) -> None:
        with self._condition:
            self._closed.set()
            self._condition.notify_all()
        for slot in self._slots:
            slot.thread.join(1.0)
            if slot.thread.is_alive() and slot.worker is not None:
                slot.worker.kill()

    def _take_turn(self, lane: Lane) -> None:
        """Puts a lane in the queue of its worker."""
        if lane.slot is None:
            lane.slot = self._next_slot
            self._next_slot = (self._next_slot + 1) % len(self._slots)
        self._slots[lane.slot].turns.append(lane)
        if self._sticky:
            self._condition.notify_all()
        else:
            self._condition.notify()

    def _start(self, slot: _Slot) -> None:
        slot.generation += 1
        slot.unit = None
        slot.thread = threading.Thread(
            target=self._run, args=(slot, slot.generation), name=f"worker-{slot.number}", daemon=True
        )
        slot.thread.start()

    # -- a worker's thread ------------------------------------------------------------------------------------------

    def _run(self, slot: _Slot, generation: int) -> None:
        worker = slot.worker = self._make_worker()
        try:
            while (unit := self._take(slot, worker)) is not None:
                done = self._work(worker, unit)
                with self._condition:
                    if slot.generation != generation:
                        return  # it took too long, and another thread has this place
                    slot.unit = None
                    self._put_back(unit.lane)
                self._report(done)
                del unit, done  # memory must not wait for the next unit
        finally:
            worker.close()

    def _take(self, slot: _Slot, worker: Worker) -> Unit | None:
        with self._condition:
            while True:
                while slot.forget:
                    worker.forget(slot.forget.popleft())
                if self._closed.is_set():
                    return None
                if slot.turns:
                    break
                self._condition.wait()
            lane = slot.turns.popleft()
            unit = lane.units.popleft()
            if self._stateful:
                lane.running += 1
            elif lane.units:
                slot.turns.append(lane)
            slot.unit, slot.since_ns = unit, perf_counter_ns()
            return unit

    def _put_back(self, lane: Lane) -> None:
        if self._stateful:
            lane.running -= 1
            if lane.units:
                self._take_turn(lane)

    def _work(self, worker: Worker, unit: Unit) -> Done:
        for tries in range(1, TRIES + 1):
            try:
                return worker.run(unit)
            except WorkerLostError as error:
                log.warning("%s, with item %d of device %s", error, unit.item.sequence, unit.item.device)
                lost = WorkerLostError(f"{error}, {tries} times with this item")
            except TaskTimeoutError as error:
                return self._failed(unit, error)
        return self._failed(unit, lost)

    def _failed(self, unit: Unit, error: Exception) -> Done:
        return Done(unit, Outcome(Kind.FAILED, unit.item.split, error, []), 0, 0, 0)

    def _report(self, done: Done) -> None:
        try:
            self._finished(done)
        except Exception:
            log.exception("an outcome was lost")

    # -- the watch's thread -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            for slot in self._slots:
                unit = slot.unit
                if unit is not None and perf_counter_ns() - slot.since_ns > self._timeout_ns:
                    self._end_hanging(slot, unit)

    def _end_hanging(self, slot: _Slot, unit: Unit) -> None:
        """Ends a unit that takes too long: its worker is killed, or its thread is left and replaced."""
        worker = slot.worker
        assert worker is not None
        if worker.kill():
            return
        with self._condition:
            if slot.unit is not unit:
                return  # it has just finished
            self.abandoned += 1
            self._start(slot)
            self._put_back(unit.lane)
        log.error("a thread hangs in a task, and cannot be ended; another takes its place (%d so far)", self.abandoned)
        self._report(self._failed(unit, TaskTimeoutError(f"more than {self._timeout_ns / 1e9:g} s")))


class _Slot:
    """One worker's place: the thread that drives it now, and the lanes whose turn is next."""

    def __init__(self, number: int, turns: deque[Lane]) -> None:
        self.number = number
        self.turns = turns
        self.forget: deque[Lane] = deque()
        self.generation = 0
        self.worker: Worker | None = None
        self.unit: Unit | None = None
        self.since_ns = 0
        self.thread: threading.Thread
