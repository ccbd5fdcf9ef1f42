import math
import random
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import pytest

from task_offload.scheduling.hysteresis import PATIENCE_S, TRIAL_S
from task_offload.scheduling.observation import Decision, Observation, PayloadCost, TaskCost
from task_offload.scheduling.policy import Goal, ModelPolicy
from task_offload.scheduling.simulation.drawn import draw
from task_offload.scheduling.simulation.laboratory import Run, goal_of, judge, run
from task_offload.scheduling.simulation.oracle import best
from task_offload.scheduling.simulation.worlds import (
    ALL_CODECS,
    BALL_MEMORY,
    SYNTHETIC,
    TRAFFIC,
    World,
    always,
    payloads,
    worlds,
)

HEAVY = World("heavy middle", TRAFFIC, 15.0, always(2.5), link_mbit=always(40.0), duration_s=60.0)
NARROW = replace(HEAVY, slowdown=always(1.0), target_fps=13.0, link_mbit=always(6.0), codecs=ALL_CODECS)


def simulate(world: World, seed: int = 0) -> Run:
    return run(world, lambda world: ModelPolicy(goal_of(world)), seed)


def switches(found: Run) -> list[tuple[float, Decision]]:
    """Decisions that change the set of splits or the codec."""
    assert found.first is not None
    state, kept = (set(found.first.shares), found.first.codec), []
    for second, decision in found.decisions:
        if (set(decision.shares), decision.codec) != state:
            state = (set(decision.shares), decision.codec)
            kept.append((second, decision))
    return kept


def test_a_mix_meets_the_target_for_much_less_than_any_single_split() -> None:
    score = judge(simulate(HEAVY))
    assert score.met_share > 0.9
    assert score.cost_ratio < 1.25
    assert score.cloud_s < 0.5 * score.single_s


def test_it_converges_within_two_decisions_and_then_stays() -> None:
    found = simulate(HEAVY)
    assert judge(found).converge_decisions[0] <= 2
    assert [second for second, _ in switches(found) if second > 10] == []


def test_it_offloads_at_once_when_the_device_slows_and_takes_back_after() -> None:
    world = replace(
        HEAVY, target_fps=12.0, slowdown=((0.0, 2.0), (30.0, 4.5), (60.0, 2.0)), duration_s=90.0, steady=False
    )
    found = simulate(world)
    offloaded = next(second for second, decision in switches(found) if min(decision.shares) < 3)
    assert 30.0 < offloaded < 33.0
    assert max(window.shares.get(3, 0.0) for window in found.windows if 35.0 < window.second <= 60.0) < 0.7
    assert min(window.shares.get(3, 0.0) for window in found.windows if window.second > 75.0) > 0.97


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_device_that_slows_again_and_again_is_believed_each_time(seed: int) -> None:
    """Steps up and down make the variance large, in which a further step does not look like one."""
    slowdown = tuple((25.0 * number, 1.5 if number % 2 == 0 else 3.2) for number in range(20))
    found = simulate(replace(HEAVY, target_fps=12.0, slowdown=slowdown, duration_s=500.0, steady=False), seed)
    assert judge(found).met_share > 0.85


def test_a_split_that_sends_less_is_taken_though_the_link_moves() -> None:
    """What relies on the link less than the choice in force is not judged by the link's worse moments alone."""
    chain = replace(TRAFFIC, task_s=(1e-3,) * 7, payloads=payloads([34e3, 34e3, 40e3]), stateful=(False,) * 7)
    swings = tuple((float(second), 6.0 if second % 2 else 18.0) for second in range(6))
    found = simulate(
        World(
            "moving link", chain, 1000.0, always(1.0), link_mbit=swings, link_repeat_s=6.0, steady=False,
            survival={2: ((0.0, 0.5), (40.0, 1.0))}, duration_s=140.0,
        )
    )  # fmt: skip
    assert all(set(window.shares) == {3} for window in found.windows if 20.0 < window.second <= 40.0)
    assert all(3 not in window.shares for window in found.windows if window.second > 110.0)


