from dataclasses import replace

import pytest

from task_offload.scheduling.simulation.baselines import Fixed, LatencyMinimal, StepDown
from task_offload.scheduling.simulation.device import Line
from task_offload.scheduling.simulation.laboratory import judge, policies, run, run_fleet, switches
from task_offload.scheduling.simulation.oracle import best
from task_offload.scheduling.simulation.worlds import PI_4, SYNTHETIC, TRAFFIC, World, always, lookalike, worlds

QUIET = {"device_noise": 0.01, "cloud_noise": 0.01, "size_noise": 0.01}
WORLD = World("plain", TRAFFIC, 12.0, always(2.5), link_mbit=always(40.0), duration_s=40.0, **QUIET)  # type: ignore[arg-type]


def fps_of(world: World, split: int, codec: str = "none") -> float:
    windows = run(world, lambda _: Fixed(split, codec), 0).windows[2:]
    return sum(window.fps for window in windows) / len(windows)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_fixed_splits_give_what_the_cost_model_predicts_from_the_truth(split: int) -> None:
    option = next(each for each in best_options(WORLD) if each.split == split)
    assert fps_of(WORLD, split) == pytest.approx(option.capacity_fps, rel=0.06)


def best_options(world: World):  # type: ignore[no-untyped-def]
    from task_offload.scheduling.cost_model import options

    return options(world.costs(0.0))


def test_a_crowded_cloud_and_a_slow_link_limit_as_predicted() -> None:
    crowded = replace(WORLD, workers=always(0.2))
    assert fps_of(crowded, 1) == pytest.approx(
        next(o for o in best_options(crowded) if o.split == 1).capacity_fps, rel=0.06
    )
    slow = replace(WORLD, link_mbit=always(2.0))
    assert fps_of(slow, 3) == pytest.approx(next(o for o in best_options(slow) if o.split == 3).capacity_fps, rel=0.06)


def test_a_live_source_is_never_outrun() -> None:
    live = replace(WORLD, live=True, source_fps=5.0)
    assert fps_of(live, 3) == pytest.approx(5.0, rel=0.03)


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    world = replace(WORLD, device_noise=0.2)
    first, again, other = (run(world, policies(world)["model"], seed) for seed in (1, 1, 2))
    assert first.windows == again.windows
    assert first.windows != other.windows


def test_every_item_is_filtered_completed_or_on_its_way() -> None:
    world = replace(WORLD, chain=SYNTHETIC, target_fps=20.0)
    found = run(world, policies(world)["model"], 0)
    assert found.items == len(found.latencies_s)
    assert found.items == pytest.approx(sum(window.fps for window in found.windows) * 5.0)


def test_the_oracle_is_no_dearer_than_any_feasible_choice() -> None:
    for world in worlds():
        found = best(world.costs(1.0), world.target_fps)
        if found.mix is not None and found.single is not None:
            assert found.mix.cloud_busy_s <= found.single.cloud_busy_s * (1 + 1e-9)
            assert found.mix.capacity_fps >= world.target_fps * (1 - 1e-9)


def test_a_line_carries_its_rate_across_changes_and_outages() -> None:
    world = replace(WORLD, link_mbit=((0.0, 8.0), (10.0, 16.0)), outages=((2.0, 4.0),))
    line = Line(world, 40.0)
    assert line.end(0.0, 1_000_000) == pytest.approx(1.0)
    assert line.end(1.5, 1_000_000) == pytest.approx(4.5)  # half before the outage, half after
    assert line.end(9.5, 1_500_000) == pytest.approx(10.5)


def test_the_forerunner_only_ever_steps_down() -> None:
    world = replace(WORLD, slowdown=always(10.0), duration_s=60.0)
    found = run(world, lambda _: StepDown((1, 2, 3), 3, 12.0), 0)
    splits = [min(decision.shares) for _, decision in found.decisions]
    assert splits == sorted(splits, reverse=True)
    assert splits[-1] < 3


def test_least_latency_takes_the_quickest_split() -> None:
    (split,) = LatencyMinimal(WORLD).start().shares
    assert split == min(best_options(WORLD), key=lambda option: option.latency_s).split


def test_a_fleet_takes_work_back_from_a_crowded_cloud_and_settles() -> None:
    """Every device would use two and a half times what the cloud has for it from the 60th second on."""
    world = World(
        "fleet", SYNTHETIC, 25.0, always(5.0), link_mbit=always(60.0),
        workers=((0.0, 0.48), (60.0, 0.15)), duration_s=180.0, steady=False,
    )  # fmt: skip
    runs = run_fleet(world, 6, 0)

    def used(begin: float, end: float) -> list[float]:
        columns = zip(
            *([w.fps * w.cloud_s for w in each.windows if begin < w.second <= end] for each in runs), strict=True
        )
        return [sum(column) for column in columns]

    early = [window.fps for each in runs for window in each.windows if 30.0 < window.second <= 60.0]
    assert sum(early) / len(early) >= world.target_fps
    assert min(used(30.0, 60.0)) > 0.2
    crowded = used(120.0, 180.0)
    assert max(crowded) < 0.16
    assert min(crowded) > 0.6 * max(crowded)
    late = [second for each in runs for second, _ in switches(each) if second > 120.0]
    assert len(late) <= len(runs)  # once a minute at most
    rates = [[window.fps for window in each.windows if window.second > 120.0] for each in runs]
    means = [sum(each) / len(each) for each in rates]
    assert sum(means) / len(means) > 18.5  # all by itself a device has 20.7 FPS
    assert min(means) > 15.5  # and nobody is left without


def test_a_lookalike_link_has_the_mean_it_was_asked_for_and_moods() -> None:
    rates = [rate for _, rate in lookalike(6.0, 600, 1)]
    assert sum(rates) / len(rates) == pytest.approx(6.0, rel=0.35)
    assert max(rates) > 2 * sum(rates) / len(rates)


def test_a_target_that_is_met_too_late_is_not_met() -> None:
    slow = World("slow device", SYNTHETIC, 12.0, always(PI_4), link_mbit=always(30.0), duration_s=60.0)
    highest = SYNTHETIC.splits[-1]
    score = judge(run(slow, lambda world: Fixed(highest, "none"), 0))
    assert score.met == score.feasible == 12
    assert score.p95_s > 0.08
    hurried = replace(slow, max_latency_s=0.08, live=True, source_fps=12.5)
    score = judge(run(hurried, lambda world: Fixed(highest, "none"), 0))
    assert (score.met, score.feasible) == (0, 12)
