"""What the scheduler learns: counters of one interval, gone after it."""

from __future__ import annotations

import pytest

from task_offload.observe.meters import MEASURED, DeviceMeters
from task_offload.scheduling.observation import Observation
from task_offload.wire.messages import Costs, PayloadBusy, TaskBusy


def observe(meters: DeviceMeters) -> Observation:
    return meters.observe(10.0, 0.5, 3, 0.25, 30.0, 2, 64, False)


def test_tasks_on_the_device() -> None:
    meters = DeviceMeters(4)
    meters.captured = 3
    for survived in (True, True, False):
        meters.ran(0, [1_000_000_000], [500_000_000], True)
        meters.ran(1, [2_000_000_000, 3_000_000_000], [2_000_000_000, 1_000_000_000], survived)
    seen = observe(meters)
    assert seen.captured == 3
    assert [(task.items, task.busy_s, task.survived) for task in seen.device] == [
        (3, 3.0, 3), (3, 6.0, 3), (3, 9.0, 2), (0, 0.0, 0),
    ]  # fmt: skip
    assert [task.cpu_s for task in seen.device] == [1.5, 6.0, 3.0, 0.0]
    again = observe(meters)
    assert again.captured == 0
    assert all(task.items == 0 for task in again.device)


def test_cpu_time_of_some_stands_for_all() -> None:
    meters = DeviceMeters(3)
    for _ in range(MEASURED):
        assert meters.wants_cpu(2, "none")
        meters.ran(0, [9_000_000], [3_000_000], True)
        meters.ran(1, [5_000_000], [1_000_000], True)
        meters.encoded(2, "none", 1000, 0.5, 0.25)
    assert not meters.wants_cpu(2, "none")
    assert meters.wants_cpu(1, "none")
    assert meters.wants_cpu(2, "zstd")
    for _ in range(MEASURED):
        meters.ran(0, [9_000_000], [], True)
        meters.ran(1, [5_000_000], [], False)
    meters.encoded(2, "none", 1000, 0.5, None)
    seen = observe(meters)
    assert [task.cpu_s for task in seen.device] == pytest.approx([2 * MEASURED * 0.003, 2 * MEASURED * 0.001, 0.0])
    assert seen.payloads[2, "none"].encode_cpu_s == pytest.approx(0.25 * (MEASURED + 1))
    assert meters.wants_cpu(2, "none")


def test_payloads_by_split_and_codec_with_what_sending_them_took() -> None:
    meters = DeviceMeters(3)
    meters.encoded(1, "none", 1000, 0.5, 0.25)
    meters.encoded(1, "none", 1000, 0.5, 0.25)
    meters.encoded(2, "zstd", 500, 0.25, 0.25)
    meters.sent(2500, 0.5)
    tag = meters.tag("zstd")
    meters.cost(
        Costs(2.5, 0.75, 4000, 2, 1_000_000, 500_000, (TaskBusy(2, 3, 2, 9000),), (PayloadBusy(2, tag, 4, 800),))
    )
    seen = observe(meters)
    none, zstd = seen.payloads[1, "none"], seen.payloads[2, "zstd"]
    assert (none.items, none.size_bytes) == (2, 2000)
    assert none.encode_s == pytest.approx(1.0 + 2000 * 0.5 / 2500)
    assert none.encode_cpu_s == pytest.approx(0.5 + 2000 * 0.5 / 2500)
    assert (zstd.decoded, zstd.decode_s) == (4, pytest.approx(0.0008))
    assert (seen.workers, seen.main_share, seen.queue_s) == (2.5, 0.75, pytest.approx(0.002))
    assert (seen.transfer_bytes, seen.transfer_s) == (1_000_000, 0.5)
    assert [(task.items, task.survived) for task in seen.cloud] == [(0, 0), (0, 0), (3, 2)]
    assert observe(meters).payloads == {}


def test_what_sending_takes_is_a_line_over_the_size() -> None:
    meters = DeviceMeters(3)
    for _ in range(50):
        meters.sent(1_000, 0.000_201)
        meters.sent(400_000, 0.000_600)
        meters.sent(50_000, None)  # untimed
    meters.encoded(1, "none", 400_000, 0.5, 0.5)
    meters.encoded(2, "none", 2_000, 0.0, 0.0)  # two of a thousand bytes
    meters.encoded(2, "none", 0, 0.0, 0.0)
    payloads = observe(meters).payloads
    assert payloads[1, "none"].encode_cpu_s == pytest.approx(0.5 + 0.000_600)
    assert payloads[2, "none"].encode_cpu_s == pytest.approx(2 * 0.000_201)
    assert meters.sent_bytes == 50 * 451_000


def test_costs_that_make_no_sense_are_passed_over() -> None:
    """A tag or a task that was never heard of: a cloud of another mind, or a mean one."""
    meters = DeviceMeters(2)
    meters.cost(Costs(1.0, 1.0, tasks=(TaskBusy(200, 1, 1, 1),), payloads=(PayloadBusy(1, 77, 1, 1),)))
    assert observe(meters).payloads == {}


def test_acks() -> None:
    meters = DeviceMeters(2, max_latency_s=0.3)
    meters.acked(100, 0.25, 0.5, 1)
    meters.acked(50, None, 0.125, 3)  # it came with a welcome
    meters.finished(4)
    meters.dropped(2)
    meters.held(0.125)
    seen = observe(meters)
    assert (seen.acked_bytes, seen.acked, seen.rtt_s, seen.finished, seen.dropped) == (100, 1, 0.25, 4, 2)
    assert (seen.late, seen.held_s) == (1, 0.125)
    assert observe(meters).rtt_s is None
    assert meters.latency.count == 4


def test_tags_stand_for_codecs() -> None:
    meters = DeviceMeters(2)
    assert [meters.tag(codec) for codec in ("none", "zstd", "none", "lz4", "zstd")] == [0, 1, 0, 2, 1]
