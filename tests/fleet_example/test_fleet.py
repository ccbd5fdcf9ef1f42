"""The fleet's table, by an injected clock."""

from typing import Any

from fleet_example.fleet import FORGOTTEN_S, SUMMARY_EVERY_S, Fleet, as_line

ANOMALY: list[dict[str, Any]] = [{"figure": "load_percent", "value": 99.0, "why": "unusual"}]


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_hottest_and_busiest_are_found_across_devices() -> None:
    fleet = Fleet(Clock())
    fleet.add("attic", 1000.0, {"load_percent": 10.0, "temperature_c": 71.0}, [])
    fleet.add("cellar", 1000.0, {"load_percent": 90.0, "temperature_c": None}, ANOMALY * 2)
    fleet.add("attic", 1000.0, {"load_percent": 11.0, "temperature_c": 70.0}, [])
    assert fleet.summary() == {
        "devices": 2,
        "silent": [],
        "hottest": ["attic", 70.0],
        "busiest": ["cellar", 90.0],
        "anomalies": 2,
    }
    line = as_line(fleet.summary())
    assert line == "fleet, last minute: 2 devices, busiest cellar at 90 %, hottest attic at 70 °C, 2 anomalies"


def test_a_fleet_without_thermometers_has_no_hottest() -> None:
    fleet = Fleet(Clock())
    fleet.add("vm", 1000.0, {"load_percent": None, "temperature_c": None}, ANOMALY)
    assert fleet.summary()["hottest"] is None
    assert as_line(fleet.summary()) == "fleet, last minute: 1 device, 1 anomaly"


def test_silent_devices_are_named_and_then_forgotten() -> None:
    clock = Clock()
    fleet = Fleet(clock)
    fleet.add("gone", 1000.0, {"load_percent": 99.0}, ANOMALY)
    clock.now_s = 1061.0
    fleet.add("here", 1061.0, {"load_percent": 5.0}, [])
    summary = fleet.summary()
    assert (summary["devices"], summary["silent"], summary["anomalies"]) == (1, ["gone"], 0)
    assert "1 silent (gone)" in as_line(summary)
    clock.now_s = 1000.0 + FORGOTTEN_S + 1
    assert fleet.summary()["silent"] == ["here"]


def test_a_backlog_counts_when_it_was_captured() -> None:
    clock = Clock()
    fleet = Fleet(clock)
    fleet.add("live", 999.0, {}, ANOMALY)
    fleet.add("back again", 100.0, {}, ANOMALY)
    fleet.add("live", 1000.0, {}, ANOMALY)
    assert fleet.summary()["anomalies"] == 2


def test_the_summary_is_due_now_and_then() -> None:
    clock = Clock()
    fleet = Fleet(clock)
    assert fleet.summary_if_due() is None
    clock.now_s += SUMMARY_EVERY_S
    assert fleet.summary_if_due() is not None
    assert fleet.summary_if_due() is None
