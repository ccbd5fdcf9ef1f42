"""A TCP proxy that breaks connections as real networks do. In: connections. Out: the same bytes, or trouble.

Every byte that it lets through goes through once and in order: it cuts, stalls, delays, throttles and half-closes, but
reorders and duplicates nothing, as TCP does not. What is random comes from a seed.

One thread moves all bytes. The other methods may be called from any thread; they take effect at once.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque

from tests.support.tap import Tap

CHUNK_BYTES = 64 * 1024
BUFFER_BYTES = 256 * 1024  # that a direction holds; beyond it the sender feels back-pressure
LOOK_S = 0.01
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


class _Direction:
    """Bytes of one connection on their way in one direction."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held: deque[tuple[float, memoryview]] = deque()
        self.held_bytes = 0
        self.ended = False  # the source sent FIN
        self.closed = False  # the FIN went on

    def deliver(self, now: float, allowance: int | None) -> int:
        """Gives the sink what is due. Returns how many bytes it took."""
        given = 0
        with contextlib.suppress(BlockingIOError):
            while self.held and self.held[0][0] <= now and (allowance is None or given < allowance):
                due, data = self.held[0]
                part = data if allowance is None else data[: allowance - given]
                count = self.sink.send(part)
                given += count
                if count == len(data):
                    self.held.popleft()
                else:
                    self.held[0] = due, data[count:]
        self.held_bytes -= given
        if self.ended and not self.held and not self.closed:
            self.closed = True
            self.sink.shutdown(socket.SHUT_WR)
        return given


class _Connection:
    def __init__(self, device: socket.socket, cloud: socket.socket, dies_after: int | None, tap: Tap | None) -> None:
        self.up = _Direction(device, cloud)
        self.down = _Direction(cloud, device)
        self.sockets = (device, cloud)
        self.dies_after = dies_after
        self.up_bytes = 0
        self.tap = tap


