"""A slower link than the real one. In: a device's connection. Out: the same bytes, later.

A relay on loopback between the device and the server: bytes go up at the link's rate and come out a delay later, and
come down a delay later. What the link does not take stays in the sockets' buffers, so the device feels back-pressure
as on a real link. The relay never looks at a byte.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque

from task_offload.config import EmulatedLink
from task_offload.transport.stream import tune

log = logging.getLogger(__name__)

CHUNK_S = 0.001  # what the link carries at a time: a TLS record takes several of them, as of a real link's packets
LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES = 2 * 1024, 16 * 1024
LATE_S = 0.01  # by which the relay may wake up too late, and still make up for it
IDLE_S = 0.0005  # a wait for bytes that is longer was the link's: it was idle, and saves nothing up for later
BUFFER_BYTES = 64 * 1024  # a router's queue


class LinkEmulator:
    """Relays connections to `target` through an emulated link. `address`, on loopback, is where to connect."""

    def __init__(self, link: EmulatedLink, target: tuple[str, int]) -> None:
        self._link = link
        self._target = target
        self._said = ""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        threading.Thread(target=self._accept, name="emulated link", daemon=True).start()

    def _accept(self) -> None:
        while True:
            device, _ = self._listening.accept()
            try:
                cloud = socket.create_connection(self._target, timeout=10)
            except (OSError, UnicodeError) as error:  # the latter of what cannot be a name
                self._say(getattr(error, "strerror", None) or str(error))
                device.close()
                continue
            self._said = ""
            cloud.settimeout(None)
            for sock in (device, cloud):
                tune(sock)
            _Pipe(device, cloud, self._link.bytes_per_s, self._link.delay_s).start()
            _Pipe(cloud, device, None, self._link.delay_s).start()

    def _say(self, reason: str) -> None:
        """The device only hears that its connection is closed."""
        if reason != self._said:
            self._said = reason
            log.warning(
                "the emulated link does not reach %s:%d: %s; is the server running, and its port open?",
                *self._target, reason,
            )  # fmt: skip


class _Pipe:
    """One direction of one connection: a thread that takes bytes at the link's rate, another that gives them later."""

    def __init__(self, source: socket.socket, sink: socket.socket, bytes_per_s: float | None, delay_s: float) -> None:
        self._source = source
        self._sink = sink
        self._bytes_per_s = bytes_per_s
        self._delay_s = delay_s
        self._flying: deque[tuple[float, bytes]] = deque()
        self._broken = False  # the sink takes no more
        self._changed = threading.Condition()
        rate = bytes_per_s or 1e9
        self._chunk_bytes = min(max(int(rate * CHUNK_S), LEAST_CHUNK_BYTES), MOST_CHUNK_BYTES)
        # What a link of this rate and delay holds, and not more: beyond it the sender waits.
        self._most = 8 + int(rate * delay_s / self._chunk_bytes) * 2

    def start(self) -> None:
        for run in (self._take, self._give):
            threading.Thread(target=run, name="emulated link", daemon=True).start()

    def _take(self) -> None:
        ready_at = asked_at = time.monotonic()
        with contextlib.suppress(OSError):
            while data := self._source.recv(self._chunk_bytes):
                if self._bytes_per_s is not None:
                    now = time.monotonic()
                    saved_s = LATE_S if now - asked_at < IDLE_S else 0.0
                    ready_at = max(ready_at, now - saved_s) + len(data) / self._bytes_per_s
                    if ready_at > now:
                        time.sleep(ready_at - now)
                if not self._put(data):
                    return
                asked_at = time.monotonic()
        self._put(b"")

    def _put(self, data: bytes) -> bool:
        """Waits until the link takes the data. False if nobody takes it at the other end any more."""
        with self._changed:
            while len(self._flying) >= self._most and not self._broken:
                self._changed.wait()
            self._flying.append((time.monotonic() + self._delay_s, data))
            self._changed.notify_all()
            return not self._broken

    def _give(self) -> None:
        try:
            while True:
                with self._changed:
                    while not self._flying:
                        self._changed.wait()
                    due_at, data = self._flying.popleft()
                    self._changed.notify_all()
                if (wait_s := due_at - time.monotonic()) > 0:
                    time.sleep(wait_s)
                if not data:
                    break
                self._sink.sendall(data)
        except OSError:
            with self._changed:
                self._broken = True
                self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self._source.shutdown(socket.SHUT_RD)
