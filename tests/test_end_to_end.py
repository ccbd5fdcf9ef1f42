"""Devices and a cloud as real processes: every split, every mode, every way to end."""

from __future__ import annotations

import re
import resource
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.apps import expected_of_counter
from tests.support.processes import PATIENCE_S, ROOT, Device, Lab, Row, Server, check_order

pytestmark = pytest.mark.timeout(180)  # processes take their time on a busy machine
COUNT = 60
DEVICES = 20  # at once
ONE_DEVICE = {"COUNT": str(COUNT)}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for `counter` that several tests use, each with a device name of its own."""
    lab = Lab(tmp_path_factory.mktemp("shared"))
    yield lab.server("counter", "--no-tls", env={"LOUD": "1"})
    lab.close()


@pytest.fixture(scope="module")
def sourced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same for `source`."""
    lab = Lab(tmp_path_factory.mktemp("sourced"))
    yield lab.server("source", "--no-tls")
    lab.close()


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same for `stateful`."""
    lab = Lab(tmp_path_factory.mktemp("stateful"))
    yield lab.server("stateful", "--no-tls", "--workers", "4")
    lab.close()


def rows_of(server: Server, device: str) -> list[Row]:
    return [row for row in server.rows() if row["device"] == device]


def check_counter(rows: list[Row], device: str, count: int) -> None:
    """The store holds exactly what `counter` makes of the first numbers, in order."""
    mine = [row for row in rows if row["device"] == device]
    check_order(mine)
    ended = [(row["sequence"], row["ending"], row["detail"], row["result"]) for row in mine]
    assert ended == [(n, *expected_of_counter(n, device)) for n in range(count)]


def test_local_only_needs_no_server(lab: Lab) -> None:
    device = lab.device("counter", env=ONE_DEVICE)
    report = device.finish()
    assert report["mode"] == "local"
    assert report["items"] == {
        "captured": 60, "completed": 40, "filtered": 20, "dropped": {}, "left": {}, "delivered_earlier": 0,
    }  # fmt: skip
    assert report["splits"] == {"5": 60}
    assert "60 items captured = 40 completed + 20 filtered + 0 dropped" in device.out
    assert device.err == ""


def test_a_quiet_sensor_is_no_reason_for_systemd_to_restart_a_local_run(lab: Lab) -> None:
    gate = lab.gate("sensor")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(lab.folder / "notify"))
        systemd.settimeout(PATIENCE_S)
        env = {"CAPTURE_GATE": str(gate.path), "NOTIFY_SOCKET": str(lab.folder / "notify"), "WATCHDOG_USEC": "100000"}
        device = lab.device("counter", env=env)
        assert [systemd.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        gate.close()
        device.finish()


def test_every_split_gives_the_same_results(lab: Lab) -> None:
    server = lab.server("counter", "--no-tls")
    devices = {
        split: lab.device("counter", str(split), "--no-tls", port=server.port, name=f"at-{split}", env=ONE_DEVICE)
        for split in (1, 2, 3, 4)
    }
    reports = {split: device.finish() for split, device in devices.items()}
    cloud = server.stop()
    rows = server.rows()
    for split, report in reports.items():
        check_counter(rows, f"at-{split}", COUNT)
        assert report["mode"] == "manual"
        assert report["items"]["completed"] == 40
        assert report["items"]["filtered"] == 20
        assert report["splits"] == {str(split): 60}
        assert {row["split"] for row in rows if row["device"] == f"at-{split}"} == {split}
    both_books = {each["device"]: each["items"] for each in cloud["sessions"]}
    for split, report in reports.items():
        mine = {key: report["items"][key] for key in ("captured", "completed", "filtered", "dropped")}
        assert both_books[f"at-{split}"] == mine
    assert cloud["rejected"] == {}


def test_tls_and_the_loopback_token_need_no_set_up(lab: Lab) -> None:
    server = lab.server("counter")
    lab.device("counter", "2", port=server.port, env=ONE_DEVICE).finish()
    by_name = ("--host", "localhost", "--port", str(server.port))
    lab.device("counter", "2", *by_name, name="second", env=ONE_DEVICE).finish()
    server.stop()
    check_counter(server.rows(), "device", COUNT)
    check_counter(server.rows(), "second", COUNT)


def test_the_cloud_says_how_many_items_came_and_how_they_ended(lab: Lab, shared: Server) -> None:
    lab.device("counter", "2", "--no-tls", port=shared.port, name="told", env=ONE_DEVICE).finish()
    shared.wait_for(r"device told connected from 127\.0\.0\.1")
    shared.wait_for(r"device told left: 60 items came, 40 completed, 20 filtered, 0 dropped$")
    for row in rows_of(shared, "told"):
        assert 0 <= row["finished_at"] - row["captured_at"] < 60


def test_arguments_of_every_kind_travel_whole(lab: Lab) -> None:
    server = lab.server("typed", "--no-tls")
    results: dict[str, list[Any]] = {}
    runs = [("1", "90"), ("2", "0"), ("2", "90"), ("3", "0"), ("3", "90"), ("4", "90")]  # pictures travel at 2 and 3
    devices = [
        lab.device(
            "typed", split, "--picture-quality", quality, "--no-tls", port=server.port, name=f"{split}-{quality}"
        )
        for split, quality in runs
    ]
    for device in devices:
        report = device.finish()
        assert report["items"]["completed"] == 12, (report["items"], server.err)
    server.stop()
    for row in server.rows():
        results.setdefault(row["device"], []).append(row["result"])
    first, *others = results.values()
    assert [result["number"] for result in first] == list(range(12))
    assert first[3]["deep"] == [1, 2.5, "é"]
    assert len(others) == 5
    assert all(other == first for other in others)


@pytest.mark.parametrize("split", [2, 3])
def test_stateful_tasks_see_their_devices_items_in_order(lab: Lab, stateful: Server, split: int) -> None:
    names = [f"{each}-{split}" for each in "abc"]
    for device in [lab.device("stateful", str(split), "--no-tls", port=stateful.port, name=name) for name in names]:
        device.finish()
    sums = [n * (n + 1) // 2 for n in range(1, 61)]
    for name in names:
        rows = rows_of(stateful, name)
        assert [row["result"] for row in rows if row["ending"] == "completed"] == [
            [n, sums[n - 1], sums[n - 1]] for n in range(2, 61, 2)
        ]
        assert Counter(row["detail"] for row in rows) == {None: 30, "sum_in_cloud": 30}


def test_stateful_tasks_locally(lab: Lab) -> None:
    assert lab.device("stateful").finish()["items"]["completed"] == 30


def check_failing(items: dict[str, Any]) -> None:
    assert items["captured"] == 50
    assert items["completed"] == 5
    assert items["dropped"] == {"task_error": 45}


@pytest.mark.parametrize("split", [None, 1, 2, 3])
def test_failing_tasks_cost_their_item_only(lab: Lab, split: int | None) -> None:
    """Raising, in every way, and returning something else than the contract; on the device and in the cloud."""
    if split is None:
        device = lab.device("failing")
    else:
        server = lab.server("failing", "--no-tls")
        device = lab.device("failing", str(split), "--no-tls", port=server.port)
        server.may_fail = True
    device.may_fail = True
    check_failing(device.finish()["items"])
    there = {1: ["40"], 2: ["30"], 3: ["10"]}.get(split or 0, [])
    assert re.findall(r"^(\d+) task_error in the cloud: see the server's log", device.out, re.MULTILINE) == there
    log = device.err
    if split is not None:
        server.stop()
        log += server.err
        rows = server.rows()
        check_order(rows)
        assert len(rows) == 50
        assert [row["sequence"] for row in rows if row["ending"] == "completed"] == [0, 10, 20, 30, 40]
        details = {row["sequence"]: row["detail"] for row in rows}
        assert details[1] == "task_error: count: OSError: the sensor hiccupped"
        assert details[2] == "task_error: first: ValueError: no 2"
        assert details[13].startswith("task_error: first: TypeError: it returned int")
        assert details[4].startswith("task_error: second: TypeError")
        assert details[6].startswith("task_error: second: ValueError: xxx")
        assert details[7].startswith("task_error: second: SystemExit")
        assert details[8] == "task_error: last: KeyError: 8"
    # Eight kinds of error (two breaches of the contract by one task are one): each is logged once, with its traceback.
    assert len(re.findall("further errors of this kind are only counted", log)) == 8
    assert len(re.findall(r"Traceback \(most recent call last\)", log)) == 8
    assert "task first failed on item 2 of device device" in log


def test_automatic_mode_loses_nothing_where_a_payload_cannot_travel(lab: Lab) -> None:
    server = lab.server("unlisted", "--no-tls")
    device = lab.device("unlisted", "2", "1000000", "--no-tls", port=server.port)
    report = device.finish()
    server.stop()
    assert report["items"]["completed"] == report["items"]["captured"] == 200
    assert "2" not in report["splits"]
    assert "split 2 is not possible, so its items go on to 3: a unlisted.Thing cannot travel" in device.err


def test_a_changing_split_loses_repeats_and_reorders_nothing(lab: Lab) -> None:
    """Automatic mode on a device with a slow task, which goes to the cloud."""
    server = lab.server("counter", "--no-tls")
    device = lab.device("counter", "4", "1000000", "--no-tls", port=server.port, env={"LABEL_MS": "3"})
    device.wait_for(r"split 4.* -> ")
    device.wait_for("average throughput", device.out.count("average throughput") + 1)  # some items go as it says
    device.send(signal.SIGINT)
    report = device.finish()
    server.stop()
    check_counter(server.rows(), "device", report["items"]["captured"])
    assert report["mode"] == "auto"
    assert report["target_fps"] == 1e6
    assert report["decisions"], device.out
    decision = report["decisions"][0]
    assert set(decision) >= {"t", "from", "to", "reason", "predicted_fps", "observed_fps"}
    assert decision["reason"] in device.out
    assert len(report["splits"]) > 1
    assert sum(report["splits"].values()) == report["items"]["captured"]
    by_split = Counter(str(row["split"]) for row in server.rows())
    assert by_split == report["splits"]
    # The average throughput, every 3 seconds.
    printed = re.findall(r"average throughput +([\d.]+) FPS", device.out)
    windows = report["windows"]
    assert [float(fps) for fps in printed] == pytest.approx([window["fps"] for window in windows], abs=0.01)
    assert windows[0]["t"] >= 3.0
    assert sum(windows[0]["splits"].values()) == pytest.approx(1.0, abs=0.01)


def test_the_reports_have_what_the_design_promises(lab: Lab) -> None:
    server = lab.server("counter", "--no-tls")
    report = lab.device("counter", "3", "--no-tls", port=server.port, env=ONE_DEVICE).finish()
    cloud = server.stop()
    assert report["schema"] == 1
    assert report["tasks"] == ["count", "square", "keep_most", "label", "report"]
    assert report["target_fps"] is None
    assert report["duration_s"] > 0
    assert report["fps"] == pytest.approx(60 / report["duration_s"], rel=0.02)
    latency = report["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] < 10_000
    assert report["decisions"] == []
    assert report["away_s"] >= 0
    assert report["reconnects"] == 0
    assert 40 * 40 < report["bytes_sent"] < 40 * 1000
    assert report["device_cpu_s"] > 0
    assert report["cloud_cpu_s"] > 0
    assert set(report["load"]) >= {"process_cpu", "machine_cpu", "memory", "temperature_c"}
    assert cloud["schema"] == 1
    assert cloud["duration_s"] > 0
    assert cloud["cpu_s"] > 0
    assert cloud["cpu_if_all_were_sent_s"] is None  # no item came at split 1, so nobody knows what that costs
    [session] = cloud["sessions"]
    assert session["device"] == "device"
    assert re.fullmatch("[0-9a-f]{32}", session["session"])
    assert session["cloud_cpu_s"] == pytest.approx(report["cloud_cpu_s"])
    assert 0 < session["bytes_received"] <= report["bytes_sent"]


def test_items_ends_the_stream(lab: Lab, shared: Server) -> None:
    report = lab.device("counter", "2", "--no-tls", "--items", "7", port=shared.port, name="seven").finish()
    assert report["items"]["captured"] == 7
    check_counter(shared.rows(), "seven", 7)
    assert lab.device("counter", "--items", "7").finish()["items"]["captured"] == 7


def test_duration_ends_the_wait_for_a_server(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    device = lab.device("counter", "2", "--no-tls", "--duration", "0.3", port=port)
    assert device.finish(1)["items"]["captured"] == 0
    assert device.err.splitlines()[-1] == (
        f"iot_client_coordinator.py: no server at 127.0.0.1:{port} in the 0.3 s of --duration (Connection refused; "
        "is the server running, and its port open?); with --spool DIR a device begins without one"
    )


def test_duration_ends_the_stream(lab: Lab, shared: Server) -> None:
    devices = [
        lab.device("counter", "2", "--no-tls", "--duration", "0.4", port=shared.port, name="short"),
        lab.device("counter", "--duration", "0.4"),
    ]
    for device in devices:
        report = device.finish()
        assert report["items"]["captured"] > 0
        assert report["duration_s"] >= 0.4


def test_realtime_keeps_a_files_own_pace(lab: Lab, sourced: Server) -> None:
    fast = ("--source", "rate:100", "--realtime")
    devices = [
        lab.device("source", "1", "--no-tls", *fast, port=sourced.port, name="paced"),
        lab.device("source", *fast),
    ]
    for device in devices:
        report = device.finish()
        assert report["items"] == {**report["items"], "captured": 40, "completed": 40}
        assert report["duration_s"] >= 0.39  # 40 items at 100 a second


@pytest.mark.parametrize("offloads", [True, False])
def test_duration_ends_a_run_whose_sensor_yields_nothing_more(lab: Lab, shared: Server, offloads: bool) -> None:
    gate = lab.gate("capture")
    split, port = (("1", "--no-tls"), shared.port) if offloads else ((), None)
    options = (*split, "--duration", "1", "--drain", "1")
    device = lab.device("counter", *options, port=port, name="silent", env={"CAPTURE_GATE": str(gate.path)})
    gate.let(2)
    items = device.finish()["items"]
    assert (items["captured"], items["completed"], items["dropped"]) == (2, 2, {})


def test_newest_drops_the_oldest_waiting_item_and_counts_it(lab: Lab, sourced: Server) -> None:
    work = lab.gate("work")
    device = lab.device(
        "source", "2", "--no-tls", "--source", "live", port=sourced.port, name="newest",
        env={"WORK_GATE": str(work.path), "LOUD": "1"},
    )  # fmt: skip
    device.wait_for("capture 39")  # the source never waited, though nothing could be worked on
    work.let(40)
    report = device.finish()
    dropped = report["items"]["dropped"]["overload"]
    assert report["items"]["completed"] == 40 - dropped
    assert dropped >= 30
    rows = rows_of(sourced, "newest")
    check_order(rows)
    assert [row["sequence"] for row in rows] == list(range(40))
    assert Counter((row["ending"], row["detail"]) for row in rows) == {
        ("dropped", "overload"): dropped,
        ("completed", None): 40 - dropped,
    }
    assert rows[-1]["ending"] == "completed"  # the newest wins


def test_block_makes_the_source_wait(lab: Lab, sourced: Server) -> None:
    work, capture = lab.gate("work"), lab.gate("capture")
    device = lab.device(
        "source", "2", "--no-tls", "--source", "live", "--overload", "block", port=sourced.port, name="block",
        env={"WORK_GATE": str(work.path), "CAPTURE_GATE": str(capture.path), "LOUD": "1"},
    )  # fmt: skip
    capture.let(40)
    device.wait_for("working 0")
    work.let(40)
    capture.let(1)  # for the end of the stream
    report = device.finish()
    assert report["items"]["completed"] == 40
    assert report["items"]["dropped"] == {}


def test_a_source_that_dies_ends_the_run_with_a_line_and_a_report(lab: Lab) -> None:
    server = lab.server("source_dies", "--no-tls")
    devices = [
        lab.device("source_dies", "2", "--no-tls", "--overload", "block", port=server.port),
        lab.device("source_dies", name="local"),
    ]
    for device in devices:
        report = device.finish(1)
        assert report["items"]["captured"] == 20
        assert report["items"]["completed"] == 20
        assert device.err.splitlines()[-1] == (
            "iot_client_coordinator.py: the camera was unplugged and does not come back"
        )
    server.stop()


def test_ctrl_c_finishes_what_is_on_its_way(lab: Lab) -> None:
    server_gate = lab.gate("last")
    server = lab.server("counter", "--no-tls", env={"LAST_GATE": str(server_gate.path), "LOUD": "1"})
    capture = lab.gate("capture")
    device = lab.device(
        "counter", "2", "--no-tls", port=server.port, env={"CAPTURE_GATE": str(capture.path), "LOUD": "1"}
    )
    capture.let(2)
    device.wait_for("count 1")
    server_gate.let(1)
    server.wait_for("report device 0")
    device.send(signal.SIGINT)
    device.wait_for("stopping: finishing what is on its way")
    capture.let(1)  # what the first task was waiting for when the stop came is still finished
    server_gate.let(20)
    report = device.finish(0)
    cloud = server.stop()
    captured = report["items"]["captured"]
    assert captured in (2, 3)
    check_counter(server.rows(), "device", captured)
    assert report["items"]["dropped"] == {}
    assert cloud["sessions"][0]["items"]["captured"] == captured


def test_sigterm_is_the_same(lab: Lab, shared: Server) -> None:
    capture = lab.gate("capture")
    device = lab.device(
        "counter", "2", "--no-tls", port=shared.port, name="term", env={"CAPTURE_GATE": str(capture.path), "LOUD": "1"}
    )
    capture.let(21)
    device.wait_for("count 20")
    device.send(signal.SIGTERM)
    device.wait_for("stopping")
    capture.let(1)
    report = device.finish(0)
    assert report["items"]["captured"] in (21, 22)
    check_counter(shared.rows(), "term", report["items"]["captured"])


def test_a_second_ctrl_c_stops_at_once(lab: Lab) -> None:
    gate = lab.gate("last")
    server = lab.server("counter", "--no-tls", env={"LAST_GATE": str(gate.path)})
    device = lab.device("counter", "2", "--no-tls", "--drain", "1000", port=server.port, env={"LOUD": "1"})
    device.wait_for("count 3")
    device.send(signal.SIGINT)
    device.wait_for("Ctrl-C again stops at once")
    device.send(signal.SIGINT)
    report = device.finish(130)
    assert report["items"]["completed"] == 0
    assert report["items"]["dropped"]["undelivered"] > 0
    gate.close()
    server.send(signal.SIGTERM)
    server.wait(0)
    check_order(server.rows())


def test_the_drain_ends_when_its_time_is_over(lab: Lab) -> None:
    gate = lab.gate("last")
    server = lab.server("counter", "--no-tls", env={"LAST_GATE": str(gate.path)})
    device = lab.device("counter", "2", "--no-tls", "--drain", "0.2", port=server.port, env={"LOUD": "1"})
    device.wait_for("count 3")
    device.send(signal.SIGINT)
    report = device.finish(0)
    assert set(report["items"]["dropped"]) <= {"undelivered", "stopped"}
    assert report["items"]["dropped"]
    gate.close()
    server.stop()


def test_ctrl_c_in_local_only_mode(lab: Lab) -> None:
    capture = lab.gate("capture")
    device = lab.device("counter", env={"CAPTURE_GATE": str(capture.path), "LOUD": "1"})
    capture.let(5)
    device.wait_for("count 4")
    device.send(signal.SIGINT)
    capture.let(1)
    report = device.finish(0)
    assert report["items"]["captured"] in (5, 6)


def test_a_second_ctrl_c_ends_a_task_that_hangs_in_local_only_mode(lab: Lab) -> None:
    work = lab.gate("work")
    device = lab.device("counter", env={"WORK_GATE": str(work.path), "LOUD": "1"})
    device.wait_for("label 0")
    device.send(signal.SIGINT)
    device.wait_for("stopping: finishing this item, for 5 s at most; Ctrl-C again stops at once")
    device.send(signal.SIGINT)
    report = device.finish(130)
    assert report["items"]["captured"] == 1
    assert report["items"]["dropped"] == {"stopped": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("drain", ["0", "0.5"])
def test_the_drain_ends_a_sensor_that_is_silent_in_local_only_mode(
    lab: Lab, number: signal.Signals, drain: str
) -> None:
    capture = lab.gate("capture")
    device = lab.device("counter", "--drain", drain, env={"CAPTURE_GATE": str(capture.path), "LOUD": "1"})
    capture.let(5)
    device.wait_for("report device 4")
    device.send(number)
    report = device.finish(0)
    assert report["items"]["captured"] == 5
    assert report["items"]["dropped"] in ({}, {"stopped": 1})  # the last of them may not have ended yet


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_in_good_order(lab: Lab, number: signal.Signals) -> None:
    server = lab.server("counter", "--no-tls", env={"LOUD": "1"})
    device = lab.device("counter", "2", "--no-tls", "--drain", "0", port=server.port)
    server.wait_for("report device 30")
    server.send(number)
    server.wait(0)
    [session] = server.report()["sessions"]
    rows = server.rows()
    check_order(rows)
    assert session["items"]["captured"] == len(rows)
    device.wait_for("no connection to 127.0.0.1")
    device.send(signal.SIGINT)
    report = device.finish(0)
    assert report["items"]["captured"] >= len(rows)


def test_the_server_ends_in_good_order_while_a_task_stays_in_opencv(lab: Lab) -> None:
    """The interpreter's own end aborts when such a thread asks for its lock."""
    server = lab.server("in_opencv", "--no-tls", "--drain", "0", env={"LOUD": "1"})
    device = lab.device("in_opencv", "1", "--no-tls", "--items", "1", port=server.port)
    server.wait_for("in OpenCV")
    server.send(signal.SIGTERM)
    server.wait(0)
    device.kill()


