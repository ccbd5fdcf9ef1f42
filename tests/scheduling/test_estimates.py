import math

import pytest

from task_offload.scheduling.cost_model import DEVICE
from task_offload.scheduling.estimates import Estimates
from task_offload.scheduling.known import Known
from task_offload.scheduling.observation import Observation, PayloadCost, TaskCost
from task_offload.scheduling.payloads import UNKNOWN_CODEC
from task_offload.scheduling.probing import SURE


def observation(now_s: float, **changes: object) -> Observation:
    base: dict[str, object] = {
        "now_s": now_s,
        "interval_s": 0.5,
        "captured": 10,
        "finished": 10,
        "dropped": 0,
        "device": (TaskCost(10, 0.1, 10), TaskCost(10, 0.2, 10), TaskCost()),
        "cloud": (TaskCost(), TaskCost(), TaskCost(10, 0.01, 10)),
        "payloads": {(2, "none"): PayloadCost(10, 500_000, 0.01, 10, 0.005)},
        "source_rate": math.inf,
    }
    return Observation(**(base | changes))  # type: ignore[arg-type]


def estimates(*observations: Observation, codecs: tuple[str, ...] = ("none",)) -> Estimates:
    found = Estimates((1, 2), (False,) * 3, codecs)
    for each in observations:
        found.add(each)
    return found


def test_measured_costs_come_back() -> None:
    costs = estimates(*(observation(i * 0.5) for i in range(10))).costs([(2, "none")])
    assert costs.device_s[:2] == pytest.approx([0.01, 0.02])
    assert costs.cloud_s[2] == pytest.approx(0.001)
    assert costs.payloads[2, "none"] == pytest.approx((50_000, 0.001, 0.0005))


def test_threads_that_wait_for_each_other_do_not_make_tasks_look_longer() -> None:
    crowded = (TaskCost(10, 0.4, 10), TaskCost(10, 0.59, 10), TaskCost())  # with 0.01 encoding: 1.0 s in 0.5 s
    found = estimates(*(observation(i * 0.5, device=crowded) for i in range(10)))
    costs = found.costs([(2, "none")])
    work_s = sum(costs.device_s[:2]) + costs.payloads[2, "none"].encode_s
    assert work_s == pytest.approx(0.05)  # 10 items in 0.5 s on one core


def test_a_task_never_run_on_one_side_is_inferred_from_the_other_and_known_to_be_unsure() -> None:
    both = observation(
        0.5,
        device=(TaskCost(10, 0.1, 10), TaskCost(9, 0.18, 9), TaskCost()),
        cloud=(TaskCost(), TaskCost(1, 0.002, 1), TaskCost(10, 0.01, 10)),
    )
    known = estimates(both).known([(1, "none"), (2, "none")])
    assert known.costs.device_s[2] == pytest.approx(0.01)  # ten times slower, as for task 2
    assert known.device[2] == 1.0
    assert known.device[0] < 0.2


def test_what_did_not_run_moves_with_what_did() -> None:
    found = estimates(*(observation(i * 0.5) for i in range(10)))
    local = (TaskCost(10, 0.2, 10), TaskCost(), TaskCost())  # the device became half as fast, and task 2 went away
    offloaded = {(1, "none"): PayloadCost(10, 500_000, 0.02, 10, 0.005)}
    for i in range(10, 14):
        found.add(observation(i * 0.5, device=local, payloads=offloaded))
    assert found.costs([(1, "none")]).device_s[1] == pytest.approx(0.04, rel=0.05)


def test_a_short_task_tells_little_of_a_long_one() -> None:
    """0.1 ms tell of 20 ms what the caches hold, not how fast the device is."""
    both = (TaskCost(10, 0.001, 10), TaskCost(10, 0.2, 10), TaskCost())
    found = estimates(*(observation(i * 0.5, device=both) for i in range(12)))
    for i in range(12, 20):
        found.add(observation(i * 0.5, device=(TaskCost(10, 0.0005, 10), TaskCost(), TaskCost()), payloads={}))
    first_s, second_s, _ = found.costs([(2, "none")]).device_s
    assert first_s < 0.00008
    assert second_s > 0.019


def test_unmeasured_codecs_are_inferred_and_unsure() -> None:
    found = estimates(observation(0.5), codecs=("none", "zstd"))
    known = found.known(found.routes)
    assert known.costs.payloads[2, "zstd"].size_bytes < known.costs.payloads[2, "none"].size_bytes
    assert known.payloads[2, "zstd"].payload == UNKNOWN_CODEC
    assert known.payloads[1, "zstd"].payload == 1.0
    assert known.payloads[2, "none"].payload < 0.35


