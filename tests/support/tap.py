"""Reads along on connections without TLS. In: the bytes that pass a proxy. Out: what was acknowledged, by session."""

from __future__ import annotations

import threading

from task_offload.errors import ProtocolError
from task_offload.wire.framing import Frame, FrameLimits, FrameReader
from task_offload.wire.memory import MemoryPool
from task_offload.wire.messages import Hello, Kind, Welcome, decode_totals

_LIMITS = FrameLimits(head_bytes=1 << 21, body_bytes=1 << 30)
PATIENCE_S = 30.0


class _Reader:
    """One direction of one connection."""

    def __init__(self) -> None:
        self._frames = FrameReader(MemoryPool(0), _LIMITS)

    def feed(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        view = memoryview(data)
        while view:
            buffer = self._frames.buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            self._frames.received(count)
            frames += iter(self._frames.next, None)
            view = view[count:]
        return frames


class Tap:
    """What devices and cloud have told each other so far.

    Attributes:
        acked: the highest `next_sequence` that the cloud told each session (hexadecimal digits).
        device_of: the device's name of each session.
        hellos: how many introductions came.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers: dict[int, tuple[_Reader, _Reader]] = {}
        self._sessions: dict[int, str] = {}
        self.acked: dict[str, int] = {}
        self.device_of: dict[str, str] = {}
        self.hellos = 0

    def opened(self, connection: object) -> None:
        self._readers[id(connection)] = _Reader(), _Reader()

    def closed(self, connection: object) -> None:
        self._readers.pop(id(connection), None)
        self._sessions.pop(id(connection), None)

    def passed(self, connection: object, up: bool, data: bytes) -> None:
        """So much has gone on its way to the other side."""
        readers = self._readers.get(id(connection))
        if readers is None:
            return
        try:
            frames = readers[0 if up else 1].feed(data)
        except ProtocolError:  # garbage that a test sends on purpose
            self.closed(connection)
            return
        with self._changed:
            for frame in frames:
                self._heard(id(connection), frame)
            self._changed.notify_all()

    def _heard(self, key: int, frame: Frame) -> None:
        if frame.kind is Kind.HELLO:
            hello = Hello.decode(frame.head)
            self.hellos += 1
            self._sessions[key] = hello.session.hex()
            self.device_of[hello.session.hex()] = hello.device
            return
        if frame.kind is Kind.WELCOME:
            totals = Welcome.decode(frame.head).totals
        elif frame.kind in (Kind.ACK, Kind.FAREWELL):
            totals = decode_totals(frame.head)
        else:
            return
        session = self._sessions[key]
        self.acked[session] = max(self.acked.get(session, 0), totals.next_sequence)

    def wait_for_ack(self, items: int, session: str | None = None) -> None:
        """Waits until the cloud has acknowledged so many items, of any session or of one."""

        def reached() -> bool:
            if session is not None:
                return self.acked.get(session, 0) >= items
            return any(acked >= items for acked in self.acked.values())

        with self._changed:
            assert self._changed.wait_for(reached, PATIENCE_S), f"{items} items were not acknowledged: {self.acked}"

    def wait_for_hello(self, times: int) -> None:
        """Waits until so many introductions have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.hellos >= times, PATIENCE_S), f"only {self.hellos} hellos came"
