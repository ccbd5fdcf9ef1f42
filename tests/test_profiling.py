"""`--profile`: what every split would give, measured here or with a server."""

from __future__ import annotations

import itertools
import json
import signal
from typing import Any

import pytest

from task_offload import profiling, runner
from task_offload.config import DeviceConfig
from task_offload.scheduling.cost_model import Costs
from task_offload.scheduling.table import split_rows
from task_offload.task import Chain, Contract, Task
from task_offload.wire.compression import available_codecs
from tests.support.processes import Device, Lab


def profile_of(device: Device, status: int = 0) -> dict[str, Any]:
    device.wait(status)
    return dict(json.loads(device.report_file.read_text()))


def test_without_a_server_every_split_is_measured_here(lab: Lab) -> None:
    device = lab.device("counter", "--profile", "--items", "30", "--emulate-link", "20mbit,15ms")
    profile = profile_of(device)
    assert profile["mode"] == "profile"
    assert profile["link_bytes_per_s"] == 2.5e6
    assert [row["task"] for row in profile["tasks"]] == ["count", "square", "keep_most", "label", "report"]
    assert [row["survival"] for row in profile["tasks"]] == [1.0, 1.0, round(20 / 30, 4), 1.0, 1.0]
    assert {row["split"] for row in profile["splits"]} == {1, 2, 3, 4}
    assert all(row["latency_ms"] >= 30 for row in profile["splits"])
    # Of those that are nearly as fast as the fastest, the cheapest is taken.
    assert profile["choice"]["fps"] >= 0.97 * max(row["fps"] for row in profile["splits"])
    assert "Automatic mode would take" in device.out


def test_a_slower_cpu_takes_longer_for_work_and_not_for_waiting(lab: Lab) -> None:
    device = lab.device("counter", "--profile", "3", "1", "--items", "30", "--emulate-cpu", "50", env={"LABEL_MS": "1"})
    profile = profile_of(device)
    rows = {row["task"]: row for row in profile["tasks"]}
    assert rows["label"]["cloud_ms"] >= 1
    assert rows["label"]["device_ms"] >= 50
    assert profile["target_fps"] == 1.0
    assert profile["choice"]["meets_target"]
    assert "meets the target" in device.out


