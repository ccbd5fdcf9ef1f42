"""A weaker processor than the real one. In: work. Out: the same work, on one core that is some times slower."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class EmulatedCpu:
    """One core, `factor` times slower than this one: stretched work holds one lock, so it never overlaps."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._core = threading.Lock()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Stretches the CPU time of what is done inside; waiting, for a sensor say, is not stretched."""
        with self._core:
            started, cpu = time.perf_counter(), time.thread_time()
            yield
            cpu = time.thread_time() - cpu
            left_s = cpu * self.factor - (time.perf_counter() - started)
            if left_s > 0:
                time.sleep(left_s)
