"""A device's own load. In: the time. Out: CPU, memory and temperature, as `psutil` tells them, and waits for a core."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from task_offload.wire.messages import Load


class LoadMeter:
    """Measures the load since the call before."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()
        psutil.cpu_percent()

    def measure(self) -> Load:
        with self._process.oneshot():
            process_cpu = self._process.cpu_percent() / 100
            resident_bytes = self._process.memory_info().rss
        return Load(
            process_cpu,
            psutil.cpu_percent() / 100,
            psutil.virtual_memory().percent / 100,
            _temperature_c(),
            resident_bytes,
        )


def _temperature_c() -> float:
    """The hottest sensor of the processor, or of the machine; NaN where there is none."""
    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    for name in ("cpu_thermal", "coretemp", "k10temp"):
        if name in sensors:
            return float(max(each.current for each in sensors[name]))
    return float(max((each.current for group in sensors.values() for each in group), default=math.nan))


class Delays(NamedTuple):
    """How this process's threads met for a core.

    Attributes:
        seconds: how long they could have run and waited for a core, all of them together.
        threads: how many of them the work is spread over: the inverse of Herfindahl's index, (sum of w)^2 by the sum
            of w^2, of the time w that each of them wanted to run. 1 if none did.
    """

    seconds: float
    threads: float


class DelayMeter:
    """How long this process's threads could have run and waited for a core, which others had, or a quota was used up.

    Linux counts it for each thread, in `/proc/self/task/*/schedstat`
    (https://docs.kernel.org/scheduler/sched-stats.html): nanoseconds on a core, nanoseconds waiting for one, and turns.
    """

    def __init__(self, tasks: Path = Path("/proc/self/task")) -> None:
        self._tasks = tasks
        self._seen_ns: dict[str, tuple[int, int]] = {}
        self.measure()

    def measure(self) -> Delays | None:
        """Since the call before, of all threads that still run; None where the system does not count them."""
        found_ns: dict[str, tuple[int, int]] = {}
        with suppress(OSError), os.scandir(self._tasks) as threads:
            for thread in threads:
                with suppress(OSError, ValueError):  # a thread that has ended meanwhile
                    ran_ns, waited_ns, _ = map(int, _read(f"{thread.path}/schedstat").split())
                    found_ns[thread.name] = ran_ns, waited_ns
        seen_ns, self._seen_ns = self._seen_ns, found_ns
        if not any(ran_ns for ran_ns, _ in found_ns.values()):
            return None
        waited = wanted = squares = 0.0
        for name, (ran_ns, waited_ns) in found_ns.items():
            ran_before_ns, waited_before_ns = seen_ns.get(name, (0, 0))
            own = max(0, waited_ns - waited_before_ns)
            waited += own
            own += max(0, ran_ns - ran_before_ns)
            wanted += own
            squares += own * own
        return Delays(waited / 1e9, wanted * wanted / squares if squares else 1.0)


def _read(name: str) -> bytes:
    """A short file, in a sixth of the time that a `Path` takes: a few of them twice a second are felt on a weak device.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(name, os.O_RDONLY)
    try:
        return os.read(descriptor, 128)
    finally:
        os.close(descriptor)