class VirtualTime:
    """In place of the clocks that tasks and encoding are timed by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now_ns = self._cpu_ns = 0
        for module in (runner, profiling):
            monkeypatch.setattr(module, "perf_counter_ns", lambda: self._now_ns)
            monkeypatch.setattr(module, "thread_time_ns", lambda: self._cpu_ns)

    def wait(self, ms: int) -> None:
        self._now_ns += ms * 1_000_000

    def work(self, ms: int) -> None:
        self.wait(ms)
        self._cpu_ns += ms * 1_000_000


def profile_a_sensor(time: VirtualTime, items: int, emulate_cpu: float, ends_after: int | None = None) -> Costs:
    """Of a chain whose first task waits 18 ms and works 2 ms, and whose second waits 10 ms and works 1 ms."""
    asked = itertools.count()

    def sense() -> Any:
        number = next(asked)
        if number == ends_after:
            return False
        time.wait(18)
        time.work(2)
        return True, number

    def look_up(number: int) -> Any:
        time.wait(10)
        time.work(1)
        return True, number

    tasks = (sense, look_up, lambda number: (True, number))
    chain = Chain("test", tuple(Task(f"t{n}", task, Contract()) for n, task in enumerate(tasks, 1)), (), lambda _: None)
    costs = profiling.measure_here(DeviceConfig(items=items, emulate_cpu=emulate_cpu), chain, ("none",)).costs
    assert costs.source_rate == pytest.approx(50.0)
    assert ends_after is None or next(asked) == ends_after + 1, "it is not asked again after its end"
    return costs


def test_of_a_live_source_only_cpu_time_is_work_and_its_rate_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    time = VirtualTime(monkeypatch)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 40})
    costs = profile_a_sensor(time, items=5, emulate_cpu=2.0)
    assert costs.workers == 3, "as a server here would have"
    assert costs.device_s == pytest.approx([0.004, 0.012, 0.0])
    assert costs.cloud_s == pytest.approx([0.002, 0.011, 0.0])
    for target_fps in (2.0, 60.0):
        for row in split_rows(costs, target_fps):
            assert (row["fps"], row["limit"], row["meets_target"]) == (50.0, "source", target_fps == 2.0)
    slower = profile_a_sensor(time, items=5, emulate_cpu=15.0)
    assert slower.device_s == pytest.approx([0.03, 0.025, 0.0])
    assert {row["limit"] for row in split_rows(slower)} == {"device"}


def test_a_sensor_that_is_off_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    time = VirtualTime(monkeypatch)
    costs = profile_a_sensor(time, items=100, emulate_cpu=1.0, ends_after=2)
    assert costs.device_s == pytest.approx([0.002, 0.011, 0.0])
    costs = profile_a_sensor(time, items=5, emulate_cpu=1.0, ends_after=7)  # while its rate is measured
    assert costs.device_s == pytest.approx([0.002, 0.011, 0.0])


def test_in_real_time_a_file_has_the_rate_that_it_says(lab: Lab) -> None:
    device = lab.device("source", "--profile", "--source", "rate:4", "--realtime", "--items", "5")
    assert {(row["fps"], row["limit"]) for row in profile_of(device)["splits"]} == {(4.0, "source")}


@pytest.mark.parametrize("with_server", [False, True])
def test_a_split_whose_payload_cannot_travel_is_not_possible(lab: Lab, with_server: bool) -> None:
    port = lab.server("unlisted", "--no-tls").port if with_server else None
    device = lab.device("unlisted", "--profile", "--no-tls", port=port)
    device.may_fail = with_server  # a run says what it drops
    profile = profile_of(device)
    assert {row["split"] for row in profile["splits"]} == {1, 3}
    assert set(profile["choice"]["shares"]) <= {"1", "3"}
    [impossible] = profile["impossible"]
    assert impossible["split"] == 2
    assert impossible["reason"].startswith("a unlisted.Thing cannot travel; list it in the app's payload_types")
    assert "2     not possible: a unlisted.Thing cannot travel" in device.out


@pytest.mark.parametrize("with_server", [False, True])
def test_where_no_split_is_possible_there_is_no_choice(lab: Lab, with_server: bool) -> None:
    pinned = {"PINNED": "1"}
    port = lab.server("unlisted", "--no-tls", env=pinned).port if with_server else None
    device = lab.device("unlisted", "--profile", "--no-tls", port=port, env=pinned)
    device.may_fail = with_server
    profile = profile_of(device)
    assert [each["split"] for each in profile["impossible"]] == [2]
    assert profile["splits"] == []
    assert profile["choice"] is None
    assert "Automatic mode would have no split to take." in device.out


def test_with_a_server_a_session_measures_both_sides(lab: Lab) -> None:
    server = lab.server("counter", "--no-tls")
    device = lab.device("counter", "--profile", "--no-tls", port=server.port)
    profile = profile_of(device)
    assert {row["split"] for row in profile["splits"]} == {1, 2, 3, 4}
    assert all(row["device_ms"] > 0 for row in profile["tasks"][:-1])
    assert all(row["cloud_ms"] > 0 for row in profile["tasks"][1:]), "the last task runs nowhere else"
    [session] = server.stop()["sessions"]
    assert f"measured on {session['items']['captured']} items with 127.0.0.1:{server.port}" in device.out


def test_a_codec_that_the_cloud_lacks_is_no_choice(lab: Lab) -> None:
    server = lab.server("counter", "--no-tls", env=lab.lacking("zstandard"))
    device = lab.device("counter", "--profile", "--no-tls", port=server.port)
    assert {row["codec"] for row in profile_of(device)["splits"]} == set(available_codecs()) - {"zstd"}


def test_a_session_of_a_few_items_is_measured_too(lab: Lab) -> None:
    server = lab.server("counter", "--no-tls")
    device = lab.device("counter", "--profile", "--no-tls", "--items", "3", port=server.port)
    assert profile_of(device)["measured"] == f"measured on 3 items with 127.0.0.1:{server.port}"


def test_a_session_that_is_refused_says_so_once(lab: Lab) -> None:
    server = lab.server("typed", "--no-tls")
    device = lab.device("counter", "--profile", "--no-tls", port=server.port)
    device.wait(1)
    [line] = device.err.splitlines()
    assert "the apps differ" in line


def test_ctrl_c_before_the_server_is_there_leaves_no_profile(lab: Lab) -> None:
    device = lab.device("counter", "--profile", "--no-tls", "--port", "1", "--host", "127.0.0.1")
    device.wait_for("trying again until there is one")
    device.send(signal.SIGINT)
    device.wait(1)
    assert "so there is no profile; run it again" in device.err
    assert not device.report_file.exists()


def test_ctrl_c_while_measuring_here(lab: Lab) -> None:
    capture = lab.gate("capture")
    device = lab.device("counter", "--profile", env={"CAPTURE_GATE": str(capture.path), "LOUD": "1"})
    capture.let(2)
    device.wait_for("measuring every task and every split's payload on 100 items here")
    device.wait_for("count 1")
    device.send(signal.SIGINT)
    device.wait(0)
    assert device.err == "stopped before every split was measured, so there is no profile"
    assert not device.report_file.exists()


@pytest.mark.parametrize(("app", "says"), [("failing", "failed on item"), ("source", "no item to measure")])
def test_an_app_that_cannot_be_measured(lab: Lab, app: str, says: str) -> None:
    gate = lab.gate("capture")
    gate.close()
    device = lab.device(app, "--profile", env={"CAPTURE_GATE": str(gate.path)})
    device.wait(1)
    [line] = device.err.splitlines()
    assert says in line