def test_a_link_that_nothing_large_crossed_is_no_limit() -> None:
    found = estimates(observation(0.5, acked_bytes=1500, link_busy_s=0.01))
    assert found.costs([(2, "none")]).link_bytes_per_s == math.inf


@pytest.mark.parametrize(
    ("changes", "slow"),
    [
        ({}, True),
        ({"window_full_s": 0.3}, False),  # over a long way something is always on it, but the window does not fill
        ({"queue_s": 0.25}, False),  # they waited for the cloud's workers
        ({"main_share": 0.02}, False),  # or for its main thread
    ],
)
def test_small_payloads_tell_the_link_only_when_it_and_not_the_cloud_held_them_back(
    changes: dict[str, float], slow: bool
) -> None:
    busy = {"acked_bytes": 100_000, "link_busy_s": 0.5, "acked": 10, "rtt_s": 0.4, "window_full_s": 0.48}
    found = estimates(*(observation(i * 0.5, **(busy | changes)) for i in range(4)))
    assert found.link.bytes_per_s == (pytest.approx(200_000) if slow else math.inf)


def test_small_payloads_that_come_faster_than_the_link_is_believed_to_be_correct_it() -> None:
    busy = {"acked_bytes": 100_000, "link_busy_s": 0.5, "acked": 10, "rtt_s": 0.4, "window_full_s": 0.48}
    found = estimates(
        observation(0.5, **busy), observation(1.0, **(busy | {"link_busy_s": 0.1, "rtt_s": 0.05, "window_full_s": 0.0}))
    )
    assert found.link.bytes_per_s == pytest.approx(1_000_000)


def test_a_source_that_waits_for_room_could_have_given_more() -> None:
    """Whatever is too slow after it must not pass for all that the source has."""
    found = estimates(observation(0.0, source_rate=None, captured=6, interval_s=0.5, held_s=0.4))
    assert found.source_rate == pytest.approx(60.0)
    found.add(observation(0.5, source_rate=None, captured=6, interval_s=0.5, held_s=0.5))
    assert found.source_rate > 1000.0
    found.add(observation(1.0, source_rate=None, captured=6, interval_s=0.5))
    assert found.source_rate == pytest.approx(12.0)


def test_a_live_source_is_as_fast_as_it_was_when_nothing_held_it() -> None:
    found = estimates(*(observation(i * 0.5, source_rate=None, captured=6) for i in range(60)))
    assert found.source_rate == pytest.approx(12.0)
    for i in range(60, 70):
        found.add(observation(i * 0.5, source_rate=None, captured=3, dropped=1))
    assert found.source_rate == pytest.approx(12.0)


def test_a_source_slower_than_the_intervals_has_its_own_rate_and_a_pause_is_none() -> None:
    found = estimates(*(observation(i * 0.5, interval_s=0.5, source_rate=None, captured=i % 2) for i in range(20)))
    assert found.source_rate == pytest.approx(1.0)
    for i in range(20, 60):
        found.add(observation(i * 0.5, interval_s=0.5, source_rate=None, captured=0))
    assert found.source_rate == pytest.approx(1.0)
    found.add(observation(30.0, interval_s=0.5, source_rate=None, captured=6, dropped=2))
    found.add(observation(30.5, interval_s=0.5, source_rate=None, captured=6))
    assert found.source_rate == pytest.approx(12.0)


def test_what_a_limit_gave_corrects_its_prediction() -> None:
    found = estimates(observation(0.5))
    before = found.costs([(2, "none")]).cores
    found.correct(DEVICE, 0.9)
    assert found.costs([(2, "none")]).cores == pytest.approx(0.9 * before)


def test_decoding_not_told_yet_is_inferred_from_other_payloads_and_not_from_tasks() -> None:
    on_its_way = {(2, "none"): PayloadCost(10, 500_000, 0.01, 10, 0.005), (1, "none"): PayloadCost(10, 1_500_000, 0.03)}
    tasks = (TaskCost(10, 0.1, 10), TaskCost(), TaskCost())
    found = estimates(
        observation(0.5), observation(1.0, payloads=on_its_way, device=tasks, cloud=(TaskCost(10, 0.001, 10),) * 3)
    )
    assert found.costs([(1, "none")]).payloads[1, "none"].decode_s == pytest.approx(0.0015)


