"""How long items took. In: latencies. Out: percentiles, from a histogram that never grows."""

from __future__ import annotations

import math

_STEPS = 32  # buckets a doubling: a percentile is right within 2.2 %
_LEAST_S = 1e-5
_BUCKETS = 32 * _STEPS  # up to 12 hours


class LatencyHistogram:
    """Counts latencies in buckets of equal ratio, as HdrHistogram does."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0

    def add(self, seconds: float, items: int = 1) -> None:
        bucket = int(math.log2(max(seconds, _LEAST_S) / _LEAST_S) * _STEPS)
        self._counts[min(bucket, _BUCKETS - 1)] += items
        self.count += items

    def percentile(self, percent: float) -> float | None:
        """Seconds that `percent` of the items took at most; None without items."""
        if not self.count:
            return None
        rank = self.count * percent / 100
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return float(_LEAST_S * 2 ** ((bucket + 0.5) / _STEPS))
        raise AssertionError("the buckets hold every item")
