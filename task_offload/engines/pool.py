"""A pool of workers behind fair queues. In: units. Out: their outcomes; a unit that hangs or kills ends too.

A worker takes several small units at once, because to hand something to another thread costs more than a small unit
does. Where the chain keeps state in the cloud, a session's units are at one worker at a time, in order, and always at
the same worker if the workers keep the state.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter_ns

from task_offload.engines.base import (
    Done,
    Finished,
    Lane,
    TaskTimeoutError,
    Unit,
    Worker,
    WorkerGoneError,
    WorkerLostError,
)
from task_offload.engines.fair import FairQueue
from task_offload.runner import Kind, Outcome, TaskThread

log = logging.getLogger(__name__)

BATCH_NS = 1_000_000
LOOK_S = 0.25  # between looks for units that take too long
TRIES = 2  # of a unit whose worker dies
RESTART_PAUSE_S = 1.0  # between attempts to start a worker
CLOSE_S = 1.0  # for the workers to end what they are at


class Pool:
    """Runs units on workers, each driven by a thread of its own.

    Arguments:
        make_worker: makes a worker.
        workers: how many.
        stateful: the chain keeps state in the cloud between the first split and the last task.
        sticky: workers keep that state, so a lane stays with its worker.
        finished: called with outcomes, on a worker's thread.
        timeout_s: how long a unit may take.
        batch_ns: expected work of the units that a worker takes at once; a later one waits so much longer.
        least: how many it takes at once in any case, if so many wait.

    Attributes:
        abandoned: threads that hang in a task; nobody can end them.
        taken: units that workers have taken so far.

    Raises:
        OffloadError: a worker cannot start; the message says why.
    """

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        workers: int,
        stateful: bool,
        sticky: bool,
        finished: Finished,
        timeout_s: float,
        batch_ns: int = BATCH_NS,
        least: int = 1,
    ) -> None:
        self._make_worker = make_worker
        self._finished = finished
        self._timeout_s = timeout_s
        self._sticky = stateful and sticky
        self._batch_ns = batch_ns
        self._least = least
        self._lock = threading.Lock()  # of the queues
        self._closed = threading.Event()
        self.abandoned = 0
        self.taken = 0
        self._queues = [_Queue(stateful, self._lock) for _ in range(workers if self._sticky else 1)]
        self._slots = [_Slot(number, self._queues[number % len(self._queues)]) for number in range(workers)]
        made: list[Worker] = []
        try:
            for _ in self._slots:
                made.append(make_worker())
            for worker in made:
                worker.wait()
        except BaseException:
            for worker in made:
                worker.close()
            raise
        for slot, worker in zip(self._slots, made, strict=True):
            with slot.lock:
                self._start(slot, worker)
        self._watcher = threading.Thread(target=self._watch, name="worker watch", daemon=True)
        self._watcher.start()

    def submit(self, units: Sequence[Unit]) -> None:
        now_ns = perf_counter_ns()
        with self._lock:
            queues = set()
            for unit in units:
                unit.arrived_ns = now_ns
                queue = self._slots[self._place(unit.lane)].queue
                queue.fair.add(unit)
                queues.add(queue)
            for queue in queues:
                queue.ready.notify()

    def forget(self, lane: Lane) -> None:
        with self._lock:
            lane.units.clear()
            if lane.slot is not None:
                slot = self._slots[lane.slot]
                slot.lanes -= 1
                slot.forget.append(lane)
                slot.queue.ready.notify()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            for slot in self._slots:
                slot.queue.ready.notify_all()
        _join(self._slots)
        _join([slot for slot in self._slots if slot.thread.is_alive() and slot.worker.kill()])
        self._watcher.join()

    @property
    def waiting(self) -> int:
        """How many units wait for a worker."""
        with self._lock:
            return sum(len(queue.again) + queue.fair.waiting for queue in self._queues)

    def _place(self, lane: Lane) -> int:
        """The slot of a lane; where it is to stay there, the one that has the fewest lanes."""
        if not self._sticky:
            return 0
        if lane.slot is None:
            slot = min(self._slots, key=lambda each: each.lanes)
            slot.lanes += 1
            lane.slot = slot.number
        return lane.slot

    def _start(self, slot: _Slot, worker: Worker) -> None:
        """Gives a slot to a worker and its thread. Where no thread can be started, the slot is as it was."""
        thread = TaskThread(target=self._run, args=(slot, worker), name=f"worker-{slot.number}")
        thread.start()
        slot.worker, slot.thread = worker, thread

    # -- a worker's thread ------------------------------------------------------------------------------------------

    def _run(self, slot: _Slot, worker: Worker) -> None:
        try:
            while self._has_started(worker) and self._take(slot, worker):
                self._work(slot, worker)
                if not self._hand_over(slot, worker):
                    return
        except Exception:
            log.exception("a worker failed")
        finally:
            worker.close()

    def _has_started(self, worker: Worker) -> bool:
        """Waits for a worker that starts again, while the others do its work. False if there will be no more."""
        said = ""
        while not self._closed.is_set():
            try:
                worker.wait()
                return True
            except Exception as error:  # whatever it is: without this thread its sessions would never end
                if str(error) != said and not self._closed.is_set():
                    said = str(error)
                    log.error("%s; trying again", said)
                self._closed.wait(RESTART_PAUSE_S)
        return False

    def _take(self, slot: _Slot, worker: Worker) -> bool:
        """Waits for units, and puts the next ones into the slot. False if there will be no more."""
        with slot.lock:  # it has the slot now
            if slot.units:
                return True  # left by a thread that hangs
        queue = slot.queue
        units: list[Unit] = []
        while not units:
            with self._lock:
                while not (self._closed.is_set() or slot.forget or (units := queue.take(self._batch_ns, self._least))):
                    queue.ready.wait()
                if self._closed.is_set():
                    return False
                forget, slot.forget = slot.forget, deque()
                self.taken += len(units)
                if queue.again or queue.fair:
                    queue.ready.notify()  # there is work for another one
            for lane in forget:
                worker.forget(lane)  # it may block, and who holds the lock must not
        with slot.lock:
            slot.since_ns = perf_counter_ns()
            slot.units.extend(units)
        return True

    def _work(self, slot: _Slot, worker: Worker) -> None:
        """Runs the slot's units, as far as the worker comes."""
        try:
            for done in worker.run(tuple(slot.units)):
                if not slot.ended(worker, done):
                    return
        except (TaskTimeoutError, WorkerLostError) as error:
            if not self._closed.is_set():
                self._lost(slot, worker, error)
        except Exception as error:  # a bug; without this thread its items would never end
            log.exception("a worker failed")
            if slot.units and not self._closed.is_set():
                self._lost(slot, worker, WorkerLostError(f"a worker failed ({error!r})"))

    def _lost(self, slot: _Slot, worker: Worker, failure: TaskTimeoutError | WorkerLostError) -> None:
        """The first unit took too long, or its worker with it. The others are put back, for any worker."""
        unit = slot.units[0]
        if isinstance(failure, WorkerLostError):
            # As text: who keeps what is logged would keep the payloads, which the error's frames refer to.
            log.warning("%s, with item %d of device %s", str(failure), unit.item.sequence, unit.item.device)
            unit.tries += not isinstance(failure, WorkerGoneError)
            if unit.tries == TRIES:
                failure = WorkerLostError(f"{failure}, {TRIES} times with this item")
        if isinstance(failure, TaskTimeoutError) or unit.tries == TRIES:
            slot.ended(worker, _failed(unit, failure))
        with self._lock:
            slot.queue.put_back(slot.take_all(worker))
            slot.queue.ready.notify()

    def _hand_over(self, slot: _Slot, worker: Worker) -> bool:
        """Reports what the slot's units have become. False if another thread has this slot now."""
        with slot.lock:
            if slot.worker is not worker:
                return False
            dones, slot.dones = slot.dones, []
        self._report(slot, dones)
        return True

    def _report(self, slot: _Slot, dones: Sequence[Done]) -> None:
        with self._lock:
            for done in dones:
                slot.queue.fair.done(done.unit, done.busy_ns)
        try:
            self._finished(dones)
        except Exception:
            log.exception("outcomes were lost")

    # -- the watch's thread -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        said = ""
        while not self._closed.wait(LOOK_S):
            for slot in self._slots:
                try:
                    self._look(slot)
                except Exception as error:  # there is no thread to be had, say; without the watch none would be again
                    if str(error) != said:
                        said = str(error)
                        log.exception("a worker that hangs could not be replaced; trying again")

    def _look(self, slot: _Slot) -> None:
        with slot.lock:
            replace = self._hangs(slot) and not slot.worker.kill()
        if replace:
            self._replace(slot)

    def _hangs(self, slot: _Slot) -> bool:
        return bool(slot.units) and perf_counter_ns() - slot.since_ns > self._timeout_s * 1e9

    def _replace(self, slot: _Slot) -> None:
        """Leaves a thread that hangs in a unit, and starts another in its place."""
        worker = self._make_worker()
        with slot.lock:
            if not self._hangs(slot):
                return
            self._start(slot, worker)
            slot.dones.append(_failed(slot.units.popleft(), TaskTimeoutError(f"more than {self._timeout_s:g} s")))
            dones, slot.dones = slot.dones, []
            slot.since_ns = perf_counter_ns()
        self.abandoned += 1
        log.error("a thread hangs in a task, and cannot be ended; another takes its place (%d so far)", self.abandoned)
        self._report(slot, dones)


