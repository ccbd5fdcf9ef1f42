"""What devices are told of the cloud: what the others leave, and at least a fair part."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from task_offload.engines.base import Done, Lane, Unit
from task_offload.observe.cloud_costs import CloudCosts, Shares
from task_offload.runner import Kind, Outcome
from task_offload.task import Item

S = 1_000_000_000


def shares_after(
    busy: Mapping[int, tuple[float, float]], workers: int = 4, weights: Mapping[int, float] | None = None
) -> dict[int, tuple[float, float]]:
    """The shares of devices that kept so many workers, and so much of the main thread, busy for a second."""
    shares, sessions = Shares(workers), {key: (CloudCosts(), (weights or {}).get(key, 1.0)) for key in busy}
    shares.measure(sessions, 10.0)
    for key, (worker, main) in busy.items():
        sessions[key][0].worker_busy_ns += int(worker * S)
        sessions[key][0].main_busy_ns += int(main * S)
    return shares.measure(sessions, 11.0)


def test_a_device_alone_has_it_all() -> None:
    assert shares_after({1: (3.9, 0.9)})[1] == pytest.approx((4.0, 1.0))


def test_a_device_is_told_what_the_others_leave() -> None:
    found = shares_after({1: (1.0, 0.1), 2: (0.5, 0.3)})
    assert found[1] == pytest.approx((3.5, 0.7))
    assert found[2] == pytest.approx((3.0, 0.9))


def test_many_greedy_devices_are_told_their_fair_parts() -> None:
    found = shares_after(dict.fromkeys(range(500), (4 / 500, 1 / 500)))
    for workers, main in found.values():
        assert workers == pytest.approx(4 / 500, rel=0.01)
        assert main == pytest.approx(1 / 500, rel=0.01)


def test_a_small_device_keeps_its_fair_part_beside_a_greedy_one() -> None:
    found = shares_after({0: (3.95, 0.5), **dict.fromkeys(range(1, 11), (0.005, 0.0))})
    assert found[1][0] == pytest.approx(4 / 11)
    assert found[0][0] == pytest.approx(3.95)


def test_one_that_begins_is_told_what_would_be_its_part() -> None:
    found = shares_after({1: (4.0, 1.0), 2: (0.0, 0.0)})
    assert found[2] == pytest.approx((2.0, 0.5))


def test_who_weighs_more_is_told_a_larger_part_of_the_workers() -> None:
    found = shares_after({1: (3.0, 0.5), 2: (1.0, 0.5), 3: (0.0, 0.0)}, weights={1: 3.0, 3: 4.0})
    assert found[1] == pytest.approx((3.0, 0.5))
    assert found[2] == pytest.approx((1.0, 0.5))
    assert found[3] == pytest.approx((2.0, 1 / 3))


def test_no_devices_no_shares() -> None:
    assert shares_after({}) == {}


def test_costs_are_told_once() -> None:
    costs = CloudCosts()
    item = Item("device", "", 0, 0.0, 2)
    unit = Unit(Lane(), item, b"", None, 7, None, received_ns=1000)
    costs.add(Done(unit, Outcome(Kind.CONTINUED, 3, (), [5000, 6000]), 2000, 9000, 14000), 4000, 3000)
    costs.add(Done(unit, Outcome(Kind.FILTERED, 2, None, [5000]), 2000, 9000, 8000), None, 1000)
    told = costs.take(2.0, 0.5)
    assert told is not None
    assert (told.workers, told.main_share, told.queue_us, told.queued) == (2.0, 0.5, 18, 2)
    assert [(t.task, t.items, t.survived, t.busy_us) for t in told.tasks] == [(2, 2, 1, 10), (3, 1, 1, 6), (4, 1, 1, 4)]
    assert [(p.split, p.tag, p.items, p.busy_us) for p in told.payloads] == [(2, 7, 2, 6)]
    assert costs.cpu_ns == 14000 + 8000 + 3000 + 1000 + 2000
    assert costs.take(2.0, 0.5) is None


MS = 1_000_000


def came(costs: CloudCosts, split: int, busy_ms: list[int], last_ms: int | None, kind: Kind = Kind.CONTINUED) -> None:
    """An item of a chain of four tasks: 1 ms for its payload at each split, 2 ms for what surrounds it."""
    item = Item("device", "", 0, 0.0, split)
    unit = Unit(Lane(), item, b"", None, 0, None)
    busy_ns = [ms * MS for ms in busy_ms]
    outcome = Outcome(kind, split + len(busy_ms) - 1, (), busy_ns)
    done = Done(unit, outcome, 1 * MS, 0, 1 * MS + sum(busy_ns))
    costs.add(done, None if last_ms is None else last_ms * MS, ((last_ms or 0) + 2) * MS)


def test_what_sending_everything_would_have_cost() -> None:
    costs, other, everything = CloudCosts(), CloudCosts(), CloudCosts()
    came(costs, 1, [10, 20], 5)
    costs.take(1.0, 1.0)
    came(costs, 1, [14], None, Kind.FILTERED)
    for _ in range(3):
        came(other, 3, [], 5)
    everything.enter(costs)
    everything.enter(other)
    # Five items came and two were filtered by their devices' third task: seven payloads and surroundings of 3 ms, the
    # second task seven times, the third one six times, the last one four times.
    assert everything.if_all_were_sent_s({2: 2}, 4) == pytest.approx((7 * 3 + 7 * 12 + 6 * 20 + 4 * 5) / 1e3)


def test_what_never_ran_here_has_no_known_cost() -> None:
    costs, everything = CloudCosts(), CloudCosts()
    came(costs, 3, [], 5)
    everything.enter(costs)
    assert everything.if_all_were_sent_s({}, 4) is None
