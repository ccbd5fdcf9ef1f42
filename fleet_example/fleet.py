"""The table of all devices. In: each device's figures and anomalies. Out: the fleet in a few numbers, now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fleet_example.anomalies import Figures

RECENT_S = 60.0
FORGOTTEN_S = 3600.0  # a device that was silent for so long leaves the table
SUMMARY_EVERY_S = 10.0


class Fleet:
    """What every device told last.

    Arguments:
        clock: gives Unix seconds, as `current_item().captured_at` does; tests pass their own.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, Figures]] = {}
        self._anomalies: deque[float] = deque()  # when each was captured
        self._summary_due_s = clock() + SUMMARY_EVERY_S

    def add(self, device: str, captured_at: float, figures: Figures, anomalies: list[dict[str, Any]]) -> None:
        """Takes in what a device told. `captured_at` is in Unix seconds."""
        self._last[device] = (captured_at, figures)
        self._anomalies.extend([captured_at] * len(anomalies))

    def summary_if_due(self) -> dict[str, Any] | None:
        """The summary, once every `SUMMARY_EVERY_S`: it looks at every device, too much work for each item."""
        now_s = self._clock()
        if now_s < self._summary_due_s:
            return None
        self._summary_due_s = now_s + SUMMARY_EVERY_S
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """The fleet as plain data, over what was captured in the last minute.

        Returns:
            `devices` (how many reported), `silent` (names of those that did so only earlier), `hottest` and `busiest`
            (`[name, value]`, or None where nobody knows), `anomalies` (their number).
        """
        now_s = self._clock()
        self._last = {name: row for name, row in self._last.items() if now_s - row[0] <= FORGOTTEN_S}
        # A device that comes back delivers its backlog late: the deque is not in order, so each entry is looked at.
        self._anomalies = deque(at for at in self._anomalies if now_s - at <= RECENT_S)
        recent = {name: figures for name, (at, figures) in self._last.items() if now_s - at <= RECENT_S}
        return {
            "devices": len(recent),
            "silent": sorted(self._last.keys() - recent.keys()),
            "hottest": _highest(recent, "temperature_c"),
            "busiest": _highest(recent, "load_percent"),
            "anomalies": len(self._anomalies),
        }


def _highest(recent: dict[str, Figures], name: str) -> list[Any] | None:
    known = [(figures[name], device) for device, figures in recent.items() if figures.get(name) is not None]
    if not known:
        return None
    value, device = max(known)
    return [device, value]


def as_line(summary: dict[str, Any]) -> str:
    """The summary as one line for people."""
    parts = ["1 device" if summary["devices"] == 1 else f"{summary['devices']} devices"]
    if summary["silent"]:
        parts.append(f"{len(summary['silent'])} silent ({', '.join(summary['silent'][:3])})")
    if summary["busiest"]:
        parts.append("busiest {} at {:.0f} %".format(*summary["busiest"]))
    if summary["hottest"]:
        parts.append("hottest {} at {:.0f} °C".format(*summary["hottest"]))
    found = summary["anomalies"]
    parts.append("1 anomaly" if found == 1 else f"{found} anomalies")
    return "fleet, last minute: " + ", ".join(parts)
