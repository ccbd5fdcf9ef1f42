"""What a device costs the cloud, and the share of the cloud that it may count on."""

from __future__ import annotations

import pytest

from task_offload.engines.base import Done, Lane, Unit
from task_offload.observe.cloud_costs import CloudCosts, Shares
from task_offload.runner import Kind, Outcome
from task_offload.task import Item
from task_offload.wire.messages import PayloadBusy, TaskBusy


def done(outcome: Outcome, split: int = 2, tag: int = 1) -> Done:
    unit = Unit(Lane(), Item("d", "s", 0, 0.0, split), memoryview(b""), None, tag, None, received_ns=500_000)
    return Done(unit, outcome, decode_ns=1_500_000, queued_ns=7_000_000, cpu_ns=100)


def test_costs_by_task_and_payload_since_they_were_last_told() -> None:
    costs = CloudCosts()
    costs.add(done(Outcome(Kind.CONTINUED, 3, (), [1_000_000, 2_000_000])), 4_000_000, 50)
    costs.add(done(Outcome(Kind.FILTERED, 3, None, [1_000_000, 2_000_000])), None, 50)
    costs.add(done(Outcome(Kind.FAILED, 2, ValueError(), [1_000_000])), None, 50)
    told = costs.take(1.5, 0.5)
    assert told is not None
    assert told.tasks == (TaskBusy(2, 3, 2, 3000), TaskBusy(3, 2, 1, 4000), TaskBusy(4, 1, 1, 4000))
    assert told.payloads == (PayloadBusy(2, 1, 3, 6000),)
    assert (told.workers, told.main_share, told.queue_us, told.queued) == (1.5, 0.5, 21_000, 3)
    assert costs.take(1.5, 0.5) is None
    assert costs.main_busy_ns == 4_000_000


def test_a_device_alone_may_count_on_everything() -> None:
    shares = Shares(4)
    costs = CloudCosts()
    assert shares.measure({1: costs}, 10.0) == {1: (4, 1.0)}
    assert shares.measure({}, 11.0) == {}


def test_what_the_others_leave_and_at_least_a_fair_part() -> None:
    shares = Shares(4)
    busy, idle = CloudCosts(), CloudCosts()
    shares.measure({1: busy, 2: idle}, 10.0)
    busy.worker_busy_ns += 3_000_000_000
    busy.main_busy_ns += 900_000_000
    found = shares.measure({1: busy, 2: idle}, 11.0)
    assert found[1] == (pytest.approx(4.0), pytest.approx(1.0))
    workers, main = found[2]
    assert workers >= 1.0
    assert 0 < main <= 1.0
