"""The emulated link's ends: a server that is not there, and one that breaks a connection."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from task_offload.config import EmulatedLink
from task_offload.transport.emulation import LinkEmulator

PATIENCE_S = 20.0


def test_it_says_once_why_it_does_not_reach_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        target = listening.getsockname()
    emulator = LinkEmulator(EmulatedLink(1e9), target)
    for _ in range(2):
        with socket.create_connection(emulator.address, PATIENCE_S) as device:
            assert device.recv(1) == b""
    [record] = caplog.records
    assert record.getMessage() == (
        f"the emulated link does not reach 127.0.0.1:{target[1]}: Connection refused; "
        "is the server running, and its port open?"
    )


def test_a_connection_that_breaks_while_much_is_on_its_way_leaves_no_threads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        emulator = LinkEmulator(EmulatedLink(1e9), listening.getsockname())
        before = set(threading.enumerate())
        with socket.create_connection(emulator.address, PATIENCE_S) as device:
            cloud, _ = listening.accept()
            device.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                while True:
                    device.send(bytes(1 << 20))
            threads = set(threading.enumerate()) - before
            assert len(threads) == 4
            cloud.close()  # with what it has not read: the system breaks the connection
            for thread in threads:
                thread.join(PATIENCE_S)
                assert not thread.is_alive()
