"""The chain as an app: the same results at every split, devices kept apart, the table across them."""

import json
from typing import Any

import pytest

from fleet_example import taskified
from fleet_example.fleet import SUMMARY_EVERY_S, Fleet
from fleet_example.sensor import Reading, Sensor
from task_offload.errors import SourceError
from task_offload.runner import Kind, Runner, States
from task_offload.task import Chain, Item, load_app

READINGS = 40
HOT = 30  # the reading with the anomalies


def readings() -> list[Reading]:
    """One a second: 25 % load, 1000 bytes a second sent; then one at 100 % and 85 degrees."""
    made: list[Reading] = []
    busy_s = sent = 0.0
    for number in range(READINGS):
        busy_s += 4.0 if number == HOT else 1.0
        sent += 1000.0
        made.append(
            {
                "clock_s": float(number),
                "busy_s": busy_s,
                "cpu_s": 4.0 * (number + 1),
                "sent_bytes": sent,
                "received_bytes": None,
                "disk_bytes": 0.0,
                "temperature_c": 85.0 if number == HOT else 50.0,
                "memory_percent": 30.0,
                "disk_used_percent": 40.0,
            }
        )
    return made


@pytest.fixture
def chain() -> Chain:
    return load_app("fleet_example.taskified")


@pytest.fixture(autouse=True)
def injected(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replaces the sensor and the fleet's clock. The one entry of the list is the time, in Unix seconds."""
    now_s = [1000.0]
    monkeypatch.setattr(taskified, "_fleet", Fleet(lambda: now_s[0]))
    inject_readings(monkeypatch)
    return now_s


def inject_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    source = iter(readings())
    sensor = Sensor(read=lambda: next(source), clock=lambda: 0.0, sleep=lambda _: None)
    monkeypatch.setattr(taskified, "_sensor", sensor)


def run(chain: Chain, split: int, device: str = "attic") -> list[Any]:
    """Every reading through the chain, cut at `split`: (kind, value) of each."""
    runner, here, cloud = Runner(chain), States(), States()
    ended = []
    for sequence in range(READINGS):
        item = Item(device, "0" * 32, sequence, 1000.0, split)
        outcome = runner.run(item, here, (), 0, split)
        if outcome.kind is Kind.CONTINUED:
            outcome = runner.run(item, cloud, outcome.value, split, len(chain.tasks))
        ended.append((outcome.kind, outcome.value))
    return ended


def test_the_pins_leave_splits_3_and_4(chain: Chain) -> None:
    assert chain.splits == (3, 4)
    assert not chain.stateful_between(3, 5)


def test_results_are_equal_at_every_split_and_locally(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(chain, len(chain.tasks))
    assert [kind for kind, _ in whole] == [Kind.FILTERED] + [Kind.COMPLETED] * (READINGS - 1)
    for split in chain.splits:
        inject_readings(monkeypatch)
        assert run(chain, split) == whole


def test_figures_and_anomalies_are_right(chain: Chain) -> None:
    results = [value for _, value in run(chain, 4)]
    assert results[10] == {
        "figures": {
            "load_percent": pytest.approx(25.0),
            "temperature_c": 50.0,
            "memory_percent": 30.0,
            "disk_used_percent": 40.0,
            "sent_bytes_s": pytest.approx(1000.0),
            "received_bytes_s": None,
            "disk_bytes_s": 0.0,
        },
        "anomalies": [],
    }
    assert [number for number, result in enumerate(results) if result and result["anomalies"]] == [HOT]
    assert {each["figure"]: each["why"] for each in results[HOT]["anomalies"]} == {
        "load_percent": "unusual",
        "temperature_c": "too high",
    }


def test_results_are_plain_data(chain: Chain) -> None:
    results = [value for _, value in run(chain, 3)]
    assert json.loads(json.dumps(results)) == results


def test_the_last_task_aggregates_across_devices(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, injected: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run(chain, 3, device="attic")
    inject_readings(monkeypatch)
    run(chain, 4, device="cellar")
    assert capsys.readouterr().out == ""
    injected[0] += SUMMARY_EVERY_S
    inject_readings(monkeypatch)
    with_fleet = [value["fleet"] for _, value in run(chain, 3, device="shed") if value and "fleet" in value]
    assert [(each["devices"], each["anomalies"]) for each in with_fleet] == [(3, 4)]
    assert capsys.readouterr().out.startswith("fleet, last minute: 3 devices, busiest")


def test_a_crash_of_the_device_loses_history_only(chain: Chain) -> None:
    runner = Runner(chain)
    for _ in range(2):  # each time with empty state, as after a crash
        outcome = runner.run(Item("attic", "0" * 32, 0, 0.0, 3), States(), (), 0, 3)
        assert outcome.kind is Kind.FILTERED


@pytest.mark.parametrize("source", ["0", "-1", "fast", "nan", "inf", "2000", ""])
def test_a_source_that_is_no_rate_is_refused(source: str) -> None:
    with pytest.raises(SourceError, match="such as 2"):
        taskified.open_source(source)


def test_the_source_is_live() -> None:
    assert taskified.open_source("2.5") is None  # type: ignore[func-returns-value]
