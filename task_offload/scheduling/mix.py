"""Turns shares into a route for each item. In: a decision. Out: the route of the next item, evenly interleaved.

Error diffusion: every split saves up its share with each item, and the one that has saved most is taken. So over
any run of items each split is within one item of its share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from task_offload.scheduling.observation import Decision, Route

PROBE_SPACING = 4  # at most every fourth item is a probe, so that probes alone cannot stall a stage's queue


class Mixer:
    """Says the route of the next item. One thread may `follow` decisions while another asks for routes."""

    def __init__(self, decision: Decision) -> None:
        """Arguments as for `follow`."""
        self._probes: deque[Route] = deque()
        self._since_probe = PROBE_SPACING
        self._codec: str | None = None
        self.follow(decision)

    def follow(self, decision: Decision) -> None:
        """Carries out a decision from the next item on.

        Its probes queue behind those that no item has taken yet, unless the same are among these.

        Raises:
            ValueError: no split of the decision has a share above 0.
        """
        self._codec = decision.codec or self._codec
        self._plan = _plan(decision.shares, self._codec)
        queued = set(self._probes)
        self._probes.extend(probe for probe in decision.probes if probe not in queued)

    def next_route(self) -> Route:
        """The route of the next item. Probes come first, spaced by `PROBE_SPACING` items."""
        self._since_probe += 1
        if self._probes and self._since_probe >= PROBE_SPACING:
            self._since_probe = 0
            return self._probes.popleft()
        routes, shares, saved = self._plan
        if len(routes) == 1:
            return routes[0]
        best = 0
        for i, share in enumerate(shares):
            saved[i] += share
            if saved[i] > saved[best]:
                best = i
        saved[best] -= 1.0
        return routes[best]


def _plan(shares: Mapping[int, float], codec: str | None) -> tuple[tuple[Route, ...], tuple[float, ...], list[float]]:
    positive = {split: share for split, share in sorted(shares.items()) if share > 0}
    total = sum(positive.values())
    if not positive:
        raise ValueError(f"no split has a share above 0: {dict(shares)}")
    routes = tuple(Route(split, codec) for split in positive)
    return routes, tuple(share / total for share in positive.values()), [0.0] * len(positive)
