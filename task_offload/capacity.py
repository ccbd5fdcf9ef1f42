"""When the cloud is full. In: how many items are unfinished and how many were finished. Out: whether to let more in.

By Little's law an item takes, on average, as long as the unfinished ones take at the rate at which items are finished.
That holds whatever is short: workers, the main thread, the disk that records.
"""

from __future__ import annotations

WAIT_S = 2.0  # of an item in the cloud: longer, and one more device would make it worse for all
PATIENCE_S = 2.0  # how long that lasts before it counts; a device's backlog after an outage does not
SMOOTHING_S = 1.0


class Capacity:
    """Whether devices can be let in. Told from time to time what the cloud has and what it has done.

    Attributes:
        wait_s: how long an item takes from its arrival until it is recorded, as it looks now.
        full: new devices should come back later.
    """

    def __init__(self, now_s: float) -> None:
        self.wait_s = 0.0
        self.full = False
        self._at_s = now_s
        self._finished = 0
        self._rate = 0.0
        self._changing_since_s: float | None = None

    def measure(self, now_s: float, unfinished: int, finished: int) -> None:
        """Notes how many items are unfinished now, and how many were finished in all."""
        passed_s = max(1e-3, now_s - self._at_s)
        newest = min(1.0, passed_s / SMOOTHING_S)
        self._rate += newest * ((finished - self._finished) / passed_s - self._rate)
        self._at_s, self._finished = now_s, finished
        self.wait_s = unfinished / max(self._rate, 1e-3) if unfinished else 0.0
        changed = self.wait_s < WAIT_S / 2 if self.full else self.wait_s > WAIT_S
        if not changed:
            self._changing_since_s = None
        elif self._changing_since_s is None:
            self._changing_since_s = now_s
        elif now_s - self._changing_since_s >= PATIENCE_S:
            self.full = not self.full
            self._changing_since_s = None
