"""`--spool`, with real processes: what waits on the device's disk outlives outages, restarts and kills."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from task_offload.spool import DiskSpool
from tests.apps import expected_of_counter
from tests.support.fault_proxy import FaultProxy
from tests.support.processes import Device, Gate, Lab, Row, check_order, check_report

pytestmark = pytest.mark.timeout(180)  # processes take their time on a busy machine
Proxies = Callable[..., FaultProxy]


def check_whole(rows: list[Row], session: str, count: int) -> None:
    mine = [row for row in rows if row["session"] == session]
    check_order(mine)
    assert [(row["sequence"], row["ending"], row["detail"], row["result"]) for row in mine] == [
        (n, *expected_of_counter(n, "device")) for n in range(count)
    ]


def spooling(lab: Lab, port: int, gate: Gate | int, *options: str, split: str = "1") -> Device:
    """A device with a spool, whose stream a gate holds up, or which ends after a number of items."""
    env = {"CAPTURE_GATE": str(gate.path)} if isinstance(gate, Gate) else {"COUNT": str(gate)}
    options = ("--no-tls", "--spool", str(lab.folder / "spool"), *options)
    return lab.device("counter", split, *options, port=port, env={"LOUD": "1", **env})


def held(lab: Lab) -> dict[str, tuple[int, int]]:
    """What the spool holds, when no device runs: first and end of each session."""
    spool = DiskSpool(lab.folder / "spool", 1 << 30)
    try:
        return {each.session: (each.first, each.end) for each in spool.sessions()}
    finally:
        spool.close()


def test_an_outage_is_bridged_on_disk(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    gate = lab.gate("capture")
    device = spooling(lab, proxy.port, gate)
    gate.let(10)
    proxy.tap.wait_for_ack(10)
    proxy.refuse()
    proxy.cut()
    device.wait_for("no connection to")
    gate.let(300)
    device.wait_for("count 309$")
    assert list((lab.folder / "spool").iterdir())
    proxy.refuse(False)
    gate.let(10)
    proxy.tap.wait_for_ack(320)
    gate.close()
    report = device.finish()
    server.stop()
    assert report["items"]["left"] == {}
    assert report["items"]["dropped"] == {}
    [session] = proxy.tap.acked
    check_whole(server.rows(), session, 320)
    assert held(lab) == {}


def test_what_is_left_is_delivered_by_the_next_run(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    gate = lab.gate("capture")
    device = spooling(lab, proxy.port, gate, "--drain", "0.3")
    gate.let(20)
    proxy.tap.wait_for_ack(20)
    [first_session] = proxy.tap.acked
    proxy.refuse()
    proxy.cut()
    device.wait_for("no connection to")
    gate.let(100)
    device.wait_for("count 119$")
    device.send(signal.SIGINT)
    gate.let(1)
    report = device.finish()
    left = report["items"]["left"]["spooled"]
    assert left >= 100
    assert report["items"]["dropped"] == {}
    captured = report["items"]["captured"]
    assert held(lab) == {first_session: (captured - left, captured)}

    proxy.refuse(False)
    second = spooling(lab, proxy.port, 30)
    second.wait_for(f"{left} items of earlier runs are delivered first")
    report = second.finish()
    assert report["items"]["delivered_earlier"] == left
    assert report["reconnects"] == 0, "each session has a connection of its own, and none was lost"
    assert report["items"]["captured"] == 30
    cloud = server.stop()
    rows = server.rows()
    check_whole(rows, first_session, captured)
    [second_session] = {row["session"] for row in rows} - {first_session}
    check_whole(rows, second_session, 30)
    assert [row["session"] for row in rows[-30:]] == [second_session] * 30, "the backlog goes first"
    assert {each["session"]: each["items"]["captured"] for each in cloud["sessions"]} == {
        first_session: captured, second_session: 30,
    }  # fmt: skip
    assert held(lab) == {}


def test_kill_9_of_a_spooling_device(lab: Lab, proxies: Proxies) -> None:
    """Every acknowledged or spooled item has exactly one ending, any other at most one."""
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    gate = lab.gate("capture")
    device = spooling(lab, proxy.port, gate, split="3")
    gate.let(50)
    proxy.tap.wait_for_ack(50)
    [session] = proxy.tap.acked
    proxy.refuse()
    proxy.cut()
    device.wait_for("no connection to")
    gate.let(200)
    device.wait_for("count 249$")
    device.kill()
    first, end = held(lab)[session]
    assert first <= 50
    assert end >= 150  # what the workers held is not there
    proxy.refuse(False)
    report = spooling(lab, proxy.port, 5).finish()
    assert report["items"]["delivered_earlier"] >= end - max(first, 50)
    server.stop()
    check_whole(server.rows(), session, end)


def test_both_sides_are_killed(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    gate = lab.gate("capture")
    device = spooling(lab, proxy.port, gate)
    gate.let(500)
    proxy.tap.wait_for_ack(100)
    server.kill()
    gate.let(500)
    device.wait_for("count 999$")
    [(session, acked)] = proxy.tap.acked.items()
    device.kill()
    first, end = held(lab)[session]
    assert first <= acked
    server = lab.server("counter", "--no-tls")
    proxy.retarget(server.port)
    spooling(lab, proxy.port, 5).finish()
    server.stop()
    check_whole(server.rows(), session, end)


def test_a_device_with_a_spool_needs_no_server_to_begin(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("counter", "--no-tls")
    proxy = proxies(server.port)
    proxy.refuse()
    gate = lab.gate("capture")
    device = spooling(lab, proxy.port, gate)
    gate.let(40)
    device.wait_for("count 39$")
    proxy.refuse(False)
    gate.close()
    report = device.finish()
    assert report["items"]["captured"] == 40
    assert report["items"]["left"] == {}
    server.stop()
    [session] = proxy.tap.acked
    check_whole(server.rows(), session, 40)


def test_a_full_spool_drops_by_the_stated_policy_and_counts(lab: Lab, proxies: Proxies) -> None:
    server = lab.server("typed", "--no-tls")
    proxy = proxies(server.port)
    proxy.refuse()
    device = lab.device(
        "typed", "1", "--no-tls", "--codec", "none", "--spool", str(lab.folder / "spool"), "--spool-limit", "3M",
        "--overload", "newest", "--picture-quality", "0", port=proxy.port, env={"SPLITS": "1"},
    )  # fmt: skip
    device.wait_for("no connection to")
    proxy.refuse(False)
    report = device.finish()
    check_report(report)
    server.stop()
    rows = server.rows()
    check_order(rows)
    assert len(rows) == 12
    dropped = [row for row in rows if row["ending"] == "dropped"]
    assert len(dropped) == sum(report["items"]["dropped"].values())
    assert {row["detail"] for row in dropped} <= {"spool_full", "overload"}


def test_two_devices_do_not_share_a_spool(lab: Lab) -> None:
    gate = lab.gate("capture")
    first = spooling(lab, 1, gate)
    first.wait_for("no connection to")
    second = spooling(lab, 1, gate)
    second.wait(2)
    assert "another device process uses it; give each its own folder" in second.err
    first.kill()


def test_duration_ends_a_run_that_a_full_spool_holds_up(lab: Lab) -> None:
    options = ("--spool", str(lab.folder / "spool"), "--spool-limit", "4k", "--duration", "0.5", "--drain", "0.1")
    report = lab.device("counter", "4", "--overload", "block", *options, port=1).finish()
    assert 0 < report["items"]["left"]["spooled"] < report["items"]["captured"]
