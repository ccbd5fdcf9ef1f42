"""Cuts a byte stream into frames. In: memory to receive into, and how much of it was filled. Out: frames.

A body is received straight into memory of its own, which its arrays refer to later; only what came together with
the head is copied. Behind a body its memory has room for the beginning of what follows: one read for both.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from task_offload.errors import ProtocolError
from task_offload.wire.messages import FRAME, Kind

READ_AHEAD_BYTES = 64 * 1024  # many small messages to one system call
READ_AHEAD_OF_BODY_BYTES = 4 * 1024  # before and behind large bodies: what is read ahead must be copied


@dataclass(frozen=True)
class FrameLimits:
    """What a peer may declare.

    Attributes:
        head_bytes: a head's size: what `PayloadLimits` allows, and an item's fields.
        body_bytes: a body's size; 0 until the peer has proved who it is.
    """

    head_bytes: int = 1024 * 1024 + 64
    body_bytes: int = 64 * 1024 * 1024


BEFORE_AUTHENTICATION = FrameLimits(head_bytes=64 * 1024, body_bytes=0)


class Memory(Protocol):
    """Where bodies are received into."""

    def take(self, size_bytes: int) -> memoryview:
        """Writable memory of this size."""


class Frame(NamedTuple):
    """One message as it came: its kind, head, and body (None where it has none)."""

    kind: Kind
    head: bytes
    body: memoryview | None


_KINDS = {int(kind): kind for kind in Kind}


class FrameReader:
    """Cuts what is received on one connection into frames.

    Call `next()` until it gives None. Then call `buffer()`, receive into what it gives, tell `received()` how many
    bytes came, and begin again. After a ProtocolError the connection must be closed.
    """

    def __init__(self, memory: Memory, limits: FrameLimits = BEFORE_AUTHENTICATION) -> None:
        self.limits = limits
        self._memory = memory
        self._staged = bytearray(READ_AHEAD_BYTES)
        self._view = memoryview(self._staged)
        self._begin = 0  # of what is staged and not yet cut
        self._end = 0
        self._body: memoryview | None = None  # and room behind it
        self._body_bytes = 0
        self._body_filled = 0
        self._kind = Kind.PING
        self._head = b""
        self._read_ahead_bytes = READ_AHEAD_BYTES

    @property
    def body_left_bytes(self) -> int:
        """What is still to come of a body of which a part has come; 0 between bodies."""
        return 0 if self._body is None else self._body_bytes - self._body_filled

    def buffer(self, most_bytes: int = sys.maxsize) -> memoryview:
        """Where the next bytes belong, `most_bytes` of them at most. Never empty."""
        if self._body is not None:
            return self._body[self._body_filled : self._body_filled + most_bytes]
        return self._view[self._end : self._end + min(self._read_ahead_bytes, most_bytes)]

    def received(self, count: int) -> None:
        """Takes `count` bytes, filled into the start of `buffer()`."""
        if self._body is None:
            self._end += count
            return
        self._body_filled += count
        if (ahead := self._body_filled - self._body_bytes) > 0:
            self._staged[:ahead] = self._body[self._body_bytes : self._body_filled]
            self._begin, self._end = 0, ahead

    def next(self) -> Frame | None:
        """The next frame that has come whole; None if more bytes must come first.

        Raises:
            ProtocolError: the header is none of this protocol's, or declares more than the limits allow.
        """
        if self._body is None:
            return self._cut()
        if self._body_filled < self._body_bytes:
            return None
        frame = Frame(self._kind, self._head, self._body[: self._body_bytes])
        self._body = None
        return frame

    def _cut(self) -> Frame | None:
        """Cuts one frame off what is staged, or begins its body."""
        begin = self._begin + FRAME.size
        if self._end < begin:
            self._make_room()
            return None
        kind_byte, zero, zeros, head_bytes, body_bytes = FRAME.unpack_from(self._staged, self._begin)
        kind = _KINDS.get(kind_byte)
        if kind is None or zero or zeros:
            raise ProtocolError("the peer sent something else than this protocol")
        if head_bytes > self.limits.head_bytes:
            raise ProtocolError(f"a head of {head_bytes} bytes; at most {self.limits.head_bytes} are allowed")
        if body_bytes > self.limits.body_bytes:
            raise ProtocolError(f"a body of {body_bytes} bytes; at most {self.limits.body_bytes} are allowed here")
        end = begin + head_bytes
        if self._end < end:
            self._read_ahead_bytes = max(self._read_ahead_bytes, end - self._end)
            self._make_room()
            return None
        head = bytes(self._view[begin:end])
        self._begin = end
        if not body_bytes:
            self._read_ahead_bytes = READ_AHEAD_BYTES
            return Frame(kind, head, None)
        here = min(self._end - end, body_bytes)
        rest = here < body_bytes
        body = self._memory.take(body_bytes + READ_AHEAD_OF_BODY_BYTES if rest else body_bytes)
        body[:here] = self._view[end : end + here]
        self._begin += here
        self._read_ahead_bytes = READ_AHEAD_OF_BODY_BYTES
        if not rest:
            return Frame(kind, head, body)
        self._make_room()
        self._kind, self._head, self._body = kind, head, body
        self._body_bytes, self._body_filled = body_bytes, here
        return None

    def _make_room(self) -> None:
        """Leaves room behind what is staged: to read ahead, or for the rest of a long head."""
        staged = self._end - self._begin
        if not staged:
            self._begin = self._end = 0
            if len(self._staged) > READ_AHEAD_BYTES:  # it grew for a long head
                self._stage(READ_AHEAD_BYTES)
        elif self._begin:
            self._staged[:staged] = self._staged[self._begin : self._end]
            self._begin, self._end = 0, staged
        elif staged == len(self._staged):
            # Doubles with what has really come: a declared length alone takes no memory.
            self._stage(2 * staged)

    def _stage(self, size_bytes: int) -> None:
        """Moves what is staged to the beginning of new memory."""
        grown = bytearray(size_bytes)
        staged = self._end - self._begin
        grown[:staged] = self._view[self._begin : self._end]
        self._staged, self._view = grown, memoryview(grown)
        self._begin, self._end = 0, staged
