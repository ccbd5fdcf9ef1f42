"""When the cloud is full: by how long items take, whatever makes them."""

from __future__ import annotations

from task_offload.capacity import Capacity


def run(capacity: Capacity, begin_s: float, seconds: float, unfinished: int, rate: float, done: int = 0) -> int:
    for tick in range(1, int(seconds / 0.5) + 1):
        done += int(rate * 0.5)
        capacity.measure(begin_s + tick * 0.5, unfinished, done)
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