ALIKE = World("alike", BALL_MEMORY, 150.0, always(4.0), link_mbit=always(100.0), quota=True, duration_s=120.0)
"""The splits 4 to 6 cost the cloud the same within a tenth; a single payload tells its time to a third."""


def test_one_lucky_measurement_is_no_saving() -> None:
    for seed in range(1, 4):
        assert [decision.shares for _, decision in switches(simulate(ALIKE, seed))] == []


def test_what_the_device_can_do_too_is_taken_back_though_it_saves_little() -> None:
    for seed in range(3):
        found = switches(run(ALIKE, lambda world: ModelPolicy(replace(goal_of(world), start=5)), seed))
        assert [decision.shares for _, decision in found] == [{6: 1.0}]
        assert found[0][0] > 0.5 * PATIENCE_S


def test_a_mix_meets_its_target_though_a_live_source_loses_items_during_long_ones() -> None:
    """One core, 111 items a second; the higher split takes 40 ms, and 60 from the 150th second on."""
    assert judge(simulate(replace(draw(1020), duration_s=220.0), 1000)).met_share >= 0.9


def test_a_task_that_may_keep_state_leaves_the_device_one_thread_though_it_has_four_cores() -> None:
    """The heavy task keeps none, but runs in the one thread too."""
    chain = replace(HEAVY.chain, stateful=(False, True, False, True, True, False, False))
    found = simulate(replace(HEAVY, chain=chain, cores=4, target_fps=20.0))
    assert judge(found).met_share > 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_items_that_would_hold_up_all_others_are_no_part_of_the_fastest_mix(seed: int) -> None:
    """A tenth of a core takes 0.4 s for an item at split 3, and the cloud is the limit of those at split 2."""
    weak = World(
        "weak", TRAFFIC, 1000.0, always(10.0), link_mbit=always(100.0), quota=True, cores=2, workers=always(2.0),
        codecs=ALL_CODECS, duration_s=60.0,
    )  # fmt: skip
    assert all(3 not in window.shares for window in simulate(weak, seed).windows[4:])


def test_a_target_that_the_highest_split_meets_needs_no_probe_and_no_switch() -> None:
    found = simulate(replace(HEAVY, target_fps=5.0))
    assert found.decisions == []


def test_beyond_reach_it_is_as_fast_as_can_be_and_names_the_limit() -> None:
    found = simulate(replace(HEAVY, target_fps=1000.0))
    score = judge(found)
    assert score.feasible == 0
    assert score.speed is not None
    assert score.speed > 0.9
    assert "no split reaches 1000 FPS, this one is fastest; the limit is the" in switches(found)[-1][1].reason


def test_it_goes_back_ever_more_rarely_to_what_it_left_for_being_slower() -> None:
    """Two codecs are as fast, one at a time looks a tenth faster by luck, and the target is out of reach."""
    world = next(each for each in worlds() if each.name == "ball raw, asks for 1000")
    seconds = [second for second, _ in switches(simulate(world, 9))]
    pauses = [after - before for before, after in pairwise(seconds)]
    assert len(pauses) > 4
    assert pauses[-1] > 2.0 * TRIAL_S


def test_out_of_reach_what_is_far_faster_need_not_wait() -> None:
    """A link that fell again and again has made it patient; then it is fast for good."""
    swings = tuple((40.0 * i, 1.0 if i % 2 else 40.0) for i in range(6))
    world = replace(HEAVY, target_fps=1000.0, link_mbit=(*swings, (240.0, 60.0)), duration_s=300.0, codecs=ALL_CODECS)
    late = [window for window in simulate(world, 2).windows if window.second > 250]
    assert all(window.fps > 0.7 * window.fastest_fps for window in late)