def test_a_device_ends_in_good_order_while_a_task_stays_in_opencv(lab: Lab) -> None:
    server = lab.server("in_opencv", "--no-tls")
    device = lab.device("in_opencv", "2", "--no-tls", "--drain", "0", port=server.port, env={"LOUD": "1"})
    device.wait_for("in OpenCV")
    device.send(signal.SIGTERM)
    report = device.finish(0)
    assert report["items"]["dropped"]["stopped"] > 0


def test_a_second_ctrl_c_stops_the_server_at_once(lab: Lab) -> None:
    gate = lab.gate("last")
    server = lab.server("counter", "--no-tls", env={"LAST_GATE": str(gate.path), "LOUD": "1"})
    device = lab.device("counter", "2", "--no-tls", port=server.port, env={"LOUD": "1"})
    device.wait_for("count 3")
    gate.let(1)
    server.wait_for("report device 0")
    server.send(signal.SIGINT)
    server.wait_for("stopping: .* Ctrl-C again stops at once")
    server.send(signal.SIGINT)
    server.wait(130)
    device.kill()


def test_a_device_that_starts_before_its_server_waits_and_says_so(lab: Lab) -> None:
    port = free_port()
    device = lab.device("counter", "2", "--no-tls", port=port, env=ONE_DEVICE)
    device.wait_for(rf"no connection to 127\.0\.0\.1:{port}: Connection refused; is the server running")
    server = lab.server("counter", "--no-tls", port=port)
    device.finish(0)
    server.stop()
    check_counter(server.rows(), "device", COUNT)


