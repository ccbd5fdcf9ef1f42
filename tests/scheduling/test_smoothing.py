import math
import random

import pytest

from task_offload.scheduling.estimates import MEMORY_S
from task_offload.scheduling.smoothing import Link, Mean

KEEP = math.exp(-0.5 / MEMORY_S)


def test_a_mean_is_sum_over_count_so_that_outliers_count() -> None:
    mean = Mean()
    for i in range(40):
        stall = 0.1 if i % 10 == 0 else 0.0
        mean.add(0.01 + stall, 10, i * 0.5, 1.0)
    assert mean.value == pytest.approx(0.002)


def test_noise_is_no_step_and_a_step_is_followed_within_two_intervals() -> None:
    random_ = random.Random(1)
    mean = Mean()
    stepped = [mean.add(sum(random_.gauss(1.0, 0.2) for _ in range(9)), 9, i * 0.5, KEEP) for i in range(200)]
    assert not any(stepped)
    assert mean.value == pytest.approx(1.0, abs=0.03)
    for i in range(200, 202):
        mean.add(sum(random_.gauss(2.0, 0.4) for _ in range(9)), 9, i * 0.5, KEEP)
    assert mean.value == pytest.approx(2.0, rel=0.15)


def test_uncertainty_falls_with_items_and_grows_with_age() -> None:
    mean = Mean()
    mean.add(1.0, 1, 0.0, KEEP)
    first = mean.spread(0.0)
    for i in range(50):
        mean.add(10.0, 10, i * 0.5, KEEP)
    assert mean.spread(25.0) < first / 5
    assert mean.spread(25.0 + 300.0) > first


def test_a_steady_link_that_falls_is_believed_at_once_and_a_restless_one_is_averaged() -> None:
    steady, restless = Link(), Link()
    for i in range(40):
        steady.add(500_000, 0.5, 0.5, i * 0.5)
        restless.add(500_000 * (1.6 if i % 2 else 0.4), 0.5, 0.5, i * 0.5)
    steady.add(100_000, 0.5, 0.5, 20.0)
    assert steady.bytes_per_s == pytest.approx(200_000)
    assert restless.bytes_per_s == pytest.approx(1_000_000, rel=0.1)
    assert restless.unrest > 0.5
    assert restless.spread(30.0) > steady.spread(30.0)
