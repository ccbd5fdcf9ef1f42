from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from task_offload.observe.watchdog import Watchdog


class Systemd:
    """The other end of $NOTIFY_SOCKET, a real datagram socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self._socket.close()


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(str(tmp_path / "notify"))
    yield systemd
    systemd.close()


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(tmp_path / "notify"), **more}


def test_tells_the_service_s_life(systemd: Systemd, tmp_path: Path) -> None:
    watchdog = Watchdog(environ(tmp_path))
    watchdog.ready()
    watchdog.stopping()
    assert systemd.heard() == ["READY=1", "STOPPING=1"]


def test_beats_at_half_of_the_time_that_systemd_allows(systemd: Systemd, tmp_path: Path) -> None:
    clock = Clock()
    watchdog = Watchdog(environ(tmp_path, WATCHDOG_USEC="60000000", WATCHDOG_PID=str(os.getpid())), clock)
    beats = []
    for seconds in range(100):
        clock.now_s = 1000.0 + seconds
        watchdog.beat()
        beats += [seconds] * len(systemd.heard())
    assert beats == [0, 30, 60, 90]


@pytest.mark.parametrize(
    "more", [{}, {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": ""}]
)
def test_does_not_beat_where_nobody_listens_for_it(systemd: Systemd, tmp_path: Path, more: dict[str, str]) -> None:
    watchdog = Watchdog(environ(tmp_path, **more))
    watchdog.beat()
    watchdog.ready()
    assert systemd.heard() == ["READY=1"]


def test_knows_abstract_names() -> None:
    name = f"task-offload-{uuid.uuid4()}"
    systemd = Systemd("\0" + name)
    watchdog = Watchdog({"NOTIFY_SOCKET": "@" + name})
    watchdog.ready()
    assert systemd.heard() == ["READY=1"]
    systemd.close()


def test_without_systemd_nothing_happens() -> None:
    watchdog = Watchdog({"WATCHDOG_USEC": "60000000"})
    for call in (watchdog.ready, watchdog.beat, watchdog.beat_always, watchdog.stopping):
        assert call() is None


def test_a_busy_or_vanished_systemd_does_no_harm(systemd: Systemd, tmp_path: Path) -> None:
    watchdog = Watchdog(environ(tmp_path))
    for _ in range(5000):  # far more than its queue takes
        watchdog.ready()
    assert systemd.heard()[0] == "READY=1"
    systemd.close()
    watchdog.ready()
    watchdog.ready()
