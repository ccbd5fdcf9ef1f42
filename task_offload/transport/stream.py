"""A non-blocking byte stream over TCP or TLS. In: buffers to send, memory to fill. Out: how much of it was done.

One thread owns a stream. This is where an `OSError` becomes a `LinkError`, its cause kept.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from itertools import islice

from task_offload.errors import LinkError

IOV_MAX = 64  # buffers to one system call; the least that systems promise is 16, Linux takes 1024
TLS_RECORD_BYTES = 16 * 1024
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Stream:
    """A connected socket, with TLS if it is an `SSLSocket`.

    Attributes:
        wants_write: the last operation waits until the socket can be written, whatever it was (TLS).
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._outgoing: deque[bytes | memoryview] = deque()
        self.wants_write = False
        self.outgoing_bytes = 0
        self._expected_bytes = 1

    def fileno(self) -> int:
        return self._socket.fileno()

    def queue(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Adds buffers, flat bytes, to what `flush` sends. They must not change until they are sent."""
        self._outgoing += buffers
        self.outgoing_bytes += sum(map(len, buffers))

    def flush(self) -> int:
        """Sends as much of what is queued as the socket takes now. Returns how many bytes that was.

        Raises:
            LinkError: the connection is lost.
        """
        before_bytes = self.outgoing_bytes
        try:
            if self._tls:
                self._flush_records()
            else:
                self._flush_buffers()
        except _NOT_NOW:
            pass
        except (OSError, ValueError) as error:
            raise LinkError(f"the connection was lost: {error}") from error
        self.wants_write = bool(self._outgoing)
        return before_bytes - self.outgoing_bytes

    def _flush_buffers(self) -> None:
        outgoing = self._outgoing
        while outgoing:
            offered = outgoing if len(outgoing) <= IOV_MAX else list(islice(outgoing, IOV_MAX))
            count = self._socket.sendmsg(offered)
            if count == self.outgoing_bytes:
                outgoing.clear()
                self.outgoing_bytes = 0
                return
            self.outgoing_bytes -= count
            while outgoing and count >= len(outgoing[0]):
                count -= len(outgoing.popleft())
            if count:  # a part of a buffer: the socket is full
                outgoing[0] = memoryview(outgoing[0])[count:]
                return

    def _flush_records(self) -> None:
        """TLS takes a record at a time."""
        outgoing = self._outgoing
        while outgoing:
            if len(outgoing[0]) < TLS_RECORD_BYTES and len(outgoing) > 1:
                self._join_small()
            left = memoryview(outgoing[0])
            try:
                while left:
                    count = self._socket.send(left)
                    self.outgoing_bytes -= count
                    left = left[count:]
            finally:
                outgoing[0] = left
            outgoing.popleft()

    def _join_small(self) -> None:
        """Fills one TLS record from the small buffers in front, so that each does not become a record."""
        parts: list[memoryview] = []
        room = TLS_RECORD_BYTES
        while self._outgoing and room:
            view = memoryview(self._outgoing.popleft())
            parts.append(view[:room])
            if len(view) > room:
                self._outgoing.appendleft(view[room:])
            room -= len(parts[-1])
        self._outgoing.appendleft(b"".join(parts))

    def receive_into(self, buffer: memoryview) -> int | None:
        """Receives what there is. Returns the number of bytes, 0 at the end, None if there is nothing now.

        Less than the buffer holds means that there is no more now, with TLS too, which gives a record at a time.

        Raises:
            LinkError: the connection is lost.
        """
        filled = 0
        try:
            if not self._tls:
                return self._socket.recv_into(buffer)
            size_bytes = len(buffer)
            while filled < size_bytes:
                count = self._socket.recv_into(buffer[filled:], size_bytes - filled)  # else it makes a view to ask it
                if not count:
                    break
                filled += count
            return filled
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return filled or None
        except _NOT_NOW:
            return filled or None
        except ssl.SSLEOFError:
            return filled
        except (OSError, ValueError) as error:
            if filled:
                return filled  # the next call says it again, after these bytes were read
            raise LinkError(f"the connection was lost: {error}") from error

    def expect(self, size_bytes: int) -> None:
        """Lets the system's poll call the stream readable when so much has come, or the stream has ended."""
        if size_bytes != self._expected_bytes:
            self._expected_bytes = size_bytes
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)
            except OSError:
                pass  # it only saves time

    def pending(self) -> bool:
        """Whether bytes wait inside TLS, of which the system's poll knows nothing."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def shake_hands(self) -> bool:
        """Goes on with the TLS handshake. True when it is done.

        Raises:
            LinkError: the peer does not speak TLS, or the connection is lost.
        """
        if not isinstance(self._socket, ssl.SSLSocket):
            return True
        try:
            self._socket.do_handshake()
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return False
        except ssl.SSLWantReadError:
            self.wants_write = False
            return False
        except (OSError, ValueError) as error:
            raise LinkError(f"no TLS connection: {_why(error)}") from error
        self.wants_write = False
        return True

    def certificate(self) -> bytes | None:
        """The peer's certificate as DER; None without TLS."""
        return self._socket.getpeercert(binary_form=True) if isinstance(self._socket, ssl.SSLSocket) else None

    def close(self) -> None:
        self._outgoing.clear()
        self.outgoing_bytes = 0
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster
        self._socket.close()


def tune(sock: socket.socket) -> None:
    """Small messages leave at once; a peer whose machine vanished is noticed by the system too."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Waker:
    """Wakes a thread that polls `fileno()`. Any thread may call `wake`."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def fileno(self) -> int:
        return self._read.fileno()

    def wake(self) -> None:
        try:
            self._write.send(b"\0")
        except (BlockingIOError, OSError):
            pass  # it will wake anyway, or is closed

    def wait(self, timeout_s: float) -> None:
        """Waits at most so long for a call of `wake`."""
        if self._poll.poll(timeout_s * 1e3):
            self.drain()

    def drain(self) -> None:
        try:
            while len(self._read.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        self._read.close()
        self._write.close()


def _why(error: OSError | ValueError) -> str:
    """The two usual reasons in words, others as OpenSSL has them."""
    if isinstance(error, ssl.SSLEOFError):
        return "the peer ended it within the handshake"
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "the peer sent something else than TLS"
    return str(error)
