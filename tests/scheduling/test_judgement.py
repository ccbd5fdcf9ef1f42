import math
from collections.abc import Iterable
from dataclasses import replace

import pytest

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice
from task_offload.scheduling.estimates import Estimates
from task_offload.scheduling.judgement import LEAST_MARGIN, Judgement
from task_offload.scheduling.observation import Observation, PayloadCost, TaskCost

INTERVAL_S = 0.5
FPS = 20.0  # of a device that needs 50 ms for an item


def interval(number: int, finished: int, late: int = 0, backlog: int = 1000, held: bool = True) -> Observation:
    return Observation(
        now_s=INTERVAL_S * number,
        interval_s=INTERVAL_S,
        captured=10,
        finished=finished,
        dropped=0,
        device=(TaskCost(10, 0.2, 10), TaskCost(10, 0.28, 10), TaskCost()),
        cloud=(TaskCost(), TaskCost(), TaskCost(10, 0.01, 10)),
        payloads={(2, "none"): PayloadCost(10, 10_000, 0.02, 10, 0.01)},
        source_rate=math.inf,
        held_s=INTERVAL_S if held else 0.0,
        window=16,
        backlog=backlog,
        late=late,
    )


class Judged:
    """A judgement that is fed with numbers of finished items, one for each interval."""

    def __init__(self) -> None:
        self.estimates = Estimates((1, 2), (False,) * 3, ("none",))
        self.judgement = Judgement(self.estimates)
        self.number = 0

    def choice(self) -> Choice:
        return cost_model.single(cost_model.options(self.estimates.costs([(2, "none")]))[0])

    def see(self, finished: Iterable[int], late: int = 0, backlog: int = 1000, held: bool = True) -> list[float | None]:
        found = []
        for count in finished:
            self.number += 1
            observation = interval(self.number, count, late, backlog, held)
            self.estimates.add(observation)
            found.append(self.judgement.add(observation, self.choice(), FPS, FPS))
        return found

    def able_fps(self, fps: float | None, demand_fps: float, seconds: float) -> float:
        return self.judgement.believe(fps, self.choice(), demand_fps, seconds)


def test_throughput_is_judged_over_some_seconds() -> None:
    found = Judged().see([8, 12] * 6)
    assert found[:5] == [None] * 5
    assert found[6:] == pytest.approx([20.0] * 6)


def test_after_a_switch_the_items_before_it_do_not_count() -> None:
    judged = Judged()
    judged.see([10] * 12)
    judged.judgement.switched(backlog=30)
    assert judged.see([10] * 9)[-2:] == [None, pytest.approx(20.0)]


def test_what_was_kept_over_an_outage_says_nothing_of_the_prediction() -> None:
    judged = Judged()
    judged.see([10] * 12)
    margin, capacity_fps = judged.judgement.margin, judged.choice().capacity_fps
    judged.judgement.interrupted(backlog=600)
    assert judged.see([300, 300, *[10] * 5]) == [None] * 7
    assert judged.judgement.margin == margin
    assert judged.choice().capacity_fps == pytest.approx(capacity_fps)


def test_what_an_outage_dropped_is_not_waited_for() -> None:
    judged = Judged()
    judged.judgement.interrupted(backlog=600)
    assert judged.see([10] * 12, backlog=8)[-1] == pytest.approx(20.0)


def test_no_throughput_at_all_does_not_make_tasks_free() -> None:
    judged = Judged()
    judged.see([10] * 12)
    judged.estimates.add(replace(interval(13, 0), device=(TaskCost(10, 0.23, 10), TaskCost(10, 0.32, 10), TaskCost())))
    judged.able_fps(0.0, FPS, 1.0)
    assert judged.choice().capacity_fps < 1.2 * FPS


def test_a_source_that_gives_less_leaves_nothing_lacking() -> None:
    assert Judged().see([3] * 8, held=False)[-1] == FPS


def test_the_margin_follows_the_noise() -> None:
    quiet, noisy = Judged(), Judged()
    quiet.see([10] * 100)
    noisy.see(([14] * 6 + [6] * 6) * 16)
    assert quiet.judgement.margin == pytest.approx(LEAST_MARGIN, abs=0.002)
    assert noisy.judgement.margin > 5 * LEAST_MARGIN


def test_a_prediction_that_does_not_come_true_is_corrected() -> None:
    judged = Judged()
    judged.see([10])
    assert judged.choice().capacity_fps == pytest.approx(FPS)
    judged.see([8] * 60)
    assert judged.choice().capacity_fps == pytest.approx(0.8 * FPS, rel=0.05)


def test_what_was_seen_is_possible_whatever_was_predicted() -> None:
    judged = Judged()
    judged.see([10])
    assert judged.able_fps(None, 25.0, 0.5) == pytest.approx(FPS)
    assert judged.able_fps(23.0, 25.0, 0.5) == 23.0
    assert judged.able_fps(15.0, 25.0, 0.5) == pytest.approx(FPS)


def test_items_that_come_late_make_latencies_longer() -> None:
    judged = Judged()
    judged.see([10])
    choice = cost_model.single(judged.choice().first._replace(latency_s=0.1))
    assert judged.judgement.latency_s(choice) == pytest.approx(0.1)
    judged.see([10] * 40, late=5)
    assert judged.judgement.latency_s(choice) > 0.15


def test_what_comes_late_after_an_outage_says_nothing_of_latencies() -> None:
    judged = Judged()
    judged.see([10])
    choice = judged.choice()
    judged.judgement.interrupted(400)
    judged.see([10] * 40, late=10)
    assert judged.judgement.latency_s(choice) == pytest.approx(choice.latency_s)