def test_ctrl_c_while_waiting_for_the_server(lab: Lab) -> None:
    device = lab.device("counter", "2", "--no-tls", port=free_port(), env=ONE_DEVICE)
    device.wait_for("no connection to")
    device.send(signal.SIGINT)
    assert device.finish(0)["items"]["captured"] == 0
    assert "0 items captured = 0 completed + 0 filtered + 0 dropped" in device.out


@pytest.mark.parametrize("split", [[], ["2", "--no-tls", "--host", "127.0.0.1"]], ids=["local", "manual"])
def test_ctrl_c_while_the_source_opens(lab: Lab, split: list[str]) -> None:
    gate = lab.gate("capture")
    device = lab.device("source", *split, "--source", "slow", env={"CAPTURE_GATE": str(gate.path)})
    device.wait_for("opening")
    device.send(signal.SIGINT)
    device.wait(0)
    assert device.err == "stopped before it began"


CTRL_C_WITHIN_NUMPY = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("its C-extensions failed")  # as NumPy does

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("script", ["iot_client_coordinator", "cloud_server_coordinator"])
def test_ctrl_c_in_the_first_moment(lab: Lab, script: str) -> None:
    (lab.folder / "sitecustomize.py").write_text(CTRL_C_WITHIN_NUMPY)
    command = lab.python(str(ROOT / f"{script}.py"), env={"PYTHONPATH": f"{lab.folder}:{ROOT}"})
    command.wait(0)
    assert command.err == "stopped before it began"


