"""Links that break and processes that die, with real processes: nothing lost, nothing twice, nothing out of order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.apps import expected_of_counter
from tests.support.fault_proxy import FaultProxy
from tests.support.processes import Device, Lab, Row, check_order

pytestmark = pytest.mark.timeout(180)  # processes take their time on a busy machine
Proxies = Callable[..., FaultProxy]


def check_whole(rows: list[Row], count: int, device: str = "device") -> None:
    """One session's items: each number once, in order, ended as it must."""
    mine = [row for row in rows if row["device"] == device]
    check_order(mine)
    assert [(row["sequence"], row["ending"], row["detail"], row["result"]) for row in mine] == [
        (n, *expected_of_counter(n, device)) for n in range(count)
    ]


def check_books(report: dict[str, Any], count: int) -> None:
    assert report["items"]["captured"] == count
    assert report["items"]["filtered"] == count // 3
    assert report["items"]["completed"] == count - count // 3
    assert report["items"]["dropped"] == {}


def gated(lab: Lab, port: int, *options: str, split: str = "2", app: str = "counter") -> tuple[Device, Any]:
    gate = lab.gate("capture")
    return lab.device(app, split, "--no-tls", *options, port=port, env={"CAPTURE_GATE": str(gate.path)}), gate


def test_a_cut_link_is_taken_up_again(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    device, gate = gated(lab, proxy.port)
    for round_number in range(4):
        gate.let(30)
        proxy.tap.wait_for_ack(30 * (round_number + 1))
        assert proxy.cut() == 1
        proxy.tap.wait_for_hello(round_number + 2)
    gate.close()
    report = device.finish()
    server.stop()
    check_whole(server.rows(), 120)
    check_books(report, 120)
    assert report["reconnects"] == 4
    assert report["away_s"] > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_cuts_in_the_midst_of_messages(lab: Lab, proxies: Proxies, seed: int) -> None:
    """Each connection dies after a random number of bytes: within headers, heads and bodies, before and after acks."""
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port, seed)
    proxy.cut_each_after(200, 2500)
    device, gate = gated(lab, proxy.port)
    gate.let(200)
    for times in range(2, 9):
        proxy.tap.wait_for_hello(times)
    proxy.cut_each_after(0, 0)
    proxy.cut()
    gate.close()
    report = device.finish()
    server.stop()
    assert proxy.faults >= 7
    check_whole(server.rows(), 200)
    check_books(report, 200)


