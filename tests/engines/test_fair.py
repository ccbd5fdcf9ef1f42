"""Whose units are next: by the time that a device has had, not by how many units."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from task_offload.engines.base import Lane, Unit
from task_offload.engines.fair import FairQueue
from task_offload.task import Item

MS = 1_000_000


def unit(lane: Lane, sequence: int = 0) -> Unit:
    return Unit(lane, Item(str(lane.number), "", sequence, 0.0, 1), b"", None, 0, None)


def serve(queue: FairQueue, costs_ns: dict[Lane, int], total_ns: int) -> Counter[Lane]:
    """What each lane gets of one worker's time while all of them always have more to do."""
    had: Counter[Lane] = Counter()
    for lane in costs_ns:
        for _ in range(4):
            queue.add(unit(lane))
    while sum(had.values()) < total_ns:
        for each in queue.take(MS):
            cost_ns = costs_ns[each.lane]
            had[each.lane] += cost_ns
            queue.done(each, cost_ns)
            queue.add(unit(each.lane))
    return had


def test_a_greedy_lane_gets_its_share_of_the_time_and_no_more() -> None:
    heavy, *small = [Lane() for _ in range(10)]
    costs_ns = {heavy: 30 * MS, **dict.fromkeys(small, MS // 20)}
    had = serve(FairQueue(one_at_a_time=False), costs_ns, 3000 * MS)
    fair_ns = sum(had.values()) / 10
    assert all(0.9 * fair_ns < each < 1.12 * fair_ns for each in had.values()), had


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(MS // 5, 20 * MS), min_size=2, max_size=6), st.booleans())
def test_time_is_shared_evenly_whatever_units_cost(costs: list[int], one_at_a_time: bool) -> None:
    costs_ns = {Lane(): cost for cost in costs}
    had = serve(FairQueue(one_at_a_time), costs_ns, 50 * len(costs) * max(costs))
    fair_ns = sum(had.values()) / len(costs)
    assert all(abs(each - fair_ns) < 0.05 * fair_ns for each in had.values())


def test_time_is_shared_by_weight() -> None:
    lanes = [Lane(0.5), Lane(), Lane(4.0)]
    had = serve(FairQueue(one_at_a_time=False), dict(zip(lanes, (MS, 5 * MS, MS // 10), strict=True)), 2000 * MS)
    for lane in lanes:
        assert abs(had[lane] / had.total() - lane.weight / 5.5) < 0.02


def test_who_was_idle_has_saved_nothing_up() -> None:
    queue, busy, idle = FairQueue(one_at_a_time=False), Lane(), Lane()
    serve(queue, {busy: MS}, 1000 * MS)
    had = serve(queue, {idle: MS, busy: MS}, 100 * MS)
    assert 45 * MS <= had[idle] <= 55 * MS


def test_a_batch_is_as_large_as_the_budget() -> None:
    queue, lane = FairQueue(one_at_a_time=False), Lane()
    for sequence in range(30):
        queue.add(unit(lane, sequence))
    (first,) = queue.take(MS)  # nothing is known of it
    queue.done(first, MS // 10)
    assert [each.item.sequence for each in queue.take(MS)] == list(range(1, 11))
    assert [each.item.sequence for each in queue.take(MS // 100, least=3)] == [11, 12, 13]
    assert [each.item.sequence for each in queue.take(0)] == [14]


def test_while_others_wait_a_lane_has_little_at_once() -> None:
    """Otherwise each of hundreds would wait for a millisecond of all others."""
    queue, lanes = FairQueue(one_at_a_time=False), [Lane() for _ in range(100)]
    for lane in lanes:
        queue.add(unit(lane))
    for each in [queue.take(MS)[0] for _ in lanes]:
        queue.done(each, MS // 50)
    for lane in lanes:
        for sequence in range(64):
            queue.add(unit(lane, sequence))
    had = Counter(each.lane for _ in range(10) for each in queue.take(MS))
    assert had.total() == 500
    assert len(had) == 100
    assert max(had.values()) <= 10


def test_a_lane_with_state_waits_until_its_units_are_done() -> None:
    queue, lane, other = FairQueue(one_at_a_time=True), Lane(), Lane()
    for sequence in range(3):
        queue.add(unit(lane, sequence))
    (first,) = queue.take(MS)
    queue.add(unit(other))
    assert [each.lane for each in queue.take(MS)] == [other]
    assert queue.take(MS) == []
    queue.done(first, MS)
    assert [each.item.sequence for each in queue.take(MS)] == [1]


def test_a_lane_that_was_emptied_is_passed_over() -> None:
    queue, gone, other = FairQueue(one_at_a_time=False), Lane(), Lane()
    queue.add(unit(gone))
    queue.add(unit(other))
    gone.units.clear()
    assert [each.lane for each in queue.take(MS)] == [other]
    assert not queue


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 10 * MS)), max_size=60), st.booleans())
def test_every_unit_comes_out_once_in_its_lanes_order(plan: list[tuple[int, int]], one_at_a_time: bool) -> None:
    queue, lanes = FairQueue(one_at_a_time), [Lane() for _ in range(5)]
    expected: dict[Lane, list[int]] = {lane: [] for lane in lanes}
    for sequence, (number, _) in enumerate(plan):
        expected[lanes[number]].append(sequence)
        queue.add(unit(lanes[number], sequence))
    got: dict[Lane, list[int]] = {lane: [] for lane in lanes}
    while batch := queue.take(MS):
        for each in batch:
            got[each.lane].append(each.item.sequence)
            queue.done(each, plan[each.item.sequence][1])
    assert got == expected


def test_what_waits_is_what_a_free_worker_would_get() -> None:
    """A lane whose units are done one at a time waits for itself while one is; who was forgotten, for nothing."""
    alone, together = FairQueue(one_at_a_time=True), FairQueue(one_at_a_time=False)
    first, second = Lane(), Lane()
    for queue, lane in ((alone, first), (together, second)):
        for number in range(3):
            queue.add(unit(lane, number))
    assert (alone.waiting, together.waiting) == (3, 3)
    [at_work] = alone.take(MS)
    together.take(MS)
    assert (alone.waiting, together.waiting) == (0, 2)
    alone.done(at_work, MS)
    assert alone.waiting == 2
    first.units.clear()
    assert alone.waiting == 0
