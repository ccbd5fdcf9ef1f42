"""What is usual on a device, and what is not. In: figures. Out: how far each is from usual, and the anomalies.

Every number here is in the unit that the figure's name ends in.
"""

from __future__ import annotations

import math
from typing import Any

Figures = dict[str, float | None]
Baseline = dict[str, tuple[float, float]]  # figure -> (mean, variance)

FORGETTING = 0.05  # weight of the newest reading: the baseline follows the last 20 readings or so
SHORTEST_BASELINE = 10  # readings before anything can be unusual
UNUSUAL_SCORE = 4.0  # standard deviations
# A quiet device varies so little that nothing would be usual. No standard deviation counts as less than this.
SMALLEST_DEVIATION = {
    "load_percent": 8.0,
    "temperature_c": 2.0,
    "memory_percent": 3.0,
    "disk_used_percent": 1.0,
    "sent_bytes_s": 200_000.0,
    "received_bytes_s": 200_000.0,
    "disk_bytes_s": 2_000_000.0,
}
# Too much, however usual. A Raspberry Pi slows itself down from 80 degrees on.
HIGHEST_ALLOWED = {"temperature_c": 80.0, "memory_percent": 95.0, "disk_used_percent": 95.0}


def score(figures: Figures, baseline: Baseline) -> dict[str, float]:
    """How many standard deviations each figure is away from its mean, upwards positive."""
    return {
        name: (value - baseline[name][0]) / _deviation(name, baseline[name][1])
        for name, value in figures.items()
        if value is not None and name in baseline
    }


def learn(figures: Figures, baseline: Baseline) -> Baseline:
    """The baseline with one reading more: mean and variance, exponentially weighted.

    A reading moves the baseline as if it were at most `UNUSUAL_SCORE` away, so that an outlier is not usual the
    next moment, while a lasting change becomes usual in the end. Formulas: T. Finch, "Incremental calculation of
    weighted mean and variance" (2009), section 9.
    """
    learned = dict(baseline)
    for name, value in figures.items():
        if value is None:
            continue
        mean, variance = baseline.get(name, (value, 0.0))
        reach = UNUSUAL_SCORE * _deviation(name, variance)
        difference = min(max(value - mean, -reach), reach)
        step = FORGETTING * difference
        learned[name] = (mean + step, (1 - FORGETTING) * (variance + difference * step))
    return learned


def judge(figures: Figures, scores: dict[str, float]) -> list[dict[str, Any]]:
    """The anomalies among the figures, as plain data: `figure`, `value`, and `why`, "unusual" or "too high"."""
    anomalies: list[dict[str, Any]] = []
    for name, value in figures.items():
        if value is None:
            continue
        if value >= HIGHEST_ALLOWED.get(name, math.inf):
            anomalies.append({"figure": name, "value": value, "why": "too high"})
        elif abs(scores.get(name, 0.0)) >= UNUSUAL_SCORE:
            anomalies.append({"figure": name, "value": value, "why": "unusual"})
    return anomalies


def _deviation(name: str, variance: float) -> float:
    return max(math.sqrt(variance), SMALLEST_DEVIATION[name])
