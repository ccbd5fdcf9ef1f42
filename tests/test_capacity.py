"""When the cloud is full: by how long items wait, whatever for."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapreplace
from itertools import count, takewhile

from task_offload.capacity import Capacity, Queue


def run(capacity: Capacity, begin_s: float, seconds: float, unfinished: int, rate: float, done: int = 0) -> int:
    for tick in range(1, int(seconds / 0.5) + 1):
        done += int(rate * 0.5)
        capacity.measure(begin_s + tick * 0.5, [Queue(unfinished, done)])
    return done


def test_a_busy_cloud_that_keeps_up_is_not_full() -> None:
    capacity = Capacity(0.0)
    run(capacity, 0.0, 20, unfinished=1500, rate=1000)
    assert not capacity.full
    assert 1.4 < capacity.wait_s < 1.6


def test_a_cloud_whose_items_wait_is_full_until_they_do_not() -> None:
    capacity = Capacity(0.0)
    done = run(capacity, 0.0, 2, unfinished=3000, rate=1000)
    assert not capacity.full  # it may pass
    done = run(capacity, 2.0, 5, unfinished=3000, rate=1000, done=done)
    assert capacity.full
    done = run(capacity, 7.0, 5, unfinished=1500, rate=1000, done=done)
    assert capacity.full  # one more device would fill it again
    run(capacity, 12.0, 5, unfinished=500, rate=1000, done=done)
    assert not capacity.full


def test_a_cloud_that_finishes_nothing_is_full_while_it_has_something() -> None:
    capacity = Capacity(0.0)
    done = run(capacity, 0.0, 5, unfinished=100, rate=1000)
    run(capacity, 5.0, 8, unfinished=100, rate=0, done=done)
    assert capacity.full
    run(capacity, 13.0, 5, unfinished=0, rate=0, done=done)
    assert not capacity.full


def test_an_idle_cloud_is_not_full() -> None:
    capacity = Capacity(0.0)
    run(capacity, 0.0, 10, unfinished=0, rate=0)
    assert not capacity.full
    assert capacity.wait_s == 0.0


def every(period_s: float, begin_s: float, end_s: float) -> list[float]:
    return list(takewhile(lambda at_s: at_s < end_s, count(begin_s, period_s)))


def full_at(arrivals_s: Sequence[float], workers: int, takes_s: float, until_s: float) -> list[float]:
    """When a cloud with one queue says that it is full, if that much work comes at these times."""
    free_at_s = [0.0] * workers
    begins_s = []
    for at_s in sorted(arrivals_s):
        begins_s.append(max(at_s, free_at_s[0]))
        heapreplace(free_at_s, begins_s[-1] + takes_s)
    capacity = Capacity(0.0)
    times = []
    for now_s in every(0.5, 0.5, until_s):
        taken = sum(begin_s <= now_s for begin_s in begins_s)
        capacity.measure(now_s, [Queue(sum(at_s <= now_s for at_s in arrivals_s) - taken, taken)])
        if capacity.full:
            times.append(now_s)
    return times


def test_slow_tasks_that_wait_for_nothing_do_not_make_it_full() -> None:
    assert not full_at(every(8.0, 1.0, 200.0), workers=1, takes_s=6.0, until_s=200.0)
    assert not full_at(every(1.0, 1.0, 200.0), workers=8, takes_s=6.0, until_s=200.0)


def test_more_slow_tasks_than_the_workers_can_do_make_it_full_until_they_are_done() -> None:
    """Eight workers do 8 in 6 s, and 10 s of three a second take them until 23 s."""
    times = full_at(every(1 / 3, 1.0, 11.0), workers=8, takes_s=6.0, until_s=60.0)
    assert 4.0 < times[0] < 10.0
    assert 18.0 < times[-1] < 24.0
    assert times == every(0.5, times[0], times[-1] + 0.1)


def test_more_fast_tasks_than_the_workers_can_do_make_it_full_until_they_are_done() -> None:
    """Two workers do 200 a second, and 10 s of 300 a second take them until 16 s."""
    times = full_at(every(1 / 300, 1.0, 11.0), workers=2, takes_s=0.01, until_s=60.0)
    assert 5.0 < times[0] < 9.0
    assert 14.0 < times[-1] < 18.0
    assert times == every(0.5, times[0], times[-1] + 0.1)


def test_each_queue_counts_by_its_own_rate() -> None:
    """The disk takes up a thousand endings of devices a second; that does not make the workers any faster."""
    capacity = Capacity(0.0)
    for tick in range(1, 21):
        capacity.measure(tick * 0.5, [Queue(10, tick), Queue(5, tick * 500)])
    assert capacity.full
    assert 4.9 < capacity.wait_s < 5.1
