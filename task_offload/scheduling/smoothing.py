"""Moving means of what items cost and of what the link carries. In: sums over intervals. Out: means, how sure they are.

A mean is a sum over a count, since under a CPU quota the outliers are the cost. It follows slow drifts, and forgets at
once what a significant step has made untrue.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

LINK_MEMORY_S, LINK_MEMORY_UNREST = 2.0, 20.0  # cellular links move within seconds; so does noise, hence the second
LINK_STEP, LINK_STEP_UNREST = 0.4, 3.0  # a difference above both, the second times the unrest, is believed at once
LINK_UNREST_PACE = 0.1
LINK_PEAK_MEMORY_S = 300.0
LINK_STALE_PER_S, LINK_UNREST_STALE_PER_S = 0.006, 0.2  # what certainty of the link is lost with each second
FIRST_SPREAD = 0.3  # relative standard deviation of one item's cost, until it is known
STEP_SIGMAS = 4.0  # this far from the mean twice in a row, or twice as far once, is a step and not noise
STEP_SHARE = 0.1  # and further from it than this, relative
STALE_S = 600.0  # age at which an estimate is worth nothing any more
KNOWN_ITEMS = 3  # a mean over no more of them tells nothing of others when it moves
ALIKE_FROM = 0.1  # of its time, tasks that take less tell less of it


class Mean:
    """A moving mean of something that each item costs. It notices steps."""

    __slots__ = ("_strikes", "count", "seen_s", "total", "value", "variance")

    def __init__(self) -> None:
        self.count = 0.0
        self.total = 0.0
        self.value = 0.0  # the mean
        self.variance = 0.0  # of one item
        self.seen_s = -math.inf
        self._strikes = 0

    def add(self, total: float, count: int, now_s: float, keep: float) -> bool:
        """Takes the sum over `count` items in; what was known before counts `keep` of what it did.

        Returns:
            Whether this was a step, and the past is forgotten.
        """
        self.seen_s = now_s
        mean = total / count
        if not self.count:
            self.count, self.total, self.value = float(count), total, mean
            self.variance = (FIRST_SPREAD * mean) ** 2
            return False
        value = self.value
        off = mean - value
        share = 1.0 / count + 1.0 / self.count  # of one item's variance, that of the difference of both means
        sigmas = 0.0
        if abs(off) > STEP_SHARE * value:  # smaller steps are left to the moving mean
            spread = math.sqrt(self.variance * share) + 0.01 * value
            sigmas = abs(off) / spread if spread else 0.0
        if sigmas > STEP_SIGMAS:
            self._strikes += 1
            if self._strikes > 1 or (sigmas > 2 * STEP_SIGMAS and count > 2):
                self.count, self.total, self.value, self._strikes = float(count), total, mean, 0
                return True
        else:
            self._strikes = 0
        learn = 1.0 - keep
        self.variance = keep * self.variance + learn * off * off / share
        self.count = keep * self.count + count
        self.total = keep * self.total + total
        self.value = self.total / self.count
        return False

    def doubt(self, count: float) -> None:
        """What was known before counts as so many items at most."""
        if self.count > count:
            self.total *= count / self.count
            self.count = count
            self.value = self.total / count

    def scale(self, factor: float) -> None:
        """Moves the mean, when everything like it moved by this factor."""
        if self.count:
            self.total *= factor
            self.value = self.total / self.count
            self.variance *= factor * factor

    def spread(self, now_s: float) -> float:
        """Relative uncertainty of the mean: that of its samples, and of its age. 1 is none at all."""
        if not self.count:
            return 1.0
        if self.value <= 0:
            return 0.0
        return min(1.0, math.sqrt(self.variance / self.count) / self.value + (now_s - self.seen_s) / STALE_S)


class Link:
    """The link's goodput, in bytes a second, and how much it moves from one interval to the next.

    A steady link that steps is believed at once; of one that always moves, the mean over some time counts.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self.unrest = 0.0  # mean relative step from one interval to the next
        self._last = 0.0
        self._bytes = self._busy_s = 0.0
        self._seen_s = -math.inf
        self._peak = 0.0  # highest rate of the last minutes

    def add(self, size_bytes: float, busy_s: float, interval_s: float, now_s: float) -> None:
        """Takes in what crossed the link within `busy_s` of an interval."""
        rate = size_bytes / busy_s
        self._peak = max(rate, self._peak * math.exp(-interval_s / LINK_PEAK_MEMORY_S))
        self._seen_s = now_s
        if self.rate:
            self.unrest += LINK_UNREST_PACE * (min(abs(math.log(rate / self._last)), 1.0) - self.unrest)
            if abs(math.log(rate / self.rate)) > max(LINK_STEP, LINK_STEP_UNREST * self.unrest):
                self._bytes = self._busy_s = 0.0
        keep = math.exp(-interval_s / (LINK_MEMORY_S * (1.0 + LINK_MEMORY_UNREST * self.unrest)))
        self._bytes = keep * self._bytes + size_bytes
        self._busy_s = keep * self._busy_s + busy_s
        self.rate = self._bytes / self._busy_s
        self._last = rate

    def at_least(self, rate: float) -> None:
        """So many bytes a second came, though nothing waited. How fast the link is remains as unsure as it was."""
        if 0.0 < self.rate < rate:
            self.rate, self._busy_s = rate, self._bytes / rate

    def spread(self, now_s: float) -> float:
        """Relative uncertainty: a link that moves is known for some seconds only."""
        if not self.rate:
            return 0.0  # no payload was large enough to measure it, so none was slow
        return min(1.0, (now_s - self._seen_s) * (LINK_STALE_PER_S + LINK_UNREST_STALE_PER_S * self.unrest))

    @property
    def hope(self) -> float:
        """How many times faster than the estimate the link was within the last minutes."""
        return max(1.0, self._peak / self.rate) if self.rate else 1.0

    @property
    def bytes_per_s(self) -> float:
        """The estimate; infinite while nothing told."""
        return self.rate or math.inf