class _Queue:
    """Units that wait for one worker, or for any of several."""

    def __init__(self, stateful: bool, lock: threading.Lock) -> None:
        self.fair = FairQueue(one_at_a_time=stateful)
        self.ready = threading.Condition(lock)
        self.again: deque[Unit] = deque()  # units of workers that were lost

    def take(self, batch_ns: int, least: int) -> list[Unit]:
        """The next units for a worker."""
        return [self.again.popleft()] if self.again else self.fair.take(batch_ns, least)

    def put_back(self, units: Sequence[Unit]) -> None:
        """Units that were taken, and not done; each is taken alone next time, for one of them may kill workers."""
        self.again.extendleft(reversed(units))


class _Slot:
    """One worker's place.

    Attributes:
        lanes: how many stay with this worker.
        forget: lanes whose state the worker is to drop.
        units: what the worker is at: it works on the first one, or will next. One that needs no work elsewhere may be
            done before it, and leaves.
        dones: outcomes that are not handed over yet.
        since_ns: when it began with the first one of `units`.
        lock: guards `worker`, `units` and `dones`.
    """

    def __init__(self, number: int, queue: _Queue) -> None:
        self.number = number
        self.queue = queue
        self.lanes = 0
        self.forget: deque[Lane] = deque()
        self.units: deque[Unit] = deque()
        self.dones: list[Done] = []
        self.since_ns = 0
        self.lock = threading.Lock()
        self.worker: Worker
        self.thread: threading.Thread

    def ended(self, worker: Worker, done: Done) -> bool:
        """The first unit has an outcome. False if the worker took too long, and another has this slot now."""
        with self.lock:
            if self.worker is not worker:
                return False
            self.units.remove(done.unit)
            self.dones.append(done)
            self.since_ns = perf_counter_ns()
            return True

    def take_all(self, worker: Worker) -> list[Unit]:
        """The units that the worker leaves; none if another has this slot now."""
        with self.lock:
            if self.worker is not worker:
                return []
            units = list(self.units)
            self.units.clear()
            return units


def _join(slots: Sequence[_Slot]) -> None:
    """Waits for the threads of slots, `CLOSE_S` for all of them together."""
    ends_at = monotonic() + CLOSE_S
    for slot in slots:
        slot.thread.join(max(0.0, ends_at - monotonic()))


def _failed(unit: Unit, error: Exception) -> Done:
    return Done(unit, Outcome(Kind.FAILED, unit.item.split, error, []), 0, 0, 0)
