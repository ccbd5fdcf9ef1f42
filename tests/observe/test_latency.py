"""Percentiles of a histogram that never grows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_offload.observe.latency import LatencyHistogram


def test_without_items_there_is_none() -> None:
    assert LatencyHistogram().percentile(50) is None


@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=200), st.sampled_from([50, 95, 99]))
def test_percentiles_are_right_within_a_bucket(seconds: list[float], percent: int) -> None:
    histogram = LatencyHistogram()
    for each in seconds:
        histogram.add(each)
    exact = float(np.percentile(seconds, percent, method="inverted_cdf"))
    found = histogram.percentile(percent)
    assert found is not None
    assert found == pytest.approx(exact, rel=0.023)


def test_many_at_once_and_extremes() -> None:
    histogram = LatencyHistogram()
    histogram.add(0.5, 98)
    histogram.add(0.0)
    histogram.add(1e9)
    assert histogram.count == 100
    assert histogram.percentile(50) == pytest.approx(0.5, rel=0.023)
    assert histogram.percentile(0.5) == pytest.approx(1e-5, rel=0.023)
    assert histogram.percentile(100) > 40_000