@pytest.mark.parametrize("script", ["iot_client_coordinator", "cloud_server_coordinator"])
def test_a_missing_package_is_one_line(lab: Lab, script: str) -> None:
    command = lab.python("-S", str(ROOT / f"{script}.py"))  # without site-packages
    command.wait(1)
    assert command.err == f"{script}.py: numpy is not installed; pip install -r requirements.txt"


def test_twenty_devices_at_once_see_only_their_own_items(lab: Lab) -> None:
    server = lab.server("counter")
    devices = {}
    for number in range(DEVICES):
        name = f"device-{number}"
        devices[name] = lab.device(
            "counter", str(1 + number % 4), port=server.port, name=name, env={"COUNT": str(50 + number)}
        )
    for number, (name, device) in enumerate(devices.items()):
        report = device.finish()
        assert report["items"]["captured"] == 50 + number, name
    cloud = server.stop()
    rows = server.rows()
    for number, name in enumerate(devices):
        check_counter(rows, name, 50 + number)
    assert len(cloud["sessions"]) == DEVICES
    assert {each["device"]: each["items"]["captured"] for each in cloud["sessions"]} == {
        f"device-{number}": 50 + number for number in range(DEVICES)
    }


def test_the_servers_memory_and_descriptors_come_back(lab: Lab) -> None:
    """Eight devices at once with frames of 360 kB, after one that has warmed it up."""
    server = lab.server("typed", "--no-tls")
    process = psutil.Process(server.pid)

    def run(name: str) -> Device:
        return lab.device("typed", "1", "--no-tls", "--picture-quality", "0", port=server.port, name=name)

    def settled() -> tuple[int, int, int]:
        return process.memory_info().rss, process.num_fds(), process.num_threads()

    run("first").finish()
    server.wait_for("device first left")
    memory, descriptors, threads = settled()
    for device in [run(f"device-{number}") for number in range(8)]:
        assert device.finish()["items"]["completed"] == 12
    server.wait_for("device device-[0-9] left", 8)
    memory_after, descriptors_after, threads_after = settled()
    server.stop()
    assert descriptors_after <= descriptors
    assert threads_after <= threads
    assert memory_after - memory < 48_000_000  # the pool keeps some of what came in at once


