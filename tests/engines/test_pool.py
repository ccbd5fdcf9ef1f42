"""The pool of workers, with workers that do as they are told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from task_offload.engines.base import Done, Lane, TaskTimeoutError, Unit, WorkerLostError
from task_offload.engines.pool import Pool
from task_offload.errors import LinkError
from task_offload.runner import Kind, Outcome, TaskThread
from task_offload.task import Item

PATIENCE_S = 30.0


def unit(sequence: int, lane: Lane | None = None) -> Unit:
    item = Item("device", "0" * 32, sequence, 0.0, 1)
    return Unit(lane or Lane(), item, b"", None, 0, None)


class Obedient:
    """A worker. It dies as often with the units as `deadly` says, and starts again when `may_start` is set."""

    def __init__(self, deadly: Counter[int], refusals: int = 0) -> None:
        self.may_start = threading.Event()
        self.may_start.set()
        self.starting = threading.Event()
        self.runs: list[list[int]] = []
        self._deadly = deadly
        self._refusals = refusals
        self._alive = True

    def wait(self) -> None:
        if self._alive:
            return
        self.starting.set()
        self.may_start.wait(PATIENCE_S)
        if self._refusals:
            self._refusals -= 1
            raise LinkError("there are no workers")
        self._alive = True

    def run(self, units: Sequence[Unit]) -> Iterator[Done]:
        self.runs.append([each.item.sequence for each in units])
        for each in units:
            if self._deadly[each.item.sequence]:
                self._deadly[each.item.sequence] -= 1
                self._alive = False
                raise WorkerLostError("the worker was told to die")
            yield Done(each, Outcome(Kind.CONTINUED, 1, each.item.sequence, [1000]), 0, 0, 1000)

    def forget(self, lane: Lane) -> None:
        pass

    def kill(self) -> bool:
        return True

    def close(self) -> None:
        self.may_start.set()


class Ended:
    """What a pool's units have become."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._dones: list[Done] = []

    def add(self, dones: Sequence[Done]) -> None:
        with self._changed:
            self._dones += dones
            self._changed.notify()

    def wait(self, count: int) -> list[Outcome]:
        """So many outcomes, in the order of their items."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._dones) >= count, PATIENCE_S)
        assert len(self._dones) == count
        return [done.outcome for done in sorted(self._dones, key=lambda done: done.unit.item.sequence)]


def pool_of(*workers: Obedient, ended: Ended, stateful: bool = False, least: int = 1) -> Pool:
    left = list(workers)
    return Pool(lambda: left.pop(0), len(workers), stateful, True, ended.add, PATIENCE_S, least=least)


def test_others_do_the_work_of_a_worker_that_starts_again() -> None:
    deadly = Counter({0: 1})
    workers, ended = [Obedient(deadly), Obedient(deadly)], Ended()
    for worker in workers:
        worker.may_start.clear()
    pool = pool_of(*workers, ended=ended)
    try:
        pool.submit([unit(0)])
        while not any(worker.starting.wait(0.01) for worker in workers):
            pass
        pool.submit([unit(number) for number in range(1, 5)])
        assert [outcome.value for outcome in ended.wait(5)] == [0, 1, 2, 3, 4]
        assert sum(worker.starting.is_set() for worker in workers) == 1
    finally:
        pool.close()


def test_units_of_a_worker_that_dies_are_tried_again_alone_and_only_the_deadly_one_is_given_up() -> None:
    worker, ended = Obedient(Counter({2: 2})), Ended()
    pool = pool_of(worker, ended=ended, least=4)
    try:
        pool.submit([unit(number) for number in range(4)])
        outcomes = ended.wait(4)
        assert [outcome.value for outcome in outcomes if outcome.kind is Kind.CONTINUED] == [0, 1, 3]
        assert isinstance(outcomes[2].value, WorkerLostError)
        assert worker.runs == [[0, 1, 2, 3], [2], [3]]
    finally:
        pool.close()


class Faulty(Obedient):
    """A worker whose own code fails the first time that it runs something."""

    def run(self, units: Sequence[Unit]) -> Iterator[Done]:
        if not self.runs:
            self.runs.append([])
            raise RuntimeError("nobody thought of this")
        yield from super().run(units)


def test_a_bug_in_a_worker_costs_a_retry_and_not_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    worker, ended = Faulty(Counter()), Ended()
    pool = pool_of(worker, ended=ended)
    try:
        pool.submit([unit(number) for number in range(3)])
        assert [outcome.value for outcome in ended.wait(3)] == [0, 1, 2]
        assert "nobody thought of this" in caplog.text
    finally:
        pool.close()


class Hanging(Obedient):
    """A worker that nothing ends, whatever `kill` says."""

    def __init__(self, killed: bool, let_go: threading.Event) -> None:
        super().__init__(Counter())
        self.hangs = threading.Event()
        self._killed = killed
        self._let_go = let_go

    def run(self, units: Sequence[Unit]) -> Iterator[Done]:
        self.hangs.set()
        self._let_go.wait(PATIENCE_S)
        yield from super().run(units)

    def kill(self) -> bool:
        return self._killed


def test_a_thread_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A unit hangs while the system has none to spare."""
    now_ns = [0]
    monkeypatch.setattr("task_offload.engines.pool.perf_counter_ns", lambda: now_ns[0])
    monkeypatch.setattr("task_offload.engines.pool.LOOK_S", 0.01)
    let_go = threading.Event()
    hanging, ended = Hanging(False, let_go), Ended()
    workers = [hanging, *(Obedient(Counter()) for _ in range(4))]
    pool = Pool(lambda: workers.pop(0), 1, False, False, ended.add, PATIENCE_S, least=3)
    start, refusals = TaskThread.start, [RuntimeError("can't start new thread") for _ in range(3)]

    def may_start(thread: TaskThread) -> None:
        if refusals:
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(TaskThread, "start", may_start)
    try:
        pool.submit([unit(number) for number in range(3)])
        assert hanging.hangs.wait(PATIENCE_S)
        now_ns[0] += int(2 * PATIENCE_S * 1e9)
        outcomes = ended.wait(3)
        assert isinstance(outcomes[0].value, TaskTimeoutError)
        assert [outcome.value for outcome in outcomes[1:]] == [1, 2]
        assert caplog.text.count("can't start new thread") == 1
        assert pool.abandoned == 1
    finally:
        let_go.set()
        pool.close()