def test_codecs_that_make_no_difference_share_their_times() -> None:
    payloads = {
        (2, "none"): PayloadCost(9, 450_000, 0.009, 9, 0.009),
        (2, "lz4"): PayloadCost(1, 50_100, 0.011, 1, 0.001),
        (2, "zstd"): PayloadCost(1, 25_000, 0.030, 1, 0.005),
    }
    found = estimates(observation(0.5, payloads=payloads), codecs=("none", "lz4", "zstd"))
    costs = found.costs([(2, "none"), (2, "lz4"), (2, "zstd")]).payloads
    for codec in ("none", "lz4"):
        assert costs[2, codec].encode_s == pytest.approx(0.002)
        assert costs[2, codec].decode_s == pytest.approx(0.001)
    assert costs[2, "zstd"].encode_s == pytest.approx(0.030)
    assert costs[2, "zstd"].decode_s == pytest.approx(0.005)


def test_one_payload_that_took_much_longer_than_others_alike_does_not_count() -> None:
    found = estimates(observation(0.5), codecs=("none", "lz4"))
    found.add(observation(1.0, payloads={(1, "none"): PayloadCost(1, 400_000, 0.1, 1, 0.2)}))
    alone = found.known([(1, "none")]).costs.payloads[1, "none"]
    assert (alone.encode_s, alone.decode_s) == pytest.approx((0.1, 0.2))
    found.add(observation(1.5, payloads={(1, "lz4"): PayloadCost(1, 400_000, 0.002, 1, 0.001)}))
    both = found.known([(1, "none")]).costs.payloads[1, "none"]
    assert (both.encode_s, both.decode_s) == pytest.approx((0.002, 0.001))
    for i in range(4, 10):  # that was no accident
        found.add(observation(i * 0.5, payloads={(1, "none"): PayloadCost(5, 2_000_000, 0.5, 5, 1.0)}))
    assert found.known([(1, "none")]).costs.payloads[1, "none"].encode_s > 0.05


def test_splits_with_payloads_as_large_share_their_times_and_how_sure_these_are() -> None:
    def known(size_bytes: int) -> Known:
        payloads = {
            (2, "none"): PayloadCost(99, 99 * 50_000, 0.099, 99, 0.0495),
            (1, "none"): PayloadCost(1, size_bytes, 0.005, 1, 0.0025),
        }
        return estimates(observation(0.5, payloads=payloads)).known([(1, "none"), (2, "none")])

    alike, other = known(52_000), known(60_000)
    assert alike.costs.payloads[1, "none"] == pytest.approx((52_000, 0.00104, 0.00052))
    assert alike.payloads[1, "none"].decode == alike.payloads[2, "none"].decode < 0.1
    assert other.costs.payloads[1, "none"] == pytest.approx((60_000, 0.005, 0.0025))
    assert other.payloads[1, "none"].decode > 0.25


def test_what_was_encoded_once_is_unsure_and_what_was_encoded_twice_is_not() -> None:
    found = estimates(observation(0.5))
    unsure = []
    for i in (2, 3):
        found.add(observation(0.5 * i, payloads={(1, "none"): PayloadCost(1, 400_000, 0.004, 1, 0.002)}))
        known = found.known([(1, "none"), (2, "none")])
        assert known.payloads[1, "none"].payload < SURE, "it may be chosen all the same"
        assert known.payloads[2, "none"].encode < SURE
        unsure.append(known.payloads[1, "none"].encode > SURE)
    assert unsure == [True, False]


def test_under_a_quota_tasks_cost_their_cpu_time_and_a_stalled_device_leaves_its_link_fast() -> None:
    def starved(now_s: float, transfer_s: float, window_full_s: float = 0.0) -> Observation:
        return observation(
            now_s,
            device=(TaskCost(10, 0.4, 10, 0.01), TaskCost(10, 0.5, 10, 0.03), TaskCost()),
            cores=2,
            cpu_s=0.05,
            delayed_s=1.0,
            threads=2.0,
            transfer_bytes=1_000_000,
            transfer_s=transfer_s,
            window_full_s=window_full_s,
        )

    fast = [starved(i * 0.5, 0.1) for i in range(4)]
    slow = [starved(2.0 + i * 0.5, 1.0) for i in range(4)]
    found = estimates(*fast, *slow)
    assert found.costs([(2, "none")]).device_s[:2] == pytest.approx([0.001, 0.003])
    assert found.costs([(2, "none")]).cores == pytest.approx(0.1)
    assert found.link.rate == pytest.approx(10_000_000)
    full = [starved(2.0 + i * 0.5, 1.0, window_full_s=0.4) for i in range(4)]
    assert estimates(*fast, *full).link.rate == pytest.approx(1_000_000)
