import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import (
    QUEUED,
    RESOURCES,
    Costs,
    Option,
    Payload,
    best,
    cheapest,
    fastest,
    mixed,
    options,
    quickest,
    single,
)


def costs(**changes: object) -> Costs:
    base: dict[str, object] = {
        "device_s": [0.010, 0.020, 0.040, 0.001],
        "cloud_s": [0.001, 0.002, 0.004, 0.0005],
        "survival": [1.0, 0.5, 1.0, 1.0],
        "stateful": [False] * 4,
        "payloads": {
            (1, "none"): Payload(100_000, 0.001, 0.0005),
            (2, "none"): Payload(50_000, 0.001, 0.0005),
            (3, "none"): Payload(1_000, 0.0001, 0.0001),
        },
        "link_bytes_per_s": 2_500_000.0,
        "cores": 1.0,
        "workers": 2.0,
        "round_trip_s": 0.02,
        "window": 16,
    }
    return Costs(**(base | changes))  # type: ignore[arg-type]


def by_split(found: list[Option]) -> dict[int, Option]:
    return {option.split: option for option in found}


def test_device_work_and_cloud_cost_are_the_design_formulas() -> None:
    option = by_split(options(costs()))[2]
    assert option.use_s[cost_model.DEVICE] == pytest.approx(0.010 + 0.020 + 0.5 * 0.001)
    assert option.cloud_busy_s == pytest.approx(0.5 * 0.0005 + 0.5 * 0.004 + 0.5 * 0.0005)
    assert option.use_s[cost_model.LINK] == pytest.approx(0.5 * 50_000 / 2_500_000)
    assert option.use_s[cost_model.WORKERS] == pytest.approx((0.5 * 0.0005 + 0.5 * 0.004) / 2)
    assert option.use_s[cost_model.MAIN] == pytest.approx(0.5 * 0.0005)
    assert option.size_bytes == pytest.approx(25_000)


def test_a_part_of_a_core_makes_the_device_slower_and_its_stages_too() -> None:
    whole = by_split(options(costs(rest_s=0.004)))[2]
    part = by_split(options(costs(rest_s=0.004, cores=0.1, core_share=0.1)))[2]
    assert whole.use_s[cost_model.DEVICE] == pytest.approx(0.010 + 0.020 + 0.5 * 0.001 + 0.004)
    for resource in (cost_model.DEVICE, cost_model.STAGE):
        assert part.use_s[resource] == pytest.approx(10 * whole.use_s[resource])
    assert part.latency_s - whole.latency_s == pytest.approx(9 * (0.010 + 0.020 + 0.001))


def test_each_limit_binds_and_is_named() -> None:
    cases = {
        "device": costs(),
        "link": costs(link_bytes_per_s=100_000.0),
        "cloud workers": costs(workers=0.01),
        "cloud main thread": costs(main_share=0.001),
        "window": costs(round_trip_s=2.0, window=1),
        "device stage": costs(cores=16.0, stateful=[False, True, False, False]),
        "source": costs(source_rate=20.0, room=3),
    }
    for limit, each in cases.items():
        choice = single(by_split(options(each))[2])
        assert choice.limit == limit
        assert choice.capacity_fps == pytest.approx(1 / max(choice.use_s))


def test_a_source_whose_newest_item_wins_loses_what_comes_during_a_long_one() -> None:
    found = by_split(options(costs(source_rate=100.0, room=2, link_bytes_per_s=1e9, survival=[1.0] * 4)))
    long, short = found[3], found[1]
    assert long.use_s[cost_model.DEVICE] == pytest.approx(0.0701)
    # Of 7 items that come during the long one, 5 find no room, so it costs the source 6 periods.
    assert long.use_s[cost_model.SOURCE] == pytest.approx(0.0601, abs=1e-4)
    assert short.use_s[cost_model.SOURCE] == pytest.approx(0.01)
    assert by_split(options(costs()))[3].use_s[cost_model.SOURCE] == 0.0  # a source that waits loses nothing


def test_state_in_the_cloud_takes_one_worker() -> None:
    free = by_split(options(costs(workers=4.0)))[1]
    bound = by_split(options(costs(workers=4.0, stateful=[False, False, True, False])))[1]
    assert bound.use_s[cost_model.WORKERS] == pytest.approx(4 * free.use_s[cost_model.WORKERS])


def test_a_link_that_is_away_leaves_predictions_finite() -> None:
    found = options(costs(link_bytes_per_s=0.0))
    assert fastest(found).capacity_fps < 1
    assert all(math.isfinite(each) for option in found for each in option.use_s)


def test_the_cheapest_mixes_two_splits_where_no_single_one_is_as_cheap() -> None:
    found = options(costs())
    target = 20.0
    alone = cheapest(found, target, mixes=False)
    mix = cheapest(found, target)
    assert alone is not None
    assert mix is not None
    assert mix.cloud_busy_s < alone.cloud_busy_s
    assert mix.capacity_fps == pytest.approx(target)
    assert set(mix.shares) == {2, 3}