class Forgetful(Obedient):
    """A worker that takes its time to forget a lane."""

    def __init__(self) -> None:
        super().__init__(Counter())
        self.forgets = threading.Event()
        self.may_forget = threading.Event()

    def forget(self, lane: Lane) -> None:
        self.forgets.set()
        self.may_forget.wait(PATIENCE_S)
        self.runs.append([-1])


def test_a_worker_that_is_slow_to_forget_holds_nobody_else_up() -> None:
    workers, ended = [Forgetful(), Forgetful()], Ended()
    pool = pool_of(*workers, ended=ended, stateful=True)
    lanes = [Lane() for _ in range(3)]
    try:
        for lane in lanes:
            pool.submit([unit(0, lane)])  # the first and the third are at one worker, the second at the other
        ended.wait(3)
        pool.forget(lanes[0])
        assert workers[0].forgets.wait(PATIENCE_S)
        submitted = threading.Thread(target=pool.submit, args=([unit(1, lanes[2])],), daemon=True)
        submitted.start()
        submitted.join(PATIENCE_S)
        assert not submitted.is_alive()
        workers[0].may_forget.set()
        ended.wait(4)
        assert workers[0].runs[-2:] == [[-1], [1]]  # it forgets first
    finally:
        for worker in workers:
            worker.may_forget.set()
        pool.close()


@pytest.mark.parametrize("killed", [False, True])
def test_many_workers_that_hang_hold_the_end_up_no_longer_than_one(
    killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_offload.engines.pool.CLOSE_S", 0.1)
    let_go = threading.Event()
    workers = [Hanging(killed, let_go) for _ in range(20)]
    pool = pool_of(*workers, ended=Ended())
    try:
        pool.submit([unit(number) for number in range(20)])
        assert all(worker.hangs.wait(PATIENCE_S) for worker in workers)
        began = time.monotonic()
        pool.close()
        assert time.monotonic() - began < 1.0  # one after the other, they would take 2
    finally:
        let_go.set()


@pytest.mark.parametrize("stateful", [False, True])
def test_units_wait_while_no_worker_can_be_started(
    stateful: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_offload.engines.pool.RESTART_PAUSE_S", 0.01)
    worker, ended = Obedient(Counter({0: 1}), refusals=2), Ended()
    worker.may_start.clear()
    pool = pool_of(worker, ended=ended, stateful=stateful)
    try:
        lane = Lane()
        pool.submit([unit(number, lane) for number in range(3)])
        assert worker.starting.wait(PATIENCE_S)
        worker.may_start.set()
        assert [outcome.value for outcome in ended.wait(3)] == [0, 1, 2]
        assert caplog.text.count("there are no workers; trying again") == 1
    finally:
        pool.close()
