"""A fleet of devices reports its own health, and the cloud sees all of them in one table.

What it shows: a chain without a camera; tasks that keep state on the device; a last task that aggregates across
devices. Each device reads its own load, temperature, memory, disk and network (psutil), learns what is usual there,
and sends what is not. Try it on one machine, no network:

    python3 iot_client_coordinator.py --app fleet_example.taskified --source 2

`--source` is the rate in readings a second, 1 if it is not given. With a server and as many devices as you like:

    python3 cloud_server_coordinator.py --app fleet_example.taskified
    HOST=... python3 iot_client_coordinator.py --app fleet_example.taskified --device-name kitchen 4

Every 10 seconds the last task prints the fleet in a line. The way of an item:

    read_sensors     device    counters of this machine
    compute_figures  device    load in percent, bytes a second: what changed since the reading before (state)
    compare          device    how unusual each figure is on this device (state)
    find_anomalies   either    which of them matter (pure)
    update_fleet     cloud     the table of all devices

The splits are 3 and 4: the pins keep the tasks with state on the device, whose history would otherwise have to travel.
"""

from __future__ import annotations

from typing import Any

from fleet_example import anomalies
from fleet_example.fleet import Fleet, as_line
from fleet_example.sensor import Reading, Sensor
from task_offload import SourceError, current_item, task

HIGHEST_RATE = 1000.0  # readings a second; beyond that the sensor itself would be the load that it measures

_sensor = Sensor()
# The last task runs for all devices on the cloud's main thread, so this needs no lock.
_fleet = Fleet()


def open_source(source: str | None) -> None:
    """Sets the rate. The readings come when they come and cannot be fetched faster: a live source.

    Arguments:
        source: readings a second, such as "2" or "0.5"; None for 1.

    Raises:
        SourceError: this is not a rate.
    """
    global _sensor
    try:
        rate = float(source) if source is not None else 1.0
    except ValueError:
        rate = 0.0
    if not 0 < rate <= HIGHEST_RATE:
        raise SourceError(f"source {source}: give readings a second above 0 and up to {HIGHEST_RATE:g}, such as 2")
    _sensor = Sensor(rate)


def read_sensors() -> tuple[bool, Reading]:
    return True, _sensor.next()


@task(runs_on="device", stateful=True)
def compute_figures(reading: Reading) -> Any:
    """Turns counters into rates. The first reading has none before it to compare with, so it is filtered."""
    state = current_item().state
    before, state["reading"] = state.get("reading"), reading
    if before is None or reading["clock_s"] <= before["clock_s"]:
        return False
    return True, {
        "load_percent": _rate(before, reading, "busy_s", per="cpu_s", scale=100.0),
        "temperature_c": reading["temperature_c"],
        "memory_percent": reading["memory_percent"],
        "disk_used_percent": reading["disk_used_percent"],
        "sent_bytes_s": _rate(before, reading, "sent_bytes"),
        "received_bytes_s": _rate(before, reading, "received_bytes"),
        "disk_bytes_s": _rate(before, reading, "disk_bytes"),
    }


def _rate(before: Reading, now: Reading, counter: str, per: str = "clock_s", scale: float = 1.0) -> float | None:
    first, last = before[counter], now[counter]
    span = (now[per] or 0.0) - (before[per] or 0.0)
    if first is None or last is None or span <= 0:
        return None
    return max(0.0, scale * (last - first) / span)  # a counter starts again when its interface does


@task(runs_on="device", stateful=True)
def compare(figures: anomalies.Figures) -> tuple[bool, tuple[anomalies.Figures, dict[str, float]]]:
    """Compares the figures with what was usual on this device until now, then learns from them."""
    state = current_item().state
    baseline, seen = state.get("baseline", {}), state.get("seen", 0)
    scores = anomalies.score(figures, baseline) if seen >= anomalies.SHORTEST_BASELINE else {}
    state["baseline"], state["seen"] = anomalies.learn(figures, baseline), seen + 1
    return True, (figures, scores)


def find_anomalies(figures: anomalies.Figures, scores: dict[str, float]) -> tuple[bool, tuple[Any, Any]]:
    return True, (figures, anomalies.judge(figures, scores))


def update_fleet(figures: anomalies.Figures, found: list[dict[str, Any]]) -> tuple[bool, dict[str, Any]]:
    """Enters the device into the table. The result has the device's part, and the fleet's whenever it is printed."""
    item = current_item()
    _fleet.add(item.device, item.captured_at, figures, found)
    result: dict[str, Any] = {"figures": figures, "anomalies": found}
    summary = _fleet.summary_if_due()
    if summary is not None:
        print(as_line(summary), flush=True)
        result["fleet"] = summary
    return True, result


tasks = [read_sensors, compute_figures, compare, find_anomalies, update_fleet]
