"""A slower link than the real one. In: a device's connection. Out: the same bytes, later.

A relay on loopback between the device and the server: bytes go up through a token bucket and come out a delay later,
and come down a delay later. What the bucket does not take stays in the sockets' buffers, so the device feels
back-pressure as on a real link. The relay never looks at a byte.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque

from task_offload.config import EmulatedLink
from task_offload.transport.stream import tune

CHUNK_BYTES = 16 * 1024
BUCKET_S = 0.01  # the burst that a full bucket lets through at once
BUFFER_BYTES = 64 * 1024  # a router's queue


class LinkEmulator:
    """Relays connections to `target` through an emulated link. `address`, on loopback, is where to connect."""

    def __init__(self, link: EmulatedLink, target: tuple[str, int]) -> None:
        self._link = link
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        threading.Thread(target=self._accept, name="emulated link", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listening.accept()
            except OSError:
                return  # closed
            try:
                cloud = socket.create_connection(self._target, timeout=10)
            except OSError:
                device.close()
                continue
            cloud.settimeout(None)
            for sock in (device, cloud):
                tune(sock)
            _Pipe(device, cloud, self._link.bytes_per_s, self._link.delay_s).start()
            _Pipe(cloud, device, None, self._link.delay_s).start()

    def close(self) -> None:
        self._listening.close()


class _Pipe:
    """One direction of one connection: a thread that takes bytes at the link's rate, another that gives them later."""

    def __init__(self, source: socket.socket, sink: socket.socket, bytes_per_s: float | None, delay_s: float) -> None:
        self._source = source
        self._sink = sink
        self._bytes_per_s = bytes_per_s
        self._delay_s = delay_s
        self._flying: deque[tuple[float, bytes]] = deque()
        self._changed = threading.Condition()
        # What a link of this rate and delay holds, and not more: beyond it the sender waits.
        self._most = 8 + int((bytes_per_s or 1e9) * delay_s / CHUNK_BYTES) * 2

    def start(self) -> None:
        for run in (self._take, self._give):
            threading.Thread(target=run, name="emulated link", daemon=True).start()

    def _take(self) -> None:
        ready_at = time.monotonic()
        with contextlib.suppress(OSError):
            while data := self._source.recv(CHUNK_BYTES):
                if self._bytes_per_s is not None:
                    now = time.monotonic()
                    ready_at = max(ready_at, now - BUCKET_S) + len(data) / self._bytes_per_s
                    if ready_at > now:
                        time.sleep(ready_at - now)
                self._put(data)
        self._put(b"")

    def _put(self, data: bytes) -> None:
        with self._changed:
            while len(self._flying) >= self._most:
                self._changed.wait()
            self._flying.append((time.monotonic() + self._delay_s, data))
            self._changed.notify_all()

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
            pass
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self._source.shutdown(socket.SHUT_RD)