@pytest.mark.parametrize("wanted", [1.0, 1.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_that_a_camera_gives_is_had_without_a_margin_that_it_cannot_have(wanted: float, seed: int) -> None:
    camera = World(
        "camera", TRAFFIC, 15.0 * wanted, always(2.8), link_mbit=always(40.0), live=True, source_fps=15.0,
        states_rate=False, duration_s=200.0,
    )  # fmt: skip
    found = simulate(camera, seed)
    late = found.windows[12:]
    cheapest = best(camera.costs(0.0), 15.0).mix
    assert cheapest is not None
    assert mean(window.fps for window in late) > 0.99 * 15.0
    assert mean(window.cloud_s for window in late) < 1.25 * cheapest.cloud_busy_s
    assert len(switches(found)) <= 2


def test_without_a_target_it_takes_the_fastest_codec_of_the_split_that_is_given() -> None:
    world = replace(HEAVY, link_mbit=always(6.0), slowdown=always(1.0), codecs=ALL_CODECS)
    goal = replace(goal_of(world), splits=(2,), start=2, target_fps=math.inf)
    found = run(world, lambda _: ModelPolicy(goal), 0)
    assert found.windows[-1].shares == {2: 1.0}
    assert found.windows[-1].codec == "zstd"
    assert "inf" not in switches(found)[-1][1].reason


def test_compression_is_chosen_where_the_link_needs_it() -> None:
    last = simulate(NARROW).windows[-1]
    assert last.codec == "zstd"
    assert last.fps > 0.97 * 13.0
    assert simulate(replace(NARROW, link_mbit=always(100.0))).windows[-1].codec == "none"


class _CloudsWithCodecs:
    """Clouds that follow each other, and have these codecs from a second on."""

    def __init__(self, goal: Goal, clouds: tuple[tuple[float, set[str]], ...]) -> None:
        self._policy, self._clouds = ModelPolicy(goal), clouds
        self.start = self._policy.start

    def codecs(self, second: float) -> set[str]:
        return [codecs for since_s, codecs in self._clouds if since_s <= second][-1]

    def decide(self, observation: Observation) -> Decision | None:
        return self._policy.decide(replace(observation, codecs=self.codecs(observation.now_s)))


def test_what_the_cloud_cannot_decode_is_neither_probed_nor_chosen() -> None:
    clouds = ((0.0, {"none", "lz4"}), (20.0, set(ALL_CODECS)), (40.0, {"none"}))
    policy = _CloudsWithCodecs(goal_of(NARROW), clouds)
    found = run(NARROW, lambda _: policy, 0)
    probed: dict[float, set[str | None]] = {}
    for second, decision in found.decisions:
        used = {decision.codec, *(route.codec for route in decision.probes)}
        assert used <= policy.codecs(second)
        probed.setdefault(20.0 * (second // 20.0), set()).update(used)
    assert probed == {0.0: {"none", "lz4"}, 20.0: probed[20.0] | {"zstd"}, 40.0: {"none"}}
    (second, decision), *_ = [(second, each) for second, each in switches(found) if second >= 40.0]
    assert second < 41.0
    assert decision.reason.startswith("payloads encoded with none instead of zstd: the cloud cannot decode zstd")


def test_a_codec_that_is_lost_is_left_at_once_though_others_are_there() -> None:
    clouds = ((0.0, set(ALL_CODECS)), (40.0, {"none", "lz4"}))
    found = run(NARROW, lambda _: _CloudsWithCodecs(goal_of(NARROW), clouds), 0)
    assert [each.codec for second, each in switches(found) if second < 40.0][-1] == "zstd"
    (second, decision), *_ = [(second, each) for second, each in switches(found) if second >= 40.0]
    assert second < 41.0
    assert decision.reason.startswith("payloads encoded with none instead of zstd: the cloud cannot decode zstd")


class _Impossible:
    """Split 3 turns out not to be possible."""

    def __init__(self, goal: Goal, since_s: float) -> None:
        self._policy, self._since_s = ModelPolicy(goal), since_s
        self.start = self._policy.start

    def decide(self, observation: Observation) -> Decision | None:
        impossible = {3} if observation.now_s >= self._since_s else set()
        return self._policy.decide(replace(observation, impossible=impossible))


def test_a_split_that_is_not_possible_is_left_at_once_and_not_tried_again() -> None:
    found = run(HEAVY, lambda _: _Impossible(goal_of(HEAVY), 30.0), 0)
    assert any(3 in decision.shares for second, decision in found.decisions if second < 30.0)
    later = [(second, decision) for second, decision in found.decisions if second >= 30.0]
    assert later[0][0] == 30.0
    assert later[0][1].reason == "split 3 is not possible: what the next task takes cannot travel"
    for _, decision in later:
        assert 3 not in decision.shares
        assert 3 not in {route.split for route in decision.probes}


def test_the_only_codec_that_is_asked_for_is_used_when_the_cloud_has_it() -> None:
    goal = replace(goal_of(NARROW), splits=(2,), start=2, codecs=("zstd",))
    found = run(NARROW, lambda _: _CloudsWithCodecs(goal, ((0.0, {"none"}), (20.0, set(ALL_CODECS)))), 0)
    assert [(decision.codec, decision.reason) for _, decision in switches(found)] == [
        ("none", "payloads encoded with none instead of zstd: the cloud cannot decode zstd"),
        ("zstd", "payloads encoded with zstd instead of none: the cloud can decode zstd"),
    ]
    assert found.windows[-1].codec == "zstd"


def test_a_latency_that_the_best_throughput_would_break_is_kept() -> None:
    world = World("latency", SYNTHETIC, 15.0, always(5.0), link_mbit=always(30.0), live=True, source_fps=15.0,
                  max_latency_s=0.08, codecs=ALL_CODECS, duration_s=40.0)  # fmt: skip
    free, bound = simulate(replace(world, max_latency_s=None)), simulate(world)
    assert free.windows[-1].p95_s > 0.1
    assert bound.windows[-1].p95_s < 0.09


def test_a_latency_is_a_reason_and_one_that_no_split_keeps_to_is_no_reason_to_flap() -> None:
    late = World("late", SYNTHETIC, 15.0, always(5.0), link_mbit=always(30.0), live=True, source_fps=15.0, start=1,
                 max_latency_s=0.15, codecs=ALL_CODECS, duration_s=60.0)  # fmt: skip
    reasons = [decision.reason for _, decision in switches(simulate(late))]
    assert any(" 150 ms are allowed" in reason for reason in reasons)
    found = switches(simulate(replace(late, max_latency_s=0.001)))
    assert "which is quickest; no split keeps to 1 ms" in found[-1][1].reason
    assert len(found) <= 3


def test_no_more_items_are_inside_than_the_latency_allows() -> None:
    """At 50 items a second, nine of them take 180 ms, of 200 that are allowed; two may always be inside."""
    goal = Goal(("one", "two"), (False, False), (1,), 1, 1000.0)
    seen = Observation(
        now_s=1.0,
        interval_s=0.5,
        captured=25,
        finished=25,
        dropped=0,
        device=(TaskCost(25, 0.5, 25), TaskCost()),
        cloud=(TaskCost(), TaskCost(25, 0.025, 25)),
        payloads={(1, "none"): PayloadCost(25, 25_000, 0.0, 25, 0.0)},
    )
    allowed = {}
    for max_latency_s in (0.2, 0.001, None):
        policy = ModelPolicy(replace(goal, max_latency_s=max_latency_s))
        assert policy.most_inside() == math.inf
        policy.decide(seen)
        allowed[max_latency_s] = policy.most_inside()
    assert allowed == {0.2: pytest.approx(9.0), 0.001: 2.0, None: math.inf}


def test_a_link_too_slow_for_lossless_payloads_says_what_a_lossy_codec_would_give() -> None:
    slow = replace(HEAVY, link_mbit=always(4.0), slowdown=always(6.0))
    reasons = [decision.reason for _, decision in switches(simulate(slow))]
    assert "no split reaches 15 FPS" in reasons[-1]
    assert "--codec jpeg:90 (of images only, which it changes) would give up to" in reasons[-1]
    fast = replace(HEAVY, link_mbit=always(10_000.0), target_fps=1000.0)
    assert not [decision for _, decision in switches(simulate(fast)) if "jpeg" in decision.reason]


def test_reasons_are_words_with_the_task_and_the_numbers() -> None:
    second, decision = switches(simulate(HEAVY))[0]
    assert second < 3.0
    assert "moved to the cloud" in decision.reason
    assert "the device needs" in decision.reason
    assert "15 FPS allow 66.7" in decision.reason
    assert not decision.routine
    assert decision.predicted_fps == pytest.approx(15.0, rel=0.1)


def test_it_waits_while_the_cloud_is_away() -> None:
    world = replace(HEAVY, outages=((20.0, 40.0),), steady=False)
    assert [second for second, _ in simulate(world).decisions if 21.0 < second < 40.0] == []


def test_shares_always_add_up_and_name_allowed_splits() -> None:
    for _, decision in simulate(HEAVY, seed=3).decisions:
        assert sum(decision.shares.values()) == pytest.approx(1.0)
        assert set(decision.shares) <= set(TRAFFIC.splits)
        assert {route.split for route in decision.probes} <= set(TRAFFIC.splits)


@pytest.mark.parametrize("broken", [{"target_fps": 0.0}, {"splits": ()}, {"codecs": ()}, {"stateful": (False,)}])
def test_a_goal_that_cannot_work_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"target|needs"):
        replace(goal_of(HEAVY), **broken)  # type: ignore[arg-type]


def test_the_nearest_allowed_split_starts() -> None:
    goal = Goal(("a", "b", "c", "d"), (False,) * 4, (2, 3), 1, 10.0)
    assert ModelPolicy(goal).start().shares == {2: 1.0}


def arbitrary(random_: random.Random, now_s: float) -> Observation:
    """An observation that no world would give."""

    def count() -> int:
        return random_.choice([0, 0, 1, 2, 30])

    def seconds() -> float:
        return random_.choice([0.0, 0.0, 1e-6, 0.01, 0.4, 7.0])

    def task() -> TaskCost:
        items = count()
        return TaskCost(items, seconds() if items else 0.0, random_.randint(0, items), seconds())

    def payload() -> PayloadCost:
        items = count()
        return PayloadCost(items, items * random_.choice([1, 200, 400_000]), seconds(), count(), seconds(), seconds())

    acked = count()
    return Observation(
        now_s=now_s,
        interval_s=0.5,
        captured=count(),
        finished=count(),
        dropped=count(),
        device=tuple(task() for _ in range(4)),
        cloud=tuple(task() for _ in range(4)),
        payloads={key: payload() for key in [(1, "none"), (2, "none"), (3, "zstd")] if random_.random() < 0.5},
        acked_bytes=random_.choice([0, 100, 400_000]),
        link_busy_s=random_.choice([0.0, 0.5]),
        rtt_s=seconds() if acked else None,
        acked=acked,
        source_rate=random_.choice([None, 0.5, math.inf]),
        workers=random_.choice([0.0, 0.5, 4.0]),
        main_share=random_.choice([0.0, 1.0]),
        window=random_.choice([1, 16]),
        in_local_outage=random_.random() < 0.2,
        held_s=random_.choice([0.0, 0.5]),
        transfer_bytes=random_.choice([0, 400_000]),
        transfer_s=seconds(),
        late=count(),
        cores=random_.choice([1, 4]),
        cpu_s=random_.choice([None, 0.0, 0.01, 0.4]),
        delayed_s=random_.choice([None, 0.0, 0.4, 7.0]),
        threads=random_.choice([1.0, 3.5]),
    )


@pytest.mark.parametrize("target_fps", [0.001, 17.0, math.inf])
@pytest.mark.parametrize("max_latency_s", [None, 0.05])
def test_no_observation_breaks_it(target_fps: float, max_latency_s: float | None) -> None:
    codecs = ("none", "zstd")
    goal = Goal(("a", "b", "c", "d"), (False, True, False, False), (1, 2, 3), 3, target_fps, codecs, max_latency_s)
    for seed in range(20):
        random_, policy = random.Random(seed), ModelPolicy(goal)
        for i in range(1, 30):
            decision = policy.decide(arbitrary(random_, 0.5 * i))
            if decision is not None:
                assert sum(decision.shares.values()) == pytest.approx(1.0)
                assert set(decision.shares) <= {1, 2, 3}
                assert decision.codec in codecs
