"""A device against clouds that come and go with other codecs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.processes import Lab, Server


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
