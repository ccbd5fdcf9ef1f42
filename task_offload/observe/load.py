"""A device's own load. In: the time. Out: CPU, memory and temperature, as `psutil` tells them, and waits for a core."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

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


class DelayMeter:
    """How long this process's threads could have run and waited for a core, which others had, or a quota was used up.

    Linux counts it for each thread, in `/proc/self/task/*/schedstat`
    (https://docs.kernel.org/scheduler/sched-stats.html): nanoseconds on a core, nanoseconds waiting for one, and turns.
    """

    def __init__(self, tasks: Path = Path("/proc/self/task")) -> None:
        self._tasks = tasks
        self._seen_ns: dict[str, int] = {}
        self.measure()

    def measure(self) -> float | None:
        """Seconds since the call before, of all threads that still run; None where the system does not count them."""
        found_ns: dict[str, int] = {}
        counted = False
        with suppress(OSError):
            for thread in self._tasks.iterdir():
                with suppress(OSError, ValueError):  # a thread that has ended meanwhile
                    ran_ns, waited_ns, _ = map(int, (thread / "schedstat").read_bytes().split())
                    found_ns[thread.name] = waited_ns
                    counted = counted or ran_ns > 0
        seen_ns, self._seen_ns = self._seen_ns, found_ns
        if not counted:
            return None
        return sum(max(0, ns - seen_ns.get(thread, 0)) for thread, ns in found_ns.items()) / 1e9
