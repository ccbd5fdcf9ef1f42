"""How much is logged about each of many peers. In: a peer that gives cause for a line. Out: whether to write it.

A peer that comes and goes as fast as it can must not fill a disk with lines about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

PERIOD_S: Final = 60.0
MOST_PEERS: Final = 1000  # about others than these nothing is written until the period is over


class LineBudget:
    """Counts the lines about each peer. One thread has it.

    Arguments:
        lines: about one peer in a minute.
        clock: gives seconds.
    """

    def __init__(self, lines: int, clock: Callable[[], float]) -> None:
        self._lines = lines
        self._clock = clock
        self._since = clock()
        self._written: Counter[str] = Counter()

    def take(self, peer: str) -> str | None:
        """What stands at the end of a line about this peer: mostly nothing. None if there must be no line."""
        now = self._clock()
        if now - self._since > PERIOD_S:
            self._written.clear()
            self._since = now
        if peer not in self._written and len(self._written) >= MOST_PEERS:
            return None
        self._written[peer] += 1
        if self._written[peer] > self._lines:
            return None
        return "" if self._written[peer] < self._lines else " (more like this is only counted for a minute)"