def test_items_that_take_the_device_longer_hold_up_the_others_of_a_mix_in_the_end() -> None:
    found = by_split(options(costs(survival=[1.0] * 4, cores=0.1, core_share=0.1, horizon_s=1.0, workers=1.0)))
    quick, slow = found[1], found[3]  # 0.11 and 0.701 s
    mix = mixed(quick, slow, 0.9)
    lasts_s = QUEUED * 1.0 + 0.02 + 0.04 + 0.007  # the queues, the round trip, the transfer, the cloud's work
    link_s = 0.9 * 0.04 + 0.1 * (0.0004 + 0.701 - 0.11 - lasts_s)
    assert mix.use_s[cost_model.LINK] == pytest.approx(link_s)
    assert mix.use_s[cost_model.DEVICE] == pytest.approx(0.9 * 0.11 + 0.1 * 0.701)
    assert mixed(slow, quick, 0.1).use_s == pytest.approx(mix.use_s)
    assert single(slow).use_s == slow.use_s  # there is no quicker item to hold up
    assert mixed(quick, found[2], 0.5).use_s[cost_model.LINK] == pytest.approx(0.03)  # 0.31 s is hidden


def test_with_less_than_a_core_a_long_item_takes_longer_beside_others() -> None:
    same = {"survival": [1.0] * 4, "core_share": 0.1, "horizon_s": 0.2, "workers": 1.0}
    links_s = []
    for changes in ({"cores": 0.1}, {"cores": 0.1, "ahead": 2}, {"cores": 0.1, "ahead": 8}, {"cores": 1.0, "ahead": 2}):
        found = by_split(options(costs(**same, **changes)))
        links_s.append(mixed(found[1], found[3], 0.9).use_s[cost_model.LINK])
    alone_s, beside_two_s, beside_many_s, core_s = links_s
    assert beside_two_s == pytest.approx(alone_s + 0.1 * 2 * 0.11)
    assert beside_many_s == pytest.approx(alone_s + 0.1 * 0.701)  # no more than it takes itself, by turns
    assert core_s == pytest.approx(alone_s)


def test_a_target_beyond_all_has_no_cheapest_but_a_fastest() -> None:
    found = options(costs())
    assert cheapest(found, 1e4) is None
    assert fastest(found).capacity_fps >= 0.97 * max(option.capacity_fps for option in found)


def test_the_best_is_the_cheapest_that_reaches_a_throughput_or_the_fastest_or_the_quickest() -> None:
    found = options(costs())
    assert best(found, lambda option: True, 1e4, 20.0) == (cheapest(found, 20.0), True)
    assert best(found, lambda option: True, 1e4, math.inf) == (fastest(found), False)
    assert best(found, lambda option: option.split == 3, 20.0) == (single(found[2]), False)
    assert best(found, lambda option: False, 20.0) == (single(quickest(found)), False)
    assert quickest(found).latency_s == min(option.latency_s for option in found)


def test_a_doubtful_link_is_counted_on_less_by_what_sends_more() -> None:
    sure, doubtful = by_split(options(costs())), by_split(options(costs(), doubt=0.2, trusted_bytes=25_000))
    assert doubtful[1].use_s[cost_model.LINK] == pytest.approx(sure[1].use_s[cost_model.LINK] / 0.8)
    assert doubtful[2] == sure[2]


def test_the_source_is_not_asked_for_a_margin() -> None:
    found = options(costs(source_rate=20.0, room=3), margin=0.05)
    assert found[0].use_s[cost_model.SOURCE] == pytest.approx(1 / 21)


def test_splits_with_different_codecs_are_not_mixed() -> None:
    payloads = {(1, "none"): Payload(100_000, 0.001, 0.0005), (3, "zstd"): Payload(1_000, 0.0001, 0.0001)}
    assert cheapest(options(costs(payloads=payloads)), 22.0) == single(options(costs(payloads=payloads))[0])


def option(use_s: list[float], cloud_s: float, split: int, device_latency_s: float) -> Option:
    return Option(split, "none", tuple(use_s), max(use_s), cloud_s, device_latency_s, 0.1, 0.1, 0.0, 0.0)


uses = st.lists(st.floats(1e-4, 1.0), min_size=len(RESOURCES), max_size=len(RESOURCES))
latencies = st.floats(0.0, 2.0)


@settings(deadline=None)  # a busy machine is no failure
@given(uses, uses, st.floats(1e-4, 1.0), st.floats(1e-4, 1.0), latencies, st.floats(1.0, 200.0))
def test_the_cheapest_share_is_the_best_of_a_fine_grid(
    a: list[float], b: list[float], cost_a: float, cost_b: float, latency_s: float, fps: float
) -> None:
    first, second = option(a, cost_a, 1, 0.0), option(b, cost_b, 2, latency_s)
    found = cheapest([first, second], fps)
    grid = [mixed(first, second, i / 200) for i in range(201)]
    able = [choice for choice in grid if choice.capacity_fps >= fps]
    if able:
        assert found is not None
        assert found.cloud_busy_s <= min(choice.cloud_busy_s for choice in able) * (1 + 1e-9)
    if found is not None:
        assert found.capacity_fps >= fps * (1 - 1e-9)


@settings(deadline=None)  # a busy machine is no failure
@given(uses, uses, latencies)
def test_the_fastest_share_is_the_best_of_a_fine_grid(a: list[float], b: list[float], latency_s: float) -> None:
    first, second = option(a, 0.1, 1, 0.0), option(b, 0.2, 2, latency_s)
    best = mixed(first, second, cost_model.fastest_share(first, second)).capacity_fps
    assert best >= max(mixed(first, second, i / 200).capacity_fps for i in range(201)) * (1 - 1e-9)