def test_the_server_takes_as_many_descriptors_as_it_may_have(lab: Lab) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        server = lab.server("counter", "--no-tls")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert psutil.Process(server.pid).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)
    server.stop()


def test_a_newer_device_of_the_same_name_replaces_the_older(lab: Lab) -> None:
    server = lab.server("counter", "--no-tls", env={"LOUD": "1"})
    older_gate, newer_gate = lab.gate("older"), lab.gate("newer")
    older = lab.device(
        "counter", "2", "--no-tls", port=server.port, env={"CAPTURE_GATE": str(older_gate.path), "COUNT": "5"}
    )
    older_gate.let(5)
    server.wait_for("report device 4")
    newer = lab.device("counter", "2", "--no-tls", port=server.port, env={"CAPTURE_GATE": str(newer_gate.path)})
    older.wait_for("device device has connected again")
    newer_gate.let(30)
    server.wait_for("report device 28")
    newer_gate.close()
    assert newer.finish(0)["items"]["captured"] == 30
    older_gate.close()  # its stream ends; it comes back after the newer one has left, and leaves in good order
    assert older.finish(0)["items"]["captured"] == 5
    server.stop()
    sessions = Counter(row["session"] for row in server.rows())
    assert sorted(sessions.values()) == [5, 30]
    check_order(server.rows())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
