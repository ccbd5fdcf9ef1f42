from collections.abc import Iterable
from dataclasses import replace

import pytest

from task_offload.scheduling.observation import Observation, PayloadCost, TaskCost
from task_offload.scheduling.processor import Processor


def seen(
    busy_s: float,
    cpu_s: float,
    process_s: float,
    delayed_s: float | None,
    cores: int = 2,
    encode_cpu_s: float = 0.0,
    threads: float = 2.0,
) -> Observation:
    """Half a second with one task that was busy and ran for so long."""
    return Observation(
        now_s=0.5,
        interval_s=0.5,
        captured=10,
        finished=10,
        dropped=0,
        device=(TaskCost(10, busy_s, 10, cpu_s), TaskCost()),
        cloud=(TaskCost(), TaskCost()),
        payloads={(1, "none"): PayloadCost(10, 1000, encode_cpu_s, 0, 0.0, encode_cpu_s)},
        cores=cores,
        cpu_s=process_s,
        delayed_s=delayed_s,
        threads=threads,
    )


def follow(observations: Iterable[Observation]) -> Processor:
    processor = Processor()
    for each in observations:
        processor.add(each)
    return processor


QUOTA = seen(1.0, 0.04, 0.05, 1.1)  # a tenth of a core; two threads want to run all the time
IDLE = seen(0.012, 0.01, 0.015, 0.002)  # under any quota, when little is to be done


def test_a_quota_is_known_from_the_first_interval() -> None:
    processor = follow([QUOTA])
    assert processor.cores == pytest.approx(0.1)
    assert processor.share == pytest.approx(0.1)
    assert processor.saturated
    assert processor.own_s(0.9, 0.03) == pytest.approx(0.03)


def test_what_no_task_takes_is_a_cost_of_each_item() -> None:
    assert follow([QUOTA] * 5).rest_s == pytest.approx(0.001)
    assert follow([seen(1.0, 0.03, 0.05, 1.1, encode_cpu_s=0.02)] * 5).rest_s == pytest.approx(0.0)


def test_a_device_that_is_not_busy_does_not_forget_its_quota() -> None:
    """What little it does then, it does at full speed: more of it would not."""
    processor = follow([QUOTA] * 10 + [IDLE] * 20)
    assert not processor.saturated
    assert processor.cores < 0.5


def test_little_work_under_a_quota_tells_nothing_of_it_either() -> None:
    """It waits for a core half of the time, however little it wants: right after much was wanted, and later."""
    little = seen(0.004, 0.004, 0.025, 0.025)
    for count in range(1, 20):
        assert follow([QUOTA] * 10 + [little] * count).cores < 0.15


def test_cores_that_are_free_again_are_found_when_they_are_wanted_or_after_a_while() -> None:
    wanted = seen(0.9, 0.9, 0.95, 0.01)
    assert follow([QUOTA] * 10 + [wanted] * 20).cores == pytest.approx(2.0, rel=0.1)
    assert follow([QUOTA] * 10 + [IDLE] * 1000).cores > 1.5


def test_a_quota_is_known_before_it_is_used_up() -> None:
    """Two threads wait for each other in bursts, with pauses between; one thread alone gets no more than it got."""
    assert follow([seen(0.4, 0.18, 0.2, 0.2)] * 5).cores == pytest.approx(1.0)
    assert follow([seen(0.4, 0.18, 0.2, 0.2, threads=1.0)] * 5).cores == pytest.approx(0.5)
    assert follow([seen(0.2, 0.18, 0.2, 0.005, threads=1.0)] * 5).cores == pytest.approx(2.0, rel=0.05)


def test_more_threads_than_cores_that_want_to_run_share_what_there_is() -> None:
    """Also right after a time in which less was wanted."""
    some, much = seen(0.4, 0.18, 0.2, 0.2), seen(1.5, 0.5, 0.5, 1.0, threads=4.0)  # of a quota of one core
    assert follow([some] * 4 + [much]).cores == pytest.approx(1.0, rel=0.05)


def test_a_quota_that_halves_is_a_step() -> None:
    processor = follow([QUOTA] * 10)
    halved = seen(1.0, 0.02, 0.025, 1.1)
    steps = [processor.add(halved) for _ in range(10)]
    assert any(steps)
    assert processor.cores == pytest.approx(0.05, rel=0.1)


def test_waiting_for_something_else_than_a_core_is_busy_time() -> None:
    processor = follow([seen(0.4, 0.01, 0.02, 0.0)] * 10)
    assert processor.own_s(0.04, 0.001) == pytest.approx(0.04)
    assert processor.cores >= 1.0


def test_threads_behind_one_lock_get_on_no_faster_than_one() -> None:
    processor = follow([seen(1.0, 0.5, 0.5, 0.0)] * 10)
    assert processor.cores == pytest.approx(1.0)
    assert processor.own_s(0.06, 0.03) == pytest.approx(0.03)


def test_where_delays_are_not_told_threads_that_are_busy_share_the_core() -> None:
    processor = follow([seen(1.0, 0.0, 0.5, None, cores=1)] * 10)
    assert processor.own_s(1.0, 0.0) == pytest.approx(0.5)
    assert processor.cores == 1.0
    assert processor.share == 1.0


def test_where_delays_are_not_told_a_task_may_be_longer_than_the_interval() -> None:
    once = replace(seen(0.0, 0.0, 0.5, None, cores=1), device=(TaskCost(1, 1.25, 1), TaskCost()))
    nothing = replace(once, device=(TaskCost(), TaskCost()))
    processor = follow([nothing, nothing, once])
    assert processor.own_s(1.25, 0.0) == pytest.approx(1.25)


def test_a_process_that_gets_no_core_at_all_is_slow_and_breaks_nothing() -> None:
    processor = follow([seen(0.0, 0.0, 0.0, 1.0)] * 3)
    assert 0.0 < processor.cores < 0.01
    assert processor.starved


def test_an_interval_in_which_nothing_ran() -> None:
    processor = follow([seen(0.0, 0.0, 0.0, 0.0)] * 3)
    assert processor.own_s(0.2, 0.1) == pytest.approx(0.2)
    assert not processor.saturated
