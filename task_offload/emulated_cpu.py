"""A weaker processor than the real one. In: work. Out: the same work, on one core that is some times slower."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class EmulatedCpu:
    """One core, `factor` times slower than this one: stretched work takes its turn on it, and never overlaps.

    Arguments:
        clock, cpu_clock, sleep: time, the CPU time of the calling thread, and how to wait; tests pass their own.
    """

    def __init__(
        self,
        factor: float,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.factor = factor
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = 0.0

    @contextmanager
    def work(self) -> Iterator[None]:
        """Stretches the CPU time of what is done inside; waiting, for a sensor say, leaves the core to others."""
        cpu_s = self._cpu_clock()
        yield
        cpu_s = self._cpu_clock() - cpu_s
        with self._lock:
            now = self._clock()
            self._free_at = max(now - cpu_s, self._free_at) + cpu_s * self.factor
            left_s = self._free_at - now
        if left_s > 0:
            self._sleep(left_s)
