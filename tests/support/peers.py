"""Peers that speak the protocol by hand, for tests: raw bytes over raw sockets, whole messages or broken ones."""

from __future__ import annotations

import socket
from types import TracebackType

from task_offload.agreement import chain_spec
from task_offload.errors import ProtocolError
from task_offload.task import Chain
from task_offload.wire.codec import Encoder
from task_offload.wire.framing import Frame, FrameLimits, FrameReader
from task_offload.wire.memory import MemoryPool
from task_offload.wire.messages import Hello, Kind, RefusalMessage, item_prefix

PATIENCE_S = 20.0


class Messages:
    """One end of a connection, by hand.

    Arguments:
        sock: the connection.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE_S)
        self._reader = FrameReader(MemoryPool(0), FrameLimits())
        self._frames: list[Frame] = []

    def send(self, *data: bytes) -> None:
        self.socket.sendall(b"".join(data))

    def frame(self) -> Frame | None:
        """The next message; None when the other side has closed."""
        while not self._frames:
            try:
                count = self.socket.recv_into(self._reader.buffer())
            except ConnectionError:
                return None
            if not count:
                return None
            self._reader.received(count)
            self._frames += iter(self._reader.next, None)
        return self._frames.pop(0)


class Peer(Messages):
    """A device's end of a connection, by hand."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        super().__init__(socket.create_connection((address, port), timeout=PATIENCE_S))

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def until(self, kind: Kind) -> Frame:
        """The next message of a kind; others are passed over."""
        while (frame := self.frame()) is not None:
            if frame.kind is kind:
                return frame
        raise AssertionError(f"the connection was closed before a {kind.name} came")

    def refusal(self) -> RefusalMessage:
        """Why the other side closes the connection; it must say so, and close it."""
        refusal = RefusalMessage.decode(self.until(Kind.REFUSAL).head)
        assert self.frame() is None, "the connection is still open"
        return refusal

    def closed(self) -> bool:
        """Waits until the other side closes; it may say anything before."""
        try:
            while self.frame() is not None:
                pass
        except ProtocolError:
            return False
        return True


def hello(chain: Chain, device: str = "device", session: bytes = bytes(16), **more: object) -> Hello:
    """A hello that a server with this chain and without TLS accepts."""
    return Hello(device, session, bytes(32), chain_spec(chain), **more)  # type: ignore[arg-type]


def item(sequence: int, split: int, *args: object, age_us: int = 0, tag: int = 0) -> bytes:
    """An item's message."""
    payload = Encoder((), 0).encode(args)
    body = b"".join(bytes(buffer) + bytes(-len(buffer) % 64) for buffer in payload.buffers)
    return item_prefix(sequence, age_us, split, tag, len(payload.head), len(body)) + payload.head + body
