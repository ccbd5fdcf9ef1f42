import itertools
from collections.abc import Callable

import pytest

from task_offload.scheduling.observation import Observation
from task_offload.scheduling.simulation.step_policy import StepPolicy


def observation(fps: float, away: bool = False) -> Observation:
    return Observation(0.0, 10.0, 0, round(10 * fps), 0, (), (), in_local_outage=away)


def drive(policy: StepPolicy, fps_of: Callable[[int], float], intervals: int) -> list[int]:
    """Feeds a world in which split N gives fps_of(N); returns the split of each interval."""
    (at,) = policy.start().shares
    splits = []
    for _ in range(intervals):
        decision = policy.decide(observation(fps_of(at)))
        if decision is not None:
            (at,) = decision.shares
            assert decision.reason
        splits.append(at)
    return splits


def switches(splits: list[int]) -> int:
    return sum(a != b for a, b in itertools.pairwise(splits))


def test_it_offloads_until_the_target_is_met() -> None:
    splits = drive(StepPolicy(range(1, 7), 6, 17), lambda n: 8 + 3 * (6 - n), 60)
    assert splits[20] in (2, 3)
    assert splits[-1] == 3  # 17 FPS, and the fewest tasks in the cloud


def test_it_takes_back_what_is_not_needed() -> None:
    assert drive(StepPolicy(range(1, 7), 1, 10), lambda _: 30, 80)[-1] == 6


def test_it_turns_around_where_the_cloud_makes_it_worse() -> None:
    splits = drive(StepPolicy(range(1, 7), 6, 17), lambda n: {1: 5.6, 2: 2.8, 3: 4.2}.get(n, 5.7), 400)
    assert splits[-1] >= 4  # the forerunner stayed at 1
    assert switches(splits[200:]) < 15


def test_it_does_not_flap_in_a_steady_world() -> None:
    splits = drive(StepPolicy(range(1, 7), 4, 17), lambda n: 20 if n <= 3 else 12, 600)
    assert splits[-1] == 3
    assert switches(splits[300:]) <= 4


def test_it_waits_while_the_cloud_is_away() -> None:
    policy = StepPolicy([1, 2, 3], 2, 10)
    assert [policy.decide(observation(0, away=True)) for _ in range(10)] == [None] * 10


@pytest.mark.parametrize(("start", "taken"), [(9, 6), (1, 4), (5, 5)])
def test_a_start_that_pins_forbid_becomes_the_nearest(start: int, taken: int) -> None:
    assert StepPolicy([4, 5, 6], start, 10).start().shares == {taken: 1.0}


def test_a_single_allowed_split_is_kept() -> None:
    assert drive(StepPolicy([2], 2, 10), lambda _: 1, 20) == [2] * 20
