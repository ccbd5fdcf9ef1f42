"""The device's own figures as a sensor. In: psutil's counters. Out: one reading each time one is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

Reading = dict[str, float | None]


def read_counters() -> Reading:
    """Reads what this machine tells of itself.

    Returns:
        `clock_s` (a clock that never goes back), the counters `busy_s` and `cpu_s` (seconds that the cores were busy,
        and in all), `sent_bytes`, `received_bytes`, `disk_bytes`, and the figures `temperature_c`, `memory_percent`
        and `disk_used_percent`. What this machine does not tell is None.
    """
    times = psutil.cpu_times()
    # Linux counts the time of virtual machines in user and nice already.
    total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    network = _where_told(psutil.net_io_counters)
    disk = _where_told(psutil.disk_io_counters)
    return {
        "clock_s": time.monotonic(),
        "busy_s": total_s - times.idle - getattr(times, "iowait", 0.0),
        "cpu_s": total_s,
        "sent_bytes": network and network.bytes_sent,
        "received_bytes": network and network.bytes_recv,
        "disk_bytes": disk and disk.read_bytes + disk.write_bytes,
        "temperature_c": _hottest_c(),
        "memory_percent": psutil.virtual_memory().percent,
        "disk_used_percent": psutil.disk_usage("/").percent,
    }


def _hottest_c() -> float | None:
    sensors = _where_told(getattr(psutil, "sensors_temperatures", dict)) or {}  # not every system has the function
    return max((each.current for group in sensors.values() for each in group), default=None)


def _where_told(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, NotImplementedError, psutil.Error):  # containers and virtual machines hide some of it
        return None


class Sensor:
    """Gives readings at a rate. It sleeps in between, and leaves readings out that it is too late for.

    Arguments:
        rate: readings a second.
        read, clock, sleep: where readings and time come from; tests pass their own.
    """

    def __init__(
        self,
        rate: float = 1.0,
        *,
        read: Callable[[], Reading] = read_counters,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._period_s = 1.0 / rate
        self._read, self._clock, self._sleep = read, clock, sleep
        self._due_s: float | None = None

    def next(self) -> Reading:
        """Waits until the next reading is due and gives it. The first one is due at once."""
        now_s = self._clock()
        if self._due_s is None:
            self._due_s = now_s
        elif self._due_s > now_s:
            self._sleep(self._due_s - now_s)
        else:  # a device that was suspended must not make up for it in a burst
            self._due_s = max(self._due_s, now_s - self._period_s)
        self._due_s += self._period_s
        return self._read()
