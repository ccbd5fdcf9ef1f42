"""A device against clouds that come and go with other codecs, and with a task that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from task_offload.config import DeviceConfig
from task_offload.device import HANGS_S, OffloadRun
from task_offload.observe.watchdog import Watchdog
from task_offload.task import Chain, Contract, Task
from tests.support.fault_proxy import FaultProxy
from tests.support.processes import PATIENCE_S, Lab, Server


def check_rows(server: Server, count: int) -> None:
    assert [(row["ending"], row["detail"], row["result"]) for row in server.rows()] == [
        ("completed", None, 20_000 * number) for number in range(count)
    ]


def test_a_cloud_without_the_codec_gets_none_of_it_not_even_of_an_outage(
    lab: Lab, proxies: Callable[..., FaultProxy]
) -> None:
    pytest.importorskip("zstandard")
    server = lab.server("plane", "--no-tls", env=lab.lacking("zstandard"))
    proxy = proxies(server.port)
    gate = lab.gate("capture")
    device = lab.device(
        "plane", "1", "--no-tls", "--codec", "zstd", port=proxy.port,
        env={"LOUD": "1", "CAPTURE_GATE": str(gate.path)},
    )  # fmt: skip
    gate.let(5)
    proxy.tap.wait_for_ack(5)
    device.wait_for("codec zstd -> none: payloads encoded with none instead of zstd: the cloud cannot decode zstd")
    proxy.refuse()
    proxy.cut()
    device.wait_for("no connection to")
    gate.let(5)
    device.wait_for("count 9$")
    proxy.refuse(False)
    proxy.tap.wait_for_ack(10)
    gate.close()
    device.finish()
    server.stop()
    check_rows(server, 10)


@pytest.mark.parametrize("options", [(), ("--spool", "spool")], ids=["in memory", "on disk"])
def test_what_waits_in_a_codec_survives_a_cloud_that_comes_back_without_it(
    lab: Lab, proxies: Callable[..., FaultProxy], options: tuple[str, ...]
) -> None:
    pytest.importorskip("zstandard")
    server = lab.server("plane", "--no-tls")
    proxy = proxies(server.port)
    gate = lab.gate("capture")
    device = lab.device(
        "plane", "1", "--no-tls", "--codec", "zstd", *options, port=proxy.port,
        env={"LOUD": "1", "CAPTURE_GATE": str(gate.path)},
    )  # fmt: skip
    gate.let(5)
    proxy.tap.wait_for_ack(5)
    proxy.refuse()
    proxy.cut()
    server.stop()
    device.wait_for("no connection to")
    gate.let(20)
    device.wait_for("count 24$")
    server = lab.server("plane", "--no-tls", env=lab.lacking("zstandard"))
    proxy.retarget(server.port)
    proxy.refuse(False)
    proxy.tap.wait_for_ack(25)
    gate.close()
    assert device.finish()["reconnects"] == 1
    server.stop()
    check_rows(server, 25)


class Beats(Watchdog):
    def __init__(self) -> None:
        super().__init__({})
        self.count = 0

    def beat(self) -> None:
        self.count += 1


def test_a_task_that_hangs_is_told_once_and_left_to_the_service_manager(caplog: pytest.LogCaptureFixture) -> None:
    numbers, begun, held = iter(range(2)), [threading.Event() for _ in range(2)], threading.Event()

    def first() -> tuple[bool, int | None]:
        number = next(numbers, None)
        return number is not None, number

    def hangs_at_0(number: int) -> tuple[bool, int]:
        begun[number].set()
        assert number > 0 or held.wait(PATIENCE_S)
        return True, number

    tasks = [Task(each.__name__, each, Contract()) for each in (first, hangs_at_0, print)]
    one_worker = 1.01
    config = DeviceConfig(split=2, host="127.0.0.1", port=1, app="app", use_tls=False, emulate_cpu=one_worker)
    run = OffloadRun(config, Chain("app", tuple(tasks)))
    run.watchdog = beats = Beats()
    run._beat(1e9)
    assert beats.count == 1
    run.pipeline.start()
    assert begun[0].wait(PATIENCE_S)
    since_s = run.pipeline.longest_running().since_s
    run._beat(since_s + HANGS_S - 1)
    assert beats.count == 2
    assert not caplog.records
    for more_s in range(5):
        run._beat(since_s + HANGS_S + more_s)
    assert beats.count == 2
    [told] = caplog.messages
    assert told == (
        "task hangs_at_0 has been running for 30 s on item 0; nothing of this stream goes on until it returns"
    )
    held.set()
    for thread in run.pipeline._workers:
        thread.join(PATIENCE_S)
    run._beat(1e9)
    assert beats.count == 3
    run.link.start()  # so that it closes what it has
    run.link.abandon()
    run.link.join(PATIENCE_S)
