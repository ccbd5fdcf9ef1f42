"""A device's own load. In: the time. Out: CPU, memory and temperature, as `psutil` tells them."""

from __future__ import annotations

import math
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