def test_cuts_under_tls_with_large_payloads(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("typed")
    proxy = proxies(server.port, 3, tap=False)
    proxy.cut_each_after(200_000, 900_000)
    token = lab.enroll("device")  # the loopback token lies under the server's own port, not the proxy's
    device = lab.device("typed", "1", "--codec", "none", port=proxy.port, env={"OFFLOAD_TOKEN": token})
    report = device.finish()
    server.stop()
    assert proxy.faults >= 1
    assert report["items"]["completed"] == 12
    assert [row["result"]["number"] for row in server.rows()] == list(range(12))


def test_a_half_closed_connection_is_given_up_on_both_sides(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    device, gate = gated(lab, proxy.port)
    gate.let(10)
    proxy.tap.wait_for_ack(10)
    proxy.half_close()
    server.wait_for("device device is away")
    proxy.tap.wait_for_hello(2)
    gate.let(10)
    gate.close()
    check_books(device.finish(), 20)
    server.stop()
    check_whole(server.rows(), 20)


def test_a_stalled_link_is_noticed_by_both_sides_within_the_stated_time(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("counter", "--no-tls", limits={"heartbeat_s": 0.1, "silence_s": 1.0})
    proxy = proxies(server.port)
    device, gate = gated(lab, proxy.port)
    gate.let(10)
    proxy.tap.wait_for_ack(10)
    proxy.stall()
    gate.let(10)
    server.wait_for("device device is away: the device has been silent for 1 s")
    device.wait_for("the cloud has been silent for 1 s")
    proxy.stall(False)
    proxy.tap.wait_for_ack(20)
    gate.close()
    report = device.finish()
    check_books(report, 20)
    assert report["reconnects"] == 1
    server.stop()
    check_whole(server.rows(), 20)


def test_an_idle_link_stays_up(lab: Lab, proxies: Proxies) -> None:
    """Heartbeats: no item for several times the silence that means death."""
    server = lab.server("counter", "--no-tls", limits={"heartbeat_s": 0.1, "silence_s": 1.0})
    proxy = proxies(server.port)
    device, gate = gated(lab, proxy.port)
    gate.let(3)
    proxy.tap.wait_for_ack(3)
    device.wait_for("average throughput", 1)  # 3 s
    gate.let(3)
    gate.close()
    report = device.finish()
    assert report["reconnects"] == 0
    check_books(report, 6)
    server.stop()


def test_a_slow_and_late_link_loses_nothing(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("typed", "--no-tls")
    proxy = proxies(server.port)
    proxy.delay(0.02)
    proxy.throttle(4_000_000)
    report = lab.device("typed", "1", "--codec", "none", "--no-tls", port=proxy.port).finish()
    server.stop()
    assert report["items"]["completed"] == 12
    assert report["reconnects"] == 0
    assert [row["result"]["number"] for row in server.rows()] == list(range(12))


def test_the_device_works_on_while_the_cloud_is_away(lab: Lab, proxies: Proxies) -> None:
    """It runs as many tasks as it may, keeps the payloads in memory, and delivers the backlog first."""
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    gate = lab.gate("capture")
    device = lab.device("counter", "1", "--no-tls", port=proxy.port, env={"CAPTURE_GATE": str(gate.path), "LOUD": "1"})
    gate.let(10)
    proxy.tap.wait_for_ack(10)
    proxy.refuse()
    proxy.cut()
    device.wait_for("no connection to")
    gate.let(300)
    device.wait_for("count 309$")
    proxy.refuse(False)
    gate.let(10)
    proxy.tap.wait_for_ack(320)
    gate.close()
    report = device.finish()
    check_books(report, 320)
    assert report["away_s"] > 0
    server.stop()
    rows = server.rows()
    check_whole(rows, 320)
    splits = Counter(row["split"] for row in rows)
    assert splits[4] >= 250  # what was captured while the cloud was away
    assert {row["split"] for row in rows[:10]} == {1}
    assert rows[-1]["split"] in (1, 4)


def test_kill_9_of_the_cloud_loses_nothing(lab: Lab, proxies: Proxies) -> None:
    """It is killed three times while items come in, and goes on with the same state and results, on another port."""
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    device, gate = gated(lab, proxy.port)
    for number in range(3):
        gate.let(2000)
        proxy.tap.wait_for_ack(2000 * number + 300)
        server.kill()
        [acked] = proxy.tap.acked.values()
        assert len(server.rows()) >= acked, "an ack means recorded"
        server = lab.server("counter", "--no-tls")
        proxy.retarget(server.port)
    gate.close()
    report = device.finish()
    cloud = server.stop()
    check_whole(server.rows(), 6000)
    check_books(report, 6000)
    assert report["reconnects"] == 3
    [session] = cloud["sessions"]
    assert session["items"] == {key: report["items"][key] for key in ("captured", "completed", "filtered", "dropped")}


def test_kill_9_of_the_cloud_with_the_same_port_and_a_token(lab: Lab) -> None:
    """A restarted server has the same certificate and knows its devices: nobody needs to do anything."""
    server = lab.server("counter", env={"LOUD": "1"})
    token = lab.enroll("device")
    gate = lab.gate("capture")
    device = lab.device(
        "counter", "2", port=server.port, env={"CAPTURE_GATE": str(gate.path), "OFFLOAD_TOKEN": token, "LOUD": "1"}
    )
    gate.let(20)
    server.wait_for("report device 19")
    server.kill()
    gate.let(20)
    device.wait_for("count 39")
    second = lab.server("counter", port=server.port)
    gate.close()
    report = device.finish()
    second.stop()
    check_books(report, 40)
    check_whole(second.rows(), 40)


def test_kill_9_of_the_device(lab: Lab, proxies: Proxies) -> None:
    """What was acknowledged has one ending, anything else at most one; the device's next run is not disturbed."""
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    device = lab.device("counter", "2", "--no-tls", port=proxy.port)
    proxy.tap.wait_for_ack(300)
    device.kill()
    second = lab.device("counter", "2", "--no-tls", "--items", "50", port=proxy.port)
    second.finish()
    [(session, acked)] = [(key, value) for key, value in proxy.tap.acked.items() if value != 50]
    server.stop()
    rows = server.rows()
    check_order(rows)
    killed = [row for row in rows if row["session"] == session]
    assert [row["sequence"] for row in killed] == list(range(len(killed)))
    assert len(killed) >= acked >= 300
    assert [(row["ending"], row["detail"], row["result"]) for row in killed] == [
        expected_of_counter(n, "device") for n in range(len(killed))
    ]
    assert len(rows) - len(killed) == 50


def test_a_server_that_stops_and_comes_back(lab: Lab, proxies: Proxies) -> None:
    """SIGTERM, in the midst of a stream, and a start again: as after an upgrade."""
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    device, gate = gated(lab, proxy.port, split="3")
    gate.let(1000)
    proxy.tap.wait_for_ack(200)
    server.stop()
    server = lab.server("counter", "--no-tls")
    proxy.retarget(server.port)
    gate.close()
    check_books(device.finish(), 1000)
    server.stop()
    check_whole(server.rows(), 1000)


def test_without_results_a_restart_may_repeat_but_loses_nothing(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("counter", "--no-tls", results="none")
    proxy = proxies(server.port)
    device, gate = gated(lab, proxy.port)
    gate.let(100)
    proxy.tap.wait_for_ack(100)
    server.kill()
    server = lab.server("counter", "--no-tls", results="none")
    proxy.retarget(server.port)
    gate.let(50)
    gate.close()
    check_books(device.finish(), 150)
    [session] = server.stop()["sessions"]
    assert session["items"]["captured"] == 150
