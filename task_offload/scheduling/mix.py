"""Turns shares into a split for each item. In: a decision. Out: the split of the next item, evenly interleaved.

Error diffusion: every split saves up its share with each item, and the one that has saved most is taken. So over
any run of items each split is within one item of its share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

PROBE_SPACING = 4  # at most every fourth item is a probe, so that probes alone cannot stall a stage's queue


class Mixer:
    """Says the split of the next item. One thread may set it while another asks."""

    def __init__(self, shares: Mapping[int, float]) -> None:
        """Arguments as for `set_shares`."""
        self._probes: deque[int] = deque()
        self._since_probe = PROBE_SPACING
        self._plan = _plan(shares)

    def set_shares(self, shares: Mapping[int, float]) -> None:
        """Takes new shares from the next item on.

        Arguments:
            shares: share of the items for each split; at least one is above 0. They are scaled to add up to 1.

        Raises:
            ValueError: no share is above 0.
        """
        self._plan = _plan(shares)

    def queue_probes(self, splits: Iterable[int]) -> None:
        """One item each takes these splits, before the shares count again, spaced by `PROBE_SPACING` items."""
        self._probes.extend(splits)

    def clear_probes(self) -> None:
        """Forgets the probes that no item has taken yet."""
        self._probes.clear()

    @property
    def probes_waiting(self) -> int:
        """How many probes no item has taken yet."""
        return len(self._probes)

    def next_split(self) -> int:
        """The split of the next item."""
        if self._probes:
            if self._since_probe >= PROBE_SPACING - 1:
                self._since_probe = 0
                try:
                    return self._probes.popleft()
                except IndexError:  # cleared by the other thread since
                    pass
            else:
                self._since_probe += 1
        splits, shares, saved = self._plan
        if len(splits) == 1:
            return splits[0]
        best = 0
        for i, share in enumerate(shares):
            saved[i] += share
            if saved[i] > saved[best]:
                best = i
        saved[best] -= 1.0
        return splits[best]


def _plan(shares: Mapping[int, float]) -> tuple[tuple[int, ...], tuple[float, ...], list[float]]:
    positive = {split: share for split, share in sorted(shares.items()) if share > 0}
    total = sum(positive.values())
    if not positive:
        raise ValueError(f"no split has a share above 0: {dict(shares)}")
    return tuple(positive), tuple(share / total for share in positive.values()), [0.0] * len(positive)