class Drift:
    """Takes one interval into the means of one side. What did not run there just now moves with what did.

    Attributes:
        stepped: whether any of them forgot its past.
    """

    def __init__(self, now_s: float, keep: float) -> None:
        """Arguments as for `Mean.add`."""
        self._now_s, self._keep = now_s, keep
        self._moved: list[tuple[float, float]] = []  # by which factor, and after how many busy seconds
        self._moved_s = self._busy_s = 0.0  # what one item of each of these takes now, and all those seconds
        self._rested: list[Mean] = []
        self.stepped = False

    def add(self, mean: Mean, total: float, items: int) -> None:
        """Takes in a sum over so many items, of something that tells nothing of others."""
        self.stepped |= mean.add(total, items, self._now_s, self._keep)

    def follow(self, mean: Mean, busy_s: float, items: int) -> None:
        """Takes in how long this side was busy with something, for so many items."""
        if not items:
            self._rested.append(mean)
            return
        before = mean.value
        self.stepped |= mean.add(busy_s, items, self._now_s, self._keep)
        if before > 0 and mean.count > KNOWN_ITEMS:
            self._moved.append((mean.value / before, busy_s))
            self._moved_s += mean.value
            self._busy_s += busy_s

    def rest(self, means: Iterable[Mean]) -> None:
        """These did not run."""
        self._rested += means

    def settle(self) -> None:
        """Moves what did not run.

        By the median of what did, weighted by busy time, so that one task whose input changed does not move the others.
        Short tasks tell little of a longer one: they are short or long by what else runs, and by what the caches hold.
        """
        half_s = 0.5 * self._busy_s
        for factor, busy_s in sorted(self._moved):
            half_s -= busy_s
            if half_s <= 0:
                for mean in self._rested:
                    told_s = ALIKE_FROM * mean.value
                    mean.scale(factor if told_s <= self._moved_s else factor ** (self._moved_s / told_s))
                return