class FaultProxy:
    """Relays connections from a port on loopback to `target`.

    Arguments:
        target: the server's address on loopback; `retarget` changes it.
        seed: of what is random.
        tap: reads what devices and cloud say to each other; only without TLS.

    Attributes:
        port: where devices connect.
        connections: how many were relayed so far.
        faults: how many of them were cut.
    """

    def __init__(self, target: int, seed: int = 0, tap: bool = False) -> None:
        self._target = target
        self._random = random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._live: list[_Connection] = []
        self._lock = threading.Lock()
        self._stop = False
        self._stalled = False
        self._refusing = False
        self._delay_s = 0.0
        self._bytes_per_s: float | None = None
        self._allowance = 0.0
        self._allowed_at = time.monotonic()
        self._cut_between: tuple[int, int] | None = None
        self.connections = 0
        self.faults = 0
        self.tap = Tap() if tap else None
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self._thread.start()

    # -- faults -----------------------------------------------------------------------------------------------------

    def cut(self) -> int:
        """Resets every connection, whatever is on its way. Returns how many there were."""
        with self._lock:
            cut = len(self._live)
            for connection in list(self._live):
                self._reset(connection)
            self.faults += cut
        return cut

    def refuse(self, refusing: bool = True) -> None:
        """Lets no connection through any more, or does again. Live ones stay."""
        self._refusing = refusing

    def stall(self, stalled: bool = True) -> None:
        """Moves nothing any more, in either direction, and closes nothing; or goes on."""
        self._stalled = stalled

    def delay(self, seconds: float) -> None:
        """Holds every byte for so long, both ways."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float | None) -> None:
        """Moves at most so many bytes a second, both ways and all connections together."""
        self._bytes_per_s = bytes_per_s

    def half_close(self) -> None:
        """Tells the cloud that the devices have nothing more to send; the other direction stays open."""
        with self._lock:
            for connection in self._live:
                connection.up.ended = True

    def cut_each_after(self, least_bytes: int, most_bytes: int) -> None:
        """Resets each new connection after a random number of bytes from the device. 0, 0 ends that."""
        self._cut_between = (least_bytes, most_bytes) if most_bytes else None

    def retarget(self, port: int) -> None:
        """Relays new connections to another port."""
        self._target = port

    def close(self) -> None:
        self._stop = True
        self._thread.join(10)
        assert not self._thread.is_alive(), "the fault proxy hangs"

    # -- its thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stop:
                for key, _ in self._selector.select(LOOK_S if self._timed() else 0.2):
                    if key.fileobj is self._listening:
                        self._accept()
                    else:
                        with self._lock:
                            self._receive(key.data)
                with self._lock:
                    for connection in list(self._live):
                        self._deliver(connection)
        finally:
            with self._lock:
                for connection in list(self._live):
                    self._reset(connection)
            self._selector.close()
            self._listening.close()

    def _timed(self) -> bool:
        """Whether something may have to move without a socket saying so."""
        return any(each.up.held or each.down.held or each.up.ended or each.down.ended for each in self._live)

    def _accept(self) -> None:
        device, _ = self._listening.accept()
        try:
            if self._refusing:
                raise ConnectionRefusedError
            cloud = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            device.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            device.close()
            return
        dies_after = self._random.randint(*self._cut_between) if self._cut_between else None
        connection = _Connection(device, cloud, dies_after, self.tap)
        for sock in connection.sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tap is not None:
            self.tap.opened(connection)
        with self._lock:
            self._live.append(connection)
            self.connections += 1
            for direction in (connection.up, connection.down):
                self._selector.register(direction.source, selectors.EVENT_READ, (connection, direction))

    def _receive(self, key: tuple[_Connection, _Direction]) -> None:
        connection, direction = key
        if self._stalled or direction.ended or connection not in self._live:
            self._ignore(direction)
            return
        if direction.held_bytes >= BUFFER_BYTES:
            self._ignore(direction)
            return
        try:
            data = direction.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._reset(connection)
            return
        if not data:
            direction.ended = True
            self._ignore(direction)
        elif direction is connection.up and self._kills(connection, data):
            return
        else:
            direction.held.append((time.monotonic() + self._delay_s, memoryview(data)))
            direction.held_bytes += len(data)

    def _kills(self, connection: _Connection, data: bytes) -> bool:
        """Whether the connection has carried what it was meant to, and is cut here, in the midst of `data`."""
        connection.up_bytes += len(data)
        if connection.dies_after is None or connection.up_bytes < connection.dies_after:
            return False
        with contextlib.suppress(OSError):
            connection.up.sink.send(data[: len(data) - (connection.up_bytes - connection.dies_after)])
        self._reset(connection)
        self.faults += 1
        return True

    def _deliver(self, connection: _Connection) -> None:
        now = time.monotonic()
        try:
            for direction in (connection.up, connection.down):
                if not self._stalled:
                    begun = list(direction.held) if connection.tap and direction.held else ()
                    count = direction.deliver(now, self._take_allowance(now))
                    self._allowance -= count
                    if connection.tap is not None and count:
                        self._tell(connection, direction, begun, count)
                if not self._stalled and not direction.ended and direction.held_bytes < BUFFER_BYTES:
                    self._heed(connection, direction)
        except OSError:
            self._reset(connection)
            return
        if connection.up.closed and connection.down.closed:
            self._reset(connection)

    def _tell(self, connection: _Connection, direction: _Direction, begun: object, count: int) -> None:
        assert connection.tap is not None
        data = b"".join(bytes(each) for _, each in begun)[:count]  # type: ignore[attr-defined]
        connection.tap.passed(connection, direction is connection.up, data)

    def _take_allowance(self, now: float) -> int | None:
        if self._bytes_per_s is None:
            return None
        self._allowance = min(
            self._allowance + (now - self._allowed_at) * self._bytes_per_s, max(self._bytes_per_s * 0.05, 1500)
        )
        self._allowed_at = now
        return max(0, int(self._allowance))

    def _ignore(self, direction: _Direction) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(direction.source)

    def _heed(self, connection: _Connection, direction: _Direction) -> None:
        with contextlib.suppress(KeyError):  # it is heeded
            self._selector.register(direction.source, selectors.EVENT_READ, (connection, direction))

    def _reset(self, connection: _Connection) -> None:
        if connection in self._live:
            self._live.remove(connection)
        for direction in (connection.up, connection.down):
            self._ignore(direction)
        for sock in connection.sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
        if connection.tap is not None:
            connection.tap.closed(connection)
