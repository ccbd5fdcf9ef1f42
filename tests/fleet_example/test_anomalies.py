"""Baseline and judgement, by injected figures."""

import math
import random

import pytest

from fleet_example.anomalies import FORGETTING, SMALLEST_DEVIATION, Baseline, judge, learn, score


def learned(loads: list[float]) -> Baseline:
    baseline: Baseline = {}
    for load in loads:
        baseline = learn({"load_percent": load}, baseline)
    return baseline


def test_mean_and_variance_of_noise_are_found() -> None:
    noise = random.Random(1)
    mean, variance = learned([noise.gauss(50, 12) for _ in range(4000)])["load_percent"]
    assert mean == pytest.approx(50, abs=8)
    assert math.sqrt(variance) == pytest.approx(12, abs=5)


def test_weights_follow_the_formula() -> None:
    baseline = learn({"load_percent": 12.0}, {"load_percent": (10.0, 4.0)})
    assert baseline["load_percent"] == pytest.approx((10.1, (1 - FORGETTING) * (4.0 + 2.0 * 0.1)))


def test_an_outlier_is_unusual_and_does_not_become_usual() -> None:
    baseline = learned([20.0] * 50)
    assert judge({"load_percent": 95.0}, score({"load_percent": 95.0}, baseline)) == [
        {"figure": "load_percent", "value": 95.0, "why": "unusual"}
    ]
    baseline = learn({"load_percent": 95.0}, baseline)
    assert baseline["load_percent"][0] < 23.0
    assert judge({"load_percent": 95.0}, score({"load_percent": 95.0}, baseline)) != []


def test_a_lasting_change_becomes_usual() -> None:
    baseline = learned([20.0] * 50 + [80.0] * 50)
    assert judge({"load_percent": 80.0}, score({"load_percent": 80.0}, baseline)) == []


def test_a_quiet_device_may_stir_a_little() -> None:
    baseline = learned([1.0] * 100)
    stirred = 1.0 + SMALLEST_DEVIATION["load_percent"] * 3.9
    assert judge({"load_percent": stirred}, score({"load_percent": stirred}, baseline)) == []


def test_too_high_is_an_anomaly_however_usual() -> None:
    assert judge({"temperature_c": 84.0, "memory_percent": 40.0}, {}) == [
        {"figure": "temperature_c", "value": 84.0, "why": "too high"}
    ]


def test_what_nobody_knows_is_neither_scored_nor_learned() -> None:
    assert learn({"temperature_c": None}, {}) == {}
    assert score({"temperature_c": None}, {"temperature_c": (40.0, 1.0)}) == {}
    assert judge({"temperature_c": None}, {}) == []
