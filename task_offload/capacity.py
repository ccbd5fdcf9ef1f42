"""When the cloud is full. In: how many wait for each of its parts, and how many did. Out: whether to let more in.

By Little's law what waits for a part of the cloud waits, on average, as long as that takes at the rate at which the
part takes it up. That holds whatever is short: workers, the main thread, the disk that records. What is being worked
on does not wait, however long it takes, and what waits only for an earlier item of its own device does not count: more
of the cloud would make neither shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WAIT_S = 2.0  # of an item in the cloud: longer, and one more device would make it worse for all
PATIENCE_S = 2.0  # how long that lasts before it counts; a device's backlog after an outage does not
SMOOTHING_S = 1.0


class Queue(NamedTuple):
    """What waits for one part of the cloud.

    Attributes:
        waiting: how many there are now.
        taken: how many do not wait any more, of all that ever did.
    """

    waiting: int
    taken: int


class Capacity:
    """Whether devices can be let in. Told from time to time what waits in the cloud, for each of its parts.

    Attributes:
        wait_s: how long an item waits in all of the queues, one after the other, as it looks now.
        full: new devices should come back later.
    """

    def __init__(self, now_s: float) -> None:
        self.wait_s = 0.0
        self.full = False
        self._at_s = now_s
        self._taken_up: dict[int, tuple[int, float]] = {}  # of each queue: how many in all, and how many a second
        self._changing_since_s: float | None = None

    def measure(self, now_s: float, queues: Sequence[Queue]) -> None:
        """Notes what waits now. The queues are the same, in the same order, at each call."""
        passed_s = max(1e-3, now_s - self._at_s)
        newest = min(1.0, passed_s / SMOOTHING_S)
        self.wait_s = 0.0
        for number, (waiting, taken) in enumerate(queues):
            before, rate = self._taken_up.get(number, (0, 0.0))
            rate += newest * ((taken - before) / passed_s - rate)
            self._taken_up[number] = taken, rate
            self.wait_s += waiting / max(rate, 1e-3)
        self._at_s = now_s
        changed = self.wait_s < WAIT_S / 2 if self.full else self.wait_s > WAIT_S
        if not changed:
            self._changing_since_s = None
        elif self._changing_since_s is None:
            self._changing_since_s = now_s
        elif now_s - self._changing_since_s >= PATIENCE_S:
            self.full = not self.full
            self._changing_since_s = None
