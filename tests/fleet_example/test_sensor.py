"""The sensor: its pace by a fake clock, and that this machine's real counters can be read."""

import psutil
import pytest

from fleet_example import sensor
from fleet_example.sensor import Sensor, read_counters


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def paced(rate: float) -> tuple[Sensor, FakeTime]:
    time = FakeTime()
    return Sensor(rate, read=lambda: {"clock_s": time.now_s}, clock=time.clock, sleep=time.sleep), time


def test_readings_come_at_the_rate_with_one_sleep_each() -> None:
    paced_sensor, time = paced(rate=4.0)
    assert [paced_sensor.next()["clock_s"] for _ in range(4)] == [100.0, 100.25, 100.5, 100.75]
    assert time.slept_s == [0.25, 0.25, 0.25]


def test_work_in_between_shortens_the_wait() -> None:
    paced_sensor, time = paced(rate=1.0)
    paced_sensor.next()
    time.now_s += 0.7
    assert paced_sensor.next()["clock_s"] == 101.0
    assert time.slept_s == [pytest.approx(0.3)]


def test_what_was_missed_is_not_made_up_for() -> None:
    paced_sensor, time = paced(rate=1.0)
    paced_sensor.next()
    time.now_s += 50.0
    assert paced_sensor.next()["clock_s"] == 150.0
    assert [paced_sensor.next()["clock_s"] for _ in range(2)] == [150.0, 151.0]


def test_counters_of_this_machine_grow() -> None:
    first, second = read_counters(), read_counters()
    assert first["clock_s"] is not None
    assert second["clock_s"] is not None
    assert second["clock_s"] > first["clock_s"]
    assert first["cpu_s"] is not None
    assert first["busy_s"] is not None
    assert 0 < first["busy_s"] < first["cpu_s"]
    assert 0 <= (first["memory_percent"] or 0.0) <= 100


def test_what_the_machine_hides_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NotImplementedError

    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    monkeypatch.setattr(psutil, "disk_io_counters", refuse)
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    reading = sensor.read_counters()
    assert [reading[name] for name in ("sent_bytes", "received_bytes", "disk_bytes", "temperature_c")] == [None] * 4
    assert reading["memory_percent"] is not None
